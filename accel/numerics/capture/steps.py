"""One recorded step: hooks, operators and gradients put together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from accel.numerics.capture import nesting
from accel.numerics.capture.adjoints import Adjoints
from accel.numerics.capture.checking import Checking
from accel.numerics.capture.compilation import Uncompiled
from accel.numerics.capture.contents import Contents
from accel.numerics.capture.environment import autocast_dtype, device_type_of
from accel.numerics.capture.generators import generator_digests
from accel.numerics.capture.modules import ModuleHooks
from accel.numerics.capture.naming import Call, Names, running_number
from accel.numerics.capture.operators import Operators
from accel.numerics.capture.optimizers import state_of
from accel.numerics.capture.selection import Selection
from accel.numerics.capture.sharding import Sharding
from accel.numerics.capture.sharding_rows import Rows
from accel.numerics.capture.values import Values
from accel.numerics.storage.entries import (
    End,
    Line,
    ModuleCall,
    RootCall,
    Skipped,
    SourceKind,
    Update,
)
from accel.numerics.storage.writer import StepWriter


class Model:
    """The recorded model's names.

    Args:
        module: It.
    """

    def __init__(self, module: nn.Module) -> None:
        self.root = module
        self.modules = {inner: name for name, inner in module.named_modules()}
        self.parameters: dict[int, tuple[str, str]] = {}
        self.tensors: list[tuple[str, SourceKind, Tensor]] = []
        for inner, path in self.modules.items():
            for name, parameter in inner.named_parameters(recurse=False):
                # A tied parameter goes by the first of its names, as in `named_parameters`.
                if id(parameter) not in self.parameters:
                    self.parameters[id(parameter)] = (path, name)
                    self.tensors.append((f"{path}.{name}".lstrip("."), "parameter", parameter))
            for name, buffer in inner.named_buffers(recurse=False):
                self.tensors.append((f"{path}.{name}".lstrip("."), "buffer", buffer))

    def refreshed(self) -> Model:
        """The names of what the model holds now: modules and parameters may have been exchanged.

        `fully_shard` exchanges parameters itself, and may have done so for a call that has begun:
        those of such a model stay as they were when it was given.
        """
        if any(hasattr(module, "_get_fsdp_state") for module in self.modules):
            return self
        return Model(self.root)

    def place_of(self, variable: Tensor) -> tuple[str, str] | None:
        """Module path and name of what is a parameter now: `fully_shard` exchanges them."""
        for module, path in self.modules.items():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter is variable:
                    return path, name
        return None

    def full_name(self, parameter: Tensor) -> str | None:
        """The name of one of its parameters, as in `named_parameters`; None for other tensors."""
        found = self.parameters.get(id(parameter))
        if found is not None:
            return ".".join(filter(None, found))
        own = self.root.named_parameters()  # it may have been exchanged since
        return next((name for name, one in own if one is parameter), None)


class StepCapture:
    """What is recorded of one step, from `open` to `close`.

    Args:
        model: The recorded model.
        writer: Where the step goes.
        level: `sketch`, `full` or `check`.
        only: Which operators are kept with all elements at `full`.
        sharding: Which part of a whole the process's tensors are.
        pause: Makes a context in which nothing is recorded.
        is_seen: Whether operators of the current thread are recorded.
        kernels: Whose kernels run, for level `check`.
    """

    def __init__(
        self,
        model: Model,
        writer: StepWriter,
        *,
        level: str,
        only: Selection,
        sharding: Sharding,
        pause: Callable[[], AbstractContextManager[None]],
        is_seen: Callable[[], bool],
        kernels: str,
    ) -> None:
        self._model, self._writer, self._pause = model, writer, pause
        self._sharding = sharding
        self._lines: list[Line] = []
        emit = self._lines.append
        is_full = level == "full"
        self._contents = Contents(writer, emit, remembers=is_full)
        self._rows = None if sharding.member is None else Rows()
        self._values = Values(self._contents, emit, self._rows)
        self._names = Names(model.parameters, model.place_of)
        self._adjoints = Adjoints(
            self._names, self._values, emit, pause, self._value, self._copy, everywhere=is_full
        )
        self.operators = Operators(
            self._names, self._values, self._adjoints, only if is_full else Selection([]), emit,
            self._flush, Checking(emit, kernels) if level == "check" else None,
        )  # fmt: skip
        self._hooks = ModuleHooks(model.modules, self, is_seen)
        self._uncompiled = Uncompiled()
        self._device = device_type_of(model.root)
        self._inputs: list[tuple[Call, int, dict[str, int]]] = []
        self._known: dict[str, int] = {}  # parameters and buffers
        self._graded: set[str] = set()  # parameters whose gradient was recorded
        self._roots = 0

    def open(self) -> None:
        """Begin: parameters first, so that other weights are seen before anything else."""
        with self._pause():
            for name, kind, tensor in self._model.tensors:
                of = self._copy if kind == "parameter" else self._value
                self._known[name] = of(tensor, kind, name)
            said = self._uncompiled.begin()
            if said is not None:
                self._lines.append(said)
            self._flush()
        self._hooks.attach()

    def close(self) -> None:
        """End the step; everything goes to the disk."""
        self._hooks.detach()
        self._uncompiled.end()
        with self._pause():
            self._gradients()
            if self._hooks.unseen:
                said = f"{self._hooks.unseen} calls of modules in threads that the program started"
                self._lines.append(Skipped(said, "only the recorder's own thread is seen"))
            self._values.close()
            self._contents.drain()
            self._flush()
        self._adjoints.close()
        self._writer.end(End(self.operators.count, self._writer.dropped))

    def root_is_called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The step began inside of a call of the model, whose own hooks are too late."""
        self._hooks.begin_within(module, args, kwargs)

    # --- modules ----------------------------------------------------------------------------------

    def module_called(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> None:
        """A call begins (called by the hooks)."""
        with self._pause():
            inputs = dict([*nesting.tensors(tuple(args)), *nesting.tensors(dict(kwargs))])
            is_root = not self._names.stack and running_number() is None
            if is_root:
                self._begin_rows(inputs)
            call = self._names.enter(path)
            call.autocast = autocast_dtype(self._device)
            kind: SourceKind = "input" if is_root else "other"
            if kind == "input":
                self._root(module, (*args, dict(kwargs)))
            found = {name: self._value(t, kind, name) for name, t in inputs.items()}
            self._inputs.append((call, self.operators.count, found))
            self._flush()

    def module_returned(self, module: nn.Module, path: str, outputs: dict[str, Tensor]) -> None:
        """A call is over (called by the hooks)."""
        with self._pause():
            call = self._names.leave()
            _, first, inputs = self._inputs.pop()
            found = {name: self._value(tensor) for name, tensor in outputs.items()}
            for name, tensor in outputs.items():
                self._adjoints.of_output(tensor, found[name])
            self._lines.append(
                ModuleCall(
                    path,
                    call.index,
                    type(module).__name__,
                    "forward" if call.node is None else "recompute",
                    first,
                    self.operators.count,
                    inputs,
                    found,
                    module.training,
                )
            )
            self._flush()

    def _root(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self._lines.append(
            RootCall(
                index=self._roots,
                training=module.training,
                autocast=autocast_dtype(self._device),
                gradients=torch.is_grad_enabled(),
                arguments=nesting.plain_values(given),
                generators=generator_digests(),
            )
        )
        self._roots += 1

    def _begin_rows(self, inputs: Mapping[str, Tensor]) -> None:
        first = next((tensor for tensor in inputs.values() if tensor.dim()), None)
        batch = None if first is None else self._sharding.batch(first.shape[0])
        if self._rows is not None and batch is not None:
            self._rows.begin(batch)

    # --- gradients and optimizers -----------------------------------------------------------------

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        """An optimizer begins its step (called by the hooks)."""
        with self._pause():
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._gradients(own)
            for parameter, slot, tensor in state_of(optimizer):
                name = self._model.full_name(parameter)
                if name is not None:
                    self._value(tensor, "state", f"{name}.{slot}")
            self._flush()
        self._names.enter_optimizer(type(optimizer).__name__)

    def optimizer_ends(self, optimizer: Optimizer) -> None:
        """It is over (called by the hooks)."""
        self._names.leave_optimizer()
        with self._pause():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._updated(parameter, "parameter", parameter)
            for parameter, slot, tensor in state_of(optimizer):
                self._updated(parameter, slot, tensor)
            self._flush()

    def _updated(self, parameter: Tensor, slot: str, tensor: Tensor) -> None:
        name = self._model.full_name(parameter)
        if name is not None:
            of = self._copy if slot == "parameter" else self._value
            self._lines.append(Update(name, slot, of(tensor)))

    def _gradients(self, own: Collection[int] | None = None) -> None:
        """Record gradients of parameters, each once: as the first optimizer to use them finds them.

        Args:
            own: The parameters' identities; all of the model's if None.
        """
        for name, parameter in self._model.root.named_parameters():
            is_asked = own is None or id(parameter) in own
            if not is_asked or name in self._graded or parameter.grad is None:
                continue
            if id(parameter) not in self._model.parameters:  # exchanged since the step began
                self._known[name] = self._copy(parameter, "parameter", name)
            self._graded.add(name)
            self._adjoints.add(self._known[name], parameter.grad, is_copy=True)

    # --- lines ------------------------------------------------------------------------------------

    def _value(self, tensor: Tensor, kind: SourceKind = "other", name: str = "") -> int:
        shard = self._sharding.of(tensor)
        return self._values.of(self._sharding.local(tensor), kind, name, is_read=False, shard=shard)

    def _copy(self, tensor: Tensor, kind: SourceKind = "other", name: str = "") -> int:
        """Of a parameter or its gradient, of which data-parallel processes have copies."""
        local, shard = self._sharding.local(tensor), self._sharding.of_copy(tensor)
        return self._values.of(local, kind, name, is_read=False, shard=shard, is_copy=True)

    def _flush(self) -> None:
        if self._lines:
            self._writer.add(*self._lines)
            self._lines.clear()
