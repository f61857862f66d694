"""Loss scales: what a loss is multiplied by so that float16 gradients do not vanish.

Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, section 3.2. The scale is a power
of two times its first value, so scaling and unscaling round nothing but what under- or overflows.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossScale(abc.ABC):
    """A factor for the loss, adjusted after every step.

    Attributes:
        on_device: Whether `adjust` takes a tensor, and `factor` gives one, so that the host need
            not know; else it is asked with a bool, for which the host waits.
    """

    on_device: bool = False

    @property
    @abc.abstractmethod
    def value(self) -> float:
        """The factor now; waits for the device if it is there."""

    @property
    def factor(self) -> float | Tensor:
        """The factor now, where it is."""
        return self.value

    @abc.abstractmethod
    def adjust(self, *, finite: bool | Tensor) -> None:
        """Learn whether all gradients of a step were finite: a bool, or one of any device."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; plain values."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: It is not that.
        """


class NoLossScale(LossScale):
    """The factor 1, for dtypes with float32's range."""

    on_device = True

    @property
    def value(self) -> float:
        """Always 1."""
        return 1.0

    def adjust(self, *, finite: bool | Tensor) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accepts only what `state_dict` returns, which is empty."""
        if state:
            raise ValueError(f"this run has no loss scale, but the checkpoint has one: {state}")


class DynamicLossScale(LossScale):
    """Halve on overflow, double after a while without one.

    It lives where the gradients are, so that a step needs no word from the host.

    Args:
        initial: First value.
        growth_factor: Factor after `growth_interval` steps without overflow.
        backoff_factor: Factor after an overflow.
        growth_interval: Steps.
        minimum: Never below this: a scale that falls to zero, as torch's own scaler lets it, hides
            a diverged model behind steps that are skipped for ever.

    Raises:
        ValueError: An argument is out of its range.
    """

    on_device = True

    def __init__(
        self,
        initial: float = 65536.0,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        minimum: float = 1.0,
    ) -> None:
        largest = torch.finfo(torch.float32).max
        if not (initial <= largest and initial >= minimum > 0.0):
            raise ValueError(
                "need 0 < minimum <= initial, which is finite in float32, not "
                f"minimum={minimum}, initial={initial}"
            )
        if not growth_factor > 1.0 or not 0.0 < backoff_factor < 1.0 or not growth_interval >= 1:
            raise ValueError(
                "need growth_factor > 1, 0 < backoff_factor < 1 and growth_interval >= 1, not "
                f"{growth_factor}, {backoff_factor}, {growth_interval}"
            )
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor
        self._growth_interval = growth_interval
        self._minimum = minimum
        self._value = torch.tensor(float(initial), dtype=torch.float32, device="cpu")
        self._steps_since_overflow = torch.tensor(0, device="cpu")

    @property
    def value(self) -> float:
        """The factor now."""
        return float(self._value)

    @property
    def factor(self) -> Tensor:
        """The factor now, float32 `[]`."""
        return self._value

    def adjust(self, *, finite: bool | Tensor) -> None:
        """Back off after an overflow; grow after `growth_interval` steps without one."""
        if not isinstance(finite, Tensor):
            finite = torch.tensor(finite, device=self._value.device)
        value, steps = self._value.to(finite.device), self._steps_since_overflow.to(finite.device)
        grown = value * self._growth_factor
        grows = finite & (steps + 1 >= self._growth_interval) & grown.isfinite()
        shrunk = (value * self._backoff_factor).clamp(min=self._minimum)
        self._value = torch.where(finite, torch.where(grows, grown, value), shrunk)
        self._steps_since_overflow = torch.where(finite & ~grows, steps + 1, 0)

    def state_dict(self) -> dict[str, Any]:
        """The value and the steps since the last overflow or growth."""
        return {
            "value": float(self._value),
            "steps_since_overflow": int(self._steps_since_overflow),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore value and counter."""
        if set(state) != {"value", "steps_since_overflow"}:
            raise ValueError(
                "a dynamic loss scale is saved as value and steps_since_overflow, but the "
                f"checkpoint has {sorted(state)}"
            )
        value, steps = state["value"], state["steps_since_overflow"]
        numbers = isinstance(value, (int, float)) and isinstance(steps, int)
        if not (numbers and math.isfinite(value) and value >= self._minimum and steps >= 0):
            raise ValueError(f"the checkpoint's loss scale is not valid: {dict(state)}")
        self._value = torch.tensor(value, dtype=torch.float32, device=self._value.device)
        self._steps_since_overflow = torch.tensor(steps, device=self._value.device)
