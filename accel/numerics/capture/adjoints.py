"""The gradients of the loss with respect to what the forward computed, as the backward has them.

Tensor hooks on module outputs, and at level `full` hooks on autograd nodes: both are told a
gradient and change nothing. (Full backward hooks of modules insert nodes of their own into the
graph, which changes the order in which gradients are summed.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from accel.numerics.capture.naming import Names, Origin
from accel.numerics.capture.schemas import Schema
from accel.numerics.capture.sharding_wrappers import inner
from accel.numerics.capture.values import Values
from accel.numerics.storage.entries import Adjoint, Line, Operator, Ref


class Adjoints:
    """Records gradients of one step.

    Args:
        names: Knows what each autograd node is the backward of.
        values: Knows tensors.
        emit: Takes lines of the recording.
        pause: Makes a context in which nothing is recorded.
        value_of: The id of what a tensor holds, through wrappers.
        copy_of: The same of a parameter's gradient.
        everywhere: Whether to follow the graph from node to node, instead of module outputs only.
    """

    def __init__(
        self,
        names: Names,
        values: Values,
        emit: Callable[[Line], None],
        pause: Callable[[], AbstractContextManager[None]],
        value_of: Callable[[Tensor], int],
        copy_of: Callable[[Tensor], int],
        *,
        everywhere: bool,
    ) -> None:
        self._value_of, self._copy_of = value_of, copy_of
        self._names, self._values, self._emit, self._pause = names, values, emit, pause
        self._everywhere = everywhere
        self._followed: set[int] = set()
        self._seed: Operator | None = None  # an `ones_like` that a backward may begin with
        self._handles: list[RemovableHandle] = []
        self._is_active = True

    def close(self) -> None:
        """Hear no more; nothing stays on tensors that outlive the step."""
        self._is_active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def of_output(self, tensor: Tensor, value: int) -> None:
        """Watch for the gradient of a module's output that holds `value`."""
        if not tensor.requires_grad or not torch.is_grad_enabled():
            return

        def arrived(gradient: Tensor) -> None:
            if self._is_active:
                self.add(value, gradient)

        self._handles.append(tensor.register_hook(arrived))

    def add(self, of: int, gradient: Tensor, *, is_copy: bool = False) -> None:
        """A gradient is there; of a parameter, data-parallel processes have copies."""
        with self._pause():
            value = (self._copy_of if is_copy else self._value_of)(gradient)
            if self._values.is_kept(of):
                self._values.keep(value, inner(gradient))
            self._emit(Adjoint(of, value))

    def ran(self, schema: Schema, operator: Operator, origin: Origin | None) -> None:
        """An operator ran; if it belongs to an autograd node, follow the graph from there."""
        if origin is None:
            self._seed = operator if schema.name == "aten::ones_like" else None
            return
        if self._seed is not None:
            given = self._seed.arguments.get("self")
            if isinstance(given, Ref) and self._seed.outputs[0] is not None:
                self._emit(Adjoint(given.value, self._seed.outputs[0]))
            self._seed = None
        if self._everywhere:
            self._follow(torch._C._current_autograd_node())

    def _follow(self, node: Any) -> None:
        """Watch for the gradients that a node's successors will be given."""
        number = int(node._sequence_nr())
        if number in self._followed:
            return
        self._followed.add(number)
        for successor, _ in node.next_functions:
            if successor is not None and int(successor._sequence_nr()) < 2**63:
                self._watch(successor)

    def _watch(self, node: Any) -> None:
        number = int(node._sequence_nr())
        if -1 - number in self._followed:
            return
        self._followed.add(-1 - number)  # numbers from 0 are those followed, below are watched

        def reached(gradients: tuple[Tensor | None, ...]) -> None:
            if not self._is_active:
                return
            outputs = self._names.origin_of(node).outputs
            for value, gradient in zip(outputs, gradients, strict=False):
                if value is not None and gradient is not None:
                    self.add(value, gradient)
            self._follow(node)

        self._handles.append(node.register_prehook(reached))
