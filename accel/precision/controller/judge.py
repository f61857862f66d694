"""How bad a format is for a tensor, and why, in words."""

from __future__ import annotations

import math

from accel.precision.controller.config import ControllerConfig
from accel.precision.controller.ladder import Rung
from accel.precision.controller.statistics import OperandStatistics

_RANGE = 0.01  # share of underflow from which lost range, not rounding, explains an error


def severity(
    found: OperandStatistics, rung: Rung, config: ControllerConfig, *, back: bool = False
) -> float:
    """How many times the worst of the measurements is over its limit; above 1 the format fails.

    Args:
        found: What was measured of the tensor in that format.
        rung: The format.
        config: The limits.
        back: Whether to take the stricter limits of a way back.

    Returns:
        Infinite for an eight-bit format of a tensor with non-finite values: saturation hides an
        infinity from every later check, or it becomes NaN (E4M3 has no infinity). Wider formats
        pass it on as it is, and no format mends it: there it does not count.
    """
    if not rung.is_fp8:
        return found.error / config.wide_error
    if found.nonfinite > 0:
        return math.inf
    times = config.demote if back else config.promote
    under = config.demote_underflow if back else config.promote_underflow
    over = config.demote_overflow if back else config.promote_overflow
    return max(found.error / (times * rung.floor), found.underflow / under, found.overflow / over)


def is_severe(found: OperandStatistics, rung: Rung, config: ControllerConfig) -> bool:
    """Whether a step with the tensor in that format teaches weights noise.

    Only by the error: values that vanish or saturate without much of one are small or few, and
    what is not finite is the loss scale's affair.
    """
    return rung.is_fp8 and found.error > config.withhold * config.promote * rung.floor


def complaint(found: OperandStatistics, rung: Rung, config: ControllerConfig) -> str:
    """What is wrong with a tensor in a format that fails, with the numbers."""
    if rung.is_fp8 and found.nonfinite > 0:
        return f"{found.nonfinite:.0f} non-finite values, which {rung.name} cannot pass on"
    said = []
    limit = config.promote * rung.floor if rung.is_fp8 else config.wide_error
    if found.error > limit:
        said.append(f"relative error {percent(found.error)}, limit {percent(limit)}")
    if found.overflow > config.promote_overflow:
        limit = config.promote_overflow
        said.append(f"{percent(found.overflow)} beyond the scale, limit {percent(limit)}")
    if found.underflow > config.promote_underflow:
        limit = config.promote_underflow
        said.append(f"{percent(found.underflow)} vanish, limit {percent(limit)}")
    elif found.underflow > _RANGE:
        said.append(f"{percent(found.underflow)} vanish: the range is too wide for it")
    return "; ".join(said)


def state_of(found: OperandStatistics) -> str:
    """The measurements of a tensor in a format that passes."""
    return f"relative error {percent(found.error)}, {percent(found.underflow)} vanish"


def percent(share: float) -> str:
    """A share for people, with three digits."""
    return f"{100.0 * share:.3g} %"
