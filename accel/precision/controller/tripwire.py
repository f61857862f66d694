"""Between readings: whether a tensor's magnitude leaps, looked at in every step, on the device.

A leap is the fault that spoils a step at once: what a scale for the largest value leaves to the
others shrinks by as much. What it takes is known anyway, since scales follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, distributed

from accel.precision.controller.decision import Operand
from accel.precision.controller.ranks import are_several
from accel.precision.operand import ROLES, Role

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# What was usual is forgotten by half within 69 steps.
_KEPT = 0.99


class Guarded(Protocol):
    """What a layer keeps of magnitudes; `accel.precision.fp8.LinearState` does.

    Attributes:
        guarded: Whether it does; the tripwire sets it.
        pending: The largest finite magnitude of each operand in this step, float32 `[]`.
        history: Not empty where delayed scaling closes the step of `pending`.
    """

    guarded: bool
    pending: dict[Role, Tensor]
    history: dict[Role, Tensor]


class Tripwire:
    """Compares the largest magnitude of inputs and gradients with what it was lately.

    Args:
        layers: By qualified name.
        operands: What is controlled; weights, which no step can change much, are passed over.
        leap: From how many times the usual on it is one.
        group: Ranks whose largest counts; None: all.

    Attributes:
        operands: Those watched, in order.
    """

    def __init__(
        self,
        layers: Mapping[str, Guarded],
        operands: Sequence[Operand],
        leap: float,
        group: ProcessGroup | None,
    ) -> None:
        self.operands = tuple(one for one in operands if one.role != "weight")
        self._leap, self._group = leap, group
        self._layers = [layers[one.module] for one in self.operands]
        self._roles = [next(role for role in ROLES if role == one.role) for one in self.operands]
        for layer in self._layers:
            layer.guarded = True
        # Zero: not known.
        self._usual = torch.zeros(len(self.operands), device="cpu")
        self._now = self._peak = self._usual

    @torch.no_grad()
    def leapt(self, judged: Sequence[bool]) -> Tensor:
        """Which operands leapt in this step, bool `[operands]`; the host does not wait.

        Args:
            judged: Of each, whether a leap counts.
        """
        if not self.operands:
            return torch.zeros(0, dtype=torch.bool, device="cpu")
        pending = self._pending()
        self._now = torch.stack([one.to(pending[0].device) for one in pending])
        if are_several(self._group):
            distributed.all_reduce(self._now, distributed.ReduceOp.MAX, group=self._group)
        self._usual = self._usual.to(self._now.device)
        self._peak = self._peak.to(self._now.device)
        asked = torch.tensor(list(judged), device=self._now.device)
        found = asked & (self._usual > 0.0) & (self._now > self._leap * self._usual)
        self._peak = torch.where(found, torch.maximum(self._peak, self._now), self._peak)
        return found

    @torch.no_grad()
    def learn(self, taken: Tensor) -> None:
        """Close the step: if it was taken, bool `[]`, its magnitudes enter what is usual."""
        if not self.operands:
            return
        learnt = torch.maximum(self._now, self._usual * _KEPT)
        self._usual = torch.where(taken.to(learnt.device), learnt, self._usual)
        pairs = zip(self._layers, self._roles, strict=True)
        ours = [one.pending[role] for one, role in pairs if not one.history[role].numel()]
        if ours:
            torch._foreach_zero_(ours)

    def accept(self) -> None:
        """What leapt is measured next, and usual from now on: no tensor leaps twice to there."""
        self._usual = torch.maximum(self._usual, self._peak)
        self._peak = torch.zeros_like(self._usual)

    def forget(self, operand: Operand) -> None:
        """It is in another format now: what was usual before says nothing."""
        if operand in self.operands:
            self._usual[self.operands.index(operand)] = 0.0

    def state_dict(self) -> dict[str, list[float]]:
        """What is usual for each operand, and to what it leapt; waits for the device."""
        pairs = torch.stack([self._usual, self._peak], -1).tolist()
        return dict(zip(map(str, self.operands), pairs, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: It is not that, or of other operands.
        """
        names = [str(one) for one in self.operands]
        good = isinstance(state, Mapping) and set(state) == set(names)
        if not good or not all(_is_pair(state[name]) for name in names):
            raise ValueError(
                "the checkpoint's usual magnitudes are not those of this model's operands: load "
                "it into the same model with the same policy"
            )
        loaded = torch.tensor([state[name] for name in names], device="cpu").view(-1, 2)
        self._usual, self._peak = loaded.unbind(-1)

    def _pending(self) -> list[Tensor]:
        pairs = zip(self._layers, self._roles, strict=True)
        return [layer.pending[role] for layer, role in pairs]


def _is_pair(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(isinstance(one, float) and one >= 0.0 for one in value)
