"""Recording a run: every operator of chosen steps, as sketches or with all elements."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from accel.numerics.capture.mode import CaptureMode
from accel.numerics.capture.modules import OwnHook
from accel.numerics.capture.optimizers import OptimizerHooks
from accel.numerics.capture.selection import Selection
from accel.numerics.capture.sharding import Sharding
from accel.numerics.capture.steps import Model, StepCapture
from accel.numerics.overrides import overridden
from accel.numerics.refusals import recordable
from accel.numerics.replaying.known import kernels_of
from accel.numerics.storage.surroundings import manifest_for
from accel.numerics.storage.writer import Writer

Level = Literal["sketch", "full", "check"]
LEVELS: tuple[Level, ...] = ("sketch", "full", "check")


def record(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    level: Level = "sketch",
    only: Sequence[str] | None = None,
    every: int = 200,
    steps: Collection[int] | None = None,
    size_cap: int | None = None,
    data_parallel: tuple[int, int] | None = None,
    seed: int | None = None,
    arguments: Sequence[str] | None = None,
) -> Recorder:
    """Record what a training or inference run computes, to be compared with another machine's.

    Use it as a context manager around any number of steps:

        with accel.numerics.record(model, "run-a"):
            for inputs, targets in data:
                loss = criterion(model(inputs), targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    Every operator of a recorded step is named and described: forward, backward, recomputed
    activations, optimizer, collectives. The run itself does not change by a bit. A step ends where
    the model is called for the first time after an optimizer's step, or where `Recorder.step` is
    called; in between, the block's remaining steps run without the recorder (except for one hook on
    the model and two on optimizers).

    Levels:

    - `sketch`: of each value 64 sums with random signs and a few statistics, from which distances
      between two runs can be estimated. 1 to 2 KB per operator.
    - `full`: also all elements, of the operators that `only` selects and of what they were given.
      They can be replayed in float64 on any CPU: `accel.numerics.replay`.
    - `check`: sketches, and one operator of each signature replayed at once.

    Args:
        model: Any module, on any device; `DistributedDataParallel` is looked through.
        path: The directory to write; it must not hold a recording of this rank.
        level: What is recorded of each value.
        only: At `full`, patterns of operators to keep, such as `["blocks.1.*"]` (modules) or
            `["backward:blocks.1/*"]` (keys); all of them if None.
        every: Record steps 0, `every`, 2·`every`, ….
        steps: Record these instead.
        size_cap: Keep at most so many bytes of elements per process; what is dropped is counted.
        data_parallel: Index of this process among those that share a batch, and their number; taken
            from torch.distributed where the model is `DistributedDataParallel` or FSDP.
        seed: Written into the manifest; `torch.initial_seed()` if None.
        arguments: Written into the manifest; `sys.argv` if None.

    The environment variable `ACCEL_RECORD`, which `accel record` sets, overrides `path`, `level`,
    `only` and `steps`.

    Returns:
        The context manager.

    Raises:
        TypeError: `model` is no module, or `only` no list of patterns.
        ValueError: `path` is in use; the model is compiled, replicated or on the meta device; or
            another argument is out of its range. Also at the end of the block if the model was
            never called in it.
        OSError: `path` cannot be written; raised from inside the model's call or backward if the
            disk fails or fills up then.
    """
    return Recorder(
        model, path, level=level, only=only, every=every, steps=steps, size_cap=size_cap,
        data_parallel=data_parallel, seed=seed, arguments=arguments,
    )  # fmt: skip


class Recorder:
    """A recording under way; `record` makes it."""

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        *,
        level: Level,
        only: Sequence[str] | None,
        every: int,
        steps: Collection[int] | None,
        size_cap: int | None,
        data_parallel: tuple[int, int] | None,
        seed: int | None,
        arguments: Sequence[str] | None,
    ) -> None:
        chosen = overridden(path=os.fspath(path), level=level, only=only, steps=steps)
        self.path = chosen.path
        self._level, self._steps = chosen.level, chosen.steps
        self._every = _checked(self._level, every, size_cap)
        self._only = Selection(chosen.only)
        self._model = Model(recordable(model))
        self._sharding = Sharding.of_run(model, data_parallel)
        self._manifest = manifest_for(
            self._model.root, seed=seed, arguments=arguments, level=self._level,
            only=chosen.only or (), steps=self._steps_text(), rank=self._sharding.rank,
            world=self._sharding.world, data_parallel=self._sharding.member,
        )  # fmt: skip
        environment = self._manifest.numerics_mode.get("environment")
        self._kernels = kernels_of(self._manifest.device, environment)
        self._cap = size_cap
        self._mode = CaptureMode()
        self._optimizers = OptimizerHooks(
            self._is_ours, self._optimizer_begins, self._optimizer_ends
        )
        self._root: RemovableHandle | None = None
        self._index, self._calls = 0, 0
        self._capture: StepCapture | None = None
        self._had_optimizer = False

    def __enter__(self) -> Recorder:
        self._writer = Writer(self.path, self._manifest, cap=self._cap)
        self._root = self._model.root.register_forward_pre_hook(
            OwnHook(self._root_called), with_kwargs=True
        )
        self._optimizers.attach()
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._root is not None:
            self._root.remove()
        self._optimizers.detach()
        try:
            self._end()
        finally:
            if error is None and self._calls == 0:
                error = ValueError(
                    f"nothing was recorded in {self.path}: the model was not called inside the "
                    "block; call the module that was given to record (not a compiled or wrapped "
                    "one)"
                )
                self._writer.finish(self._manifest.finished(error))
                raise error
            self._writer.finish(self._manifest.finished(error))

    def step(self) -> None:
        """End the current step here, instead of where the model is next called."""
        self._end()
        self._index += 1
        self._begin()

    def rows(self, first: int, total: int) -> None:
        """Say which rows of the batch the model is given next, in a data-parallel run.

        Needed where the processes are given unequally many rows, as in a last batch: without it,
        the first of n processes is taken to have the first n-th of the batch, and so on.

        Args:
            first: Index of this process's first row in the whole batch.
            total: Number of rows in all processes.

        Raises:
            ValueError: The run is not data-parallel, or there are no such rows.
        """
        self._sharding.state_rows(first, total)

    @property
    def index(self) -> int:
        """Number of the current step, from 0."""
        return self._index

    @property
    def is_recording(self) -> bool:
        """Whether the current step is recorded."""
        return self._capture is not None

    def _begin(self) -> None:
        self._had_optimizer = False
        if not self._is_due():
            return
        self._model = self._model.refreshed()
        capture = StepCapture(
            self._model, self._writer.start_step(self._index), level=self._level, only=self._only,
            sharding=self._sharding, pause=self._mode.paused, is_seen=self._mode.is_seen,
            kernels=self._kernels,
        )  # fmt: skip
        capture.open()
        self._capture = capture
        self._mode.begin(capture.operators)

    def _end(self) -> None:
        capture, self._capture = self._capture, None
        self._mode.end()
        if capture is not None:
            capture.close()

    def _is_ours(self, parameter: Tensor) -> bool:
        if id(parameter) in self._model.parameters:
            return True
        return any(parameter is own for own in self._model.root.parameters())

    def _is_due(self) -> bool:
        if self._steps is not None:
            return self._index in self._steps
        return self._index % self._every == 0

    def _root_called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._calls += 1
        if self._had_optimizer:
            self.step()
            if self._capture is not None:
                self._capture.root_is_called(module, args, kwargs)

    def _optimizer_begins(self, optimizer: Optimizer) -> None:
        self._had_optimizer = True
        if self._capture is not None:
            self._capture.optimizer_begins(optimizer)

    def _optimizer_ends(self, optimizer: Optimizer) -> None:
        if self._capture is not None:
            self._capture.optimizer_ends(optimizer)

    def _steps_text(self) -> str:
        if self._steps is not None:
            return ", ".join(map(str, sorted(self._steps)))
        return f"every {self._every}"


def _checked(level: str, every: int, size_cap: int | None) -> int:
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}; known are {', '.join(LEVELS)}")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a number of steps from 1, got {every!r}")
    if size_cap is not None and size_cap < 0:
        raise ValueError(f"size_cap must be a number of bytes from 0, got {size_cap!r}")
    return every
