"""The few limits that separate a right kernel from a wrong one; none is chosen per operator.

They come from a population of right kernels (`benchmarks/replay_population.py`, its results in
`benchmarks/results/replay_population.json`): operators of seven models and single calls, forward,
backward and optimizer, in float32, bfloat16 autocast, bfloat16 and float16, with one and two
threads, with and without oneDNN, sums of up to 8,192 products. In it R stayed below 14 and M below
29 in float32; of 16-bit outputs an error that rounding cannot explain stayed below 46 units of
float32 noise, and fewer elements were misrounded than 3 times what that noise explains, or 10.
Kernels that were further off are listed by name in `known`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from accel.numerics.replaying.yardstick import SIXTEEN_BIT, Measured

MOST_R, MOST_M = 15.0, 30.0  # of computing in float32 (or float64)
MOST_R_16, MOST_M_16 = 1.6, 4.0  # of rounding to 16 bits, or of computing in 16 bits
MOST_EXCESS = 60.0  # M of a 16-bit output before it was rounded
_MISROUNDED = 2e-4
_TIMES_EXPECTED = 3.0
_FEW_MISROUNDED = 10  # elements, which no share can be made of
_MOST_DRIFT = 8.0  # standard deviations
_LEAST_DRIFT = 2.0**-14  # relative


class Limit(NamedTuple):
    """One rule that a result is held to.

    Attributes:
        field: The measure, by the name of its limit in `Judged`.
        words: The same in words.
        value: What was measured.
        most: The limit.
    """

    field: Literal["limit_R", "limit_M", "limit_excess", "limit_misrounding"]
    words: str
    value: float
    most: float


def why_out(found: Measured, strict: bool = True) -> str | None:
    """Why a result is out of the limits, in words; None if it is within.

    Args:
        found: The result.
        strict: Whether it was computed wider than 16 bits, whatever it was rounded to.
    """
    if found.nonfinite:
        return f"{found.nonfinite} elements are NaN or infinite where the truth is not, or reverse"
    for rule in rules(found, strict):
        if not rule.value <= rule.most:
            return f"{rule.words} is {rule.value:.3g} and not at most {rule.most:.3g}"
    return None


def badness(found: Measured, strict: bool = True) -> float:
    """How near a result is to its limits: 1 is at one."""
    if found.nonfinite:
        return math.inf
    return max(rule.value / rule.most for rule in rules(found, strict))


def rules(found: Measured, strict: bool = True) -> list[Limit]:
    """The limits that a result is held to; arguments as of `why_out`."""
    if not strict:
        return [
            Limit("limit_R", "R", found.rms, MOST_R_16),
            Limit("limit_M", "M", found.worst, MOST_M_16),
        ]
    if found.dtype not in SIXTEEN_BIT:
        return [
            Limit("limit_R", "R", found.rms, MOST_R),
            Limit("limit_M", "M", found.worst, MOST_M),
        ]
    # What rounding explains is held to the limit of rounding, the rest to that of computing.
    most = math.sqrt(found.rounding * MOST_R_16**2 + (1.0 - found.rounding) * MOST_R**2)
    few = _FEW_MISROUNDED / max(1, found.count)
    share = _MISROUNDED + _TIMES_EXPECTED * found.expected + few
    return [
        Limit("limit_R", "R", found.rms, most),
        Limit("limit_excess", "M before rounding", found.excess, MOST_EXCESS),
        Limit("limit_misrounding", "the share of misrounded elements", found.misrounding, share),
    ]


def drifts(found: Measured, unit: float) -> bool:
    """Whether a part of the error is in proportion to the truth, which no rounding makes."""
    is_large = abs(found.drift) * unit > _LEAST_DRIFT
    return is_large and abs(found.drift) > _MOST_DRIFT * found.drift_spread
