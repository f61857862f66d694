"""Loss scales: what a loss is multiplied by so that float16 gradients do not vanish.

Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, section 3.2. The scale is a power
of two times its first value, so scaling and unscaling round nothing but what under- or overflows.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any


class LossScale(abc.ABC):
    """A factor for the loss, adjusted after every step."""

    @property
    @abc.abstractmethod
    def value(self) -> float:
        """The factor now."""

    @abc.abstractmethod
    def adjust(self, *, finite: bool) -> None:
        """Learn whether all gradients of a step were finite."""

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

    @property
    def value(self) -> float:
        """Always 1."""
        return 1.0

    def adjust(self, *, finite: bool) -> None:
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

    def __init__(
        self,
        initial: float = 65536.0,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        minimum: float = 1.0,
    ) -> None:
        if not (math.isfinite(initial) and initial >= minimum > 0.0):
            raise ValueError(
                f"need 0 < minimum <= initial < infinity, not minimum={minimum}, initial={initial}"
            )
        if not growth_factor > 1.0 or not 0.0 < backoff_factor < 1.0 or not growth_interval >= 1:
            raise ValueError(
                "need growth_factor > 1, 0 < backoff_factor < 1 and growth_interval >= 1, not "
                f"{growth_factor}, {backoff_factor}, {growth_interval}"
            )
        self._value = float(initial)
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor
        self._growth_interval = growth_interval
        self._minimum = minimum
        self._steps_since_overflow = 0

    @property
    def value(self) -> float:
        """The factor now."""
        return self._value

    def adjust(self, *, finite: bool) -> None:
        """Back off after an overflow; grow after `growth_interval` steps without one."""
        if not finite:
            self._value = max(self._value * self._backoff_factor, self._minimum)
            self._steps_since_overflow = 0
            return
        self._steps_since_overflow += 1
        grown = self._value * self._growth_factor
        if self._steps_since_overflow >= self._growth_interval and math.isfinite(grown):
            self._value = grown
            self._steps_since_overflow = 0

    def state_dict(self) -> dict[str, Any]:
        """The value and the steps since the last overflow or growth."""
        return {"value": self._value, "steps_since_overflow": self._steps_since_overflow}

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
        self._value, self._steps_since_overflow = float(value), steps
