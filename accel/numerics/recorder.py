"""Recording a run: every module's inputs, outputs and gradients, and the float64 truth of each."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from accel.numerics import nesting
from accel.numerics.encoding import tensor_digest, why_not_recorded
from accel.numerics.entries import Key, RootCall
from accel.numerics.generators import Generators
from accel.numerics.hooks import Tap
from accel.numerics.manifest import manifest_for
from accel.numerics.observer import Context, autocast_dtype
from accel.numerics.reference import References
from accel.numerics.refusals import recordable
from accel.numerics.sink import Sink
from accel.numerics.writer import Writer, check_new

_log = logging.getLogger("accel")


def record(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    gradients: bool = True,
    reference: bool = True,
    seed: int | None = None,
    arguments: Sequence[str] | None = None,
) -> Recorder:
    """Record what a model computes, to be compared with another machine's recording.

    Use it as a context manager around any number of steps; call the model itself, or its parts:

        with accel.numerics.record(model, "run-a"):
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()

    Recorded are the inputs and outputs of every module, the gradients of both, and what each step
    adds to each parameter's gradient. The run itself does not change by a bit. A step is the calls
    of the model before a backward; its gradients are this process's own, before any all-reduce.

    With `reference` each call is repeated in float64 on the CPU, from the same parameters, inputs
    and output gradients, so that `compare` needs no tolerance: two forwards and three backwards,
    and host memory of 16 bytes for each parameter and several times 16 for each element of each
    activation. A step of a small Transformer (0.46 million parameters, 128 tokens) took 11 ms,
    80 ms recorded without reference and 520 ms with it. For a large model use `reference=False` and
    `compare(..., budget=...)`.

    Args:
        model: Any module, on any device; `DistributedDataParallel` is looked through.
        path: The directory to write; it must not exist or be empty.
        gradients: Whether to record gradients too.
        reference: Whether to record the float64 truth, and the parameters' values.
        seed: Written into the manifest; `torch.initial_seed()` if None.
        arguments: Written into the manifest; `sys.argv` if None.

    Returns:
        The context manager.

    Raises:
        TypeError: `model` is no module.
        ValueError: `path` is in use, or the model is compiled, replicated or on the meta device;
            also at the end of the block if the model was never called in it.
        OSError: `path` cannot be written; raised from inside the model's call or backward if the
            disk fails or fills up then.
    """
    return Recorder(
        model, path, gradients=gradients, reference=reference, seed=seed, arguments=arguments
    )


class Recorder:
    """A recording under way; `record` makes it."""

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        *,
        gradients: bool,
        reference: bool,
        seed: int | None,
        arguments: Sequence[str] | None,
    ) -> None:
        self.path = os.fspath(path)
        check_new(Path(self.path))
        self._model = recordable(model)
        self._keeps_values = reference
        self._manifest = manifest_for(
            self._model, seed=seed, arguments=arguments, gradients=gradients, reference=reference
        )
        names = {module: name for name, module in self._model.named_modules()}
        self._tap = Tap(names, _parameters(names), self, gradients=gradients)
        self._references: References | None = None
        self._roots = 0
        self._step_has_gradients = False

    def __enter__(self) -> Recorder:
        self._sink = Sink(Writer(self.path, self._manifest))
        if self._keeps_values:
            self._references = References(self._sink, self._tap, Generators(self._model))
        self._record_parameters()
        self._sink.end_step()
        self._tap.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tap.detach()
        if error is not None and self._references is not None:
            self._references.drop()
        self._end_step()
        if error is None and self._roots == 0:
            error = ValueError(
                f"nothing was recorded in {self.path}: the model was not called inside the block; "
                "call the module that was given to record (not a compiled or wrapped one)"
            )
            self._sink.writer.finish(self._manifest.finished(error))
            raise error
        self._sink.writer.finish(self._manifest.finished(error))

    def root_started(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """An outermost call of the model begins (called by the hooks)."""
        if self._step_has_gradients:
            self._end_step()
        self._sink.root = self._roots
        self._roots += 1
        self._sink.writer.add(self._root_call(module, args, kwargs))
        if self._references is not None:
            self._references.before_call(module, args, kwargs)

    def root_finished(self, module: nn.Module, output: Any) -> None:
        """An outermost call of the model is over (called by the hooks)."""
        if self._references is not None:
            self._references.after_call(module, output)
        self._sink.writer.flush()

    def seen(self, key: Key, tensor: Tensor, context: Context) -> bool:
        """A tensor of the run exists now (called by the hooks)."""
        if key.phase not in ("input", "forward"):
            self._step_has_gradients = True
            if self._references is not None:
                self._references.gradient_arrived(key, tensor)
        return self._sink.put(key, tensor, context)

    def output_for(self, key: Key, tensor: Tensor) -> None:
        """The run's own values are left alone (called by the hooks)."""

    def gradient_for(self, gradient: Tensor) -> None:
        """The run's own gradients are left alone (called by the hooks)."""

    def _end_step(self) -> None:
        if self._references is not None:
            self._references.end_step()
        self._sink.end_step()
        self._tap.next_step()
        self._step_has_gradients = False
        if self._tap.unmatched:
            _log.warning(
                "%d gradients of recomputed activations are not recorded: the recomputation gave "
                "other bits than the first computation",
                self._tap.unmatched,
            )
            self._tap.unmatched = 0

    def _record_parameters(self) -> None:
        for module, name in self._tap.names.items():
            context = Context(type(module).__name__, None, requires_grad=False)
            for path, tensor in _own_tensors(module):
                key = Key("parameter", name, 0, path)
                if self._keeps_values or why_not_recorded(tensor) is not None:
                    self._sink.put(key, tensor, context)
                else:
                    self._sink.put_digest(key, tensor, context)

    def _root_call(self, module: nn.Module, args: Any, kwargs: Any) -> RootCall:
        name = self._tap.names[module]
        given = [*nesting.tensors((args, kwargs))] or [("", t) for _, t in _own_tensors(module)]
        return RootCall(
            index=self._sink.root,
            module=name,
            call=self._tap.calls[name] - 1,
            training=module.training,
            autocast=autocast_dtype(given[0][1].device) if given else None,
            parameters=self._parameter_digest(module),
            arguments=nesting.plain_values((*args, dict(kwargs))),
        )

    def _parameter_digest(self, module: nn.Module) -> str:
        hasher = hashlib.sha256()
        for name, inner in module.named_modules():
            for path, tensor in _own_tensors(inner):
                if why_not_recorded(tensor) is None:
                    hasher.update(f"{name}.{path} {tensor_digest(tensor)}\n".encode())
        return hasher.hexdigest()


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _parameters(names: dict[nn.Module, str]) -> dict[Tensor, tuple[str, str]]:
    # A tied parameter goes by the first of its names, as in `named_parameters`.
    found: dict[Tensor, tuple[str, str]] = {}
    for module, path in names.items():
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(parameter, (path, name))
    return found
