"""The steps of optimizers, and what they leave in parameters and state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle


class OptimizerHooks:
    """Tells when any optimizer that holds a parameter of the model begins and ends its step.

    Args:
        is_ours: Whether a tensor is a parameter of the model now.
        begins: Called before a step.
        ends: Called after it.
    """

    def __init__(
        self,
        is_ours: Callable[[Tensor], bool],
        begins: Callable[[Optimizer], None],
        ends: Callable[[Optimizer], None],
    ) -> None:
        self._is_ours, self._begins, self._ends = is_ours, begins, ends
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin to watch."""
        self._handles = [
            register_optimizer_step_pre_hook(lambda o, *_: self._if_ours(o, self._begins)),
            register_optimizer_step_post_hook(lambda o, *_: self._if_ours(o, self._ends)),
        ]

    def detach(self) -> None:
        """Stop."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _if_ours(self, optimizer: Optimizer, then: Callable[[Optimizer], None]) -> None:
        if any(self._is_ours(p) for group in optimizer.param_groups for p in group["params"]):
            then(optimizer)


def state_of(optimizer: Optimizer) -> Iterator[tuple[Tensor, str, Tensor]]:
    """Parameter, slot and tensor of each piece of an optimizer's state (`exp_avg`, `step`, …)."""
    for parameter, state in optimizer.state.items():
        slots: dict[str, Any] = state if isinstance(state, dict) else {}
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                yield parameter, slot, value
