"""Whether steps were taken and why not, told when it is known and not waited for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.precision.gradients import CLEAN, SATURATED, WITHHELD

_logger = logging.getLogger("accel")
_WITHHELD = ("leap", "error")  # by the code's last bit


@dataclass(frozen=True)
class SkippedStep:
    """Why a step was not taken.

    Attributes:
        step: Number of `Precision.step` calls before it.
        parameter: The first whose gradient is not finite, in the model's order; `the loss` if
            `Precision.backward` was given one that is not; `?` for one that is not the model's, or
            where a chip that saturates told of an overflow, but not where. Where the controller
            withheld the step, the operand that spoilt it, such as `blocks.0.qkv/input`.
        value: `nan` or `inf`, whichever that gradient holds; `overflow` where the chip told; of an
            operand `leap` if its magnitude is far beyond the usual, and `error` if its format was
            measured to lose its values.
        loss_scale: What the loss had been multiplied by.
    """

    step: int
    parameter: str
    value: str
    loss_scale: float

    @property
    def is_withheld(self) -> bool:
        """Whether the gradients were finite, and the controller withheld the step."""
        return self.value in _WITHHELD

    def __str__(self) -> str:
        if self.value == "leap":
            cause = f"{self.parameter} is far beyond its usual magnitude; it is measured next"
        elif self.value == "error":
            cause = f"{self.parameter} loses its values in its format"
        elif self.value == "overflow":
            cause = "the device reports an overflow in this backward"
        elif self.parameter == "the loss":
            cause = f"the loss is {self.value}"
        else:
            cause = f"the gradient of {self.parameter} holds {self.value}"
        return f"step {self.step} skipped: {cause} (loss scale {self.loss_scale:g})"


class StepOutcome:
    """Whether a step was taken: `bool()` of it, which waits for the device if it must.

    A skipped step is logged once, when it is known to be one.

    Args:
        step: Its number.
        code: int64 `[]`, as `Measured.code`.
        scale: What the loss had been multiplied by.
        names: Of the parameters, by their places in the model.
        operands: Of the controller's operands, by their places among them.
        known: Whether the code is to be read at once.
    """

    def __init__(
        self,
        step: int,
        code: Tensor,
        scale: float | Tensor,
        names: list[str],
        operands: list[str],
        known: bool,
    ) -> None:
        self._step, self._names, self._operands = step, names, operands
        self._skipped: SkippedStep | None = None
        self._copy: tuple[Tensor, Tensor] | None = None
        self._event: torch.Event | None = None
        scale = scale if isinstance(scale, Tensor) else torch.tensor(scale, device="cpu")
        if known or code.device.type == "cpu":
            self._settle(int(code), scale)
            return
        # The copy goes to page-locked memory behind the step's own work; nobody waits for it.
        pinned = torch.empty((), dtype=code.dtype, device="cpu", pin_memory=True)
        self._copy = (pinned.copy_(code, non_blocking=True), scale)
        self._event = torch.Event(code.device)
        self._event.record()

    @property
    def is_known(self) -> bool:
        """Whether asking does not wait."""
        return self._copy is None or (self._event is not None and self._event.query())

    @property
    def skipped(self) -> SkippedStep | None:
        """Why it was skipped; None if it was taken."""
        if self._copy is not None and self._event is not None:
            code, scale = self._copy
            self._event.synchronize()
            self._copy = None
            self._settle(int(code), scale)
        return self._skipped

    def __bool__(self) -> bool:
        return self.skipped is None

    def __repr__(self) -> str:
        if not self.is_known:
            return f"<step {self._step}, still running>"
        return f"<{self.skipped or f'step {self._step} taken'}>"

    def _settle(self, code: int, scale: Tensor) -> None:
        if code == CLEAN:
            return
        if code >= WITHHELD:
            place, is_error = divmod(code - WITHHELD, 2)
            name, value = self._operands[place], _WITHHELD[is_error]
        elif code == SATURATED:
            name, value = "?", "overflow"
        else:
            place, is_nan = divmod(code, 2)
            name = "the loss" if place < 0 else ([*self._names, "?"])[min(place, len(self._names))]
            value = "nan" if is_nan else "inf"
        self._skipped = SkippedStep(self._step, name, value, float(scale))
        _logger.warning("%s", self._skipped)
