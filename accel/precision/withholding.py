"""What a controller says against the steps of a backward, and when the host tells it of a leap."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from accel.precision.controller import Controller
from accel.precision.gradients import WITHHELD
from accel.precision.outcome import StepOutcome


class Withholding:
    """Between the checks of a step and a controller; without one it does nothing.

    Args:
        controller: Asked once for each backward, whatever the number of optimizers.
    """

    def __init__(self, controller: Controller | None) -> None:
        self._controller = controller
        self._doubt: Tensor | None = None
        # Outcomes that the controller has not heard of, and whether one before them was a leap.
        self._untold: deque[StepOutcome] = deque()
        self._leapt = False

    @property
    def operands(self) -> list[str]:
        """What a step can be withheld for, by the places that codes speak of."""
        return [] if self._controller is None else [str(one) for one in self._controller.operands]

    def begin(self) -> None:
        """Forget the last backward."""
        self._doubt = None

    def doubted(self, code: Tensor) -> Tensor:
        """A step's code, or that of the operand for which the controller withholds it."""
        if self._controller is None:
            return code
        if self._doubt is None:
            self._doubt = WITHHELD + self._controller.doubt()
        return torch.minimum(code, self._doubt.to(code.device))

    def after_step(self, outcome: StepOutcome, taken: Tensor, known: bool) -> None:
        """Close the controller's step.

        Args:
            outcome: Of the step.
            taken: Bool `[]`, whether it was taken.
            known: The host knows that already; else it asks for the outcome of the step before,
                which does not hold up the device.
        """
        if self._controller is None:
            return
        self._untold.append(outcome)
        while len(self._untold) > (0 if known else 1):
            self._leapt |= _is_leap(self._untold.popleft())
        if self._leapt:
            self._controller.alarm()
        self._leapt = False
        self._controller.after_step(skipped=lambda: _is_overflow(outcome), taken=taken)

    def state(self) -> bool:
        """Whether the controller is still to hear of a leap; waits for the device."""
        return self._leapt or any(map(_is_leap, self._untold))

    def load(self, leapt: bool) -> None:
        """Restore what `state` returned."""
        self._leapt, self._doubt = leapt, None
        self._untold.clear()


def _is_leap(outcome: StepOutcome) -> bool:
    return outcome.skipped is not None and outcome.skipped.value == "leap"


def _is_overflow(outcome: StepOutcome) -> bool:
    return outcome.skipped is not None and not outcome.skipped.is_withheld
