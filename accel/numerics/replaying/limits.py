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

from accel.numerics.replaying.yardstick import SIXTEEN_BIT, Measured

MOST_R, MOST_M = 15.0, 30.0  # of computing in float32 (or float64)
MOST_R_16, MOST_M_16 = 1.6, 4.0  # of rounding to 16 bits, or of computing in 16 bits
MOST_EXCESS = 60.0  # M of a 16-bit output before it was rounded
_MISROUNDED = 2e-4
_TIMES_EXPECTED = 3.0
_FEW_MISROUNDED = 10  # elements, which no share can be made of
_MOST_DRIFT = 8.0  # standard deviations
_LEAST_DRIFT = 2.0**-14  # relative


def why_out(found: Measured, strict: bool = True) -> str | None:
    """Why a result is out of the limits, in words; None if it is within.

    Args:
        found: The result.
        strict: Whether it was computed wider than 16 bits, whatever it was rounded to.
    """
    if found.nonfinite:
        return f"{found.nonfinite} elements are NaN or infinite where the truth is not, or reverse"
    for name, value, most in _rules(found, strict):
        if not value <= most:
            return f"{name} is {value:.3g} and not at most {most:.3g}"
    return None


def badness(found: Measured, strict: bool = True) -> float:
    """How near a result is to its limits: 1 is at one."""
    if found.nonfinite:
        return math.inf
    return max(value / most for _, value, most in _rules(found, strict))


def _rules(found: Measured, strict: bool) -> list[tuple[str, float, float]]:
    """What is measured of a result, in words, how much it is and may be."""
    if not strict:
        return [("R", found.rms, MOST_R_16), ("M", found.worst, MOST_M_16)]
    if found.dtype not in SIXTEEN_BIT:
        return [("R", found.rms, MOST_R), ("M", found.worst, MOST_M)]
    # What rounding explains is held to the limit of rounding, the rest to that of computing.
    most = math.sqrt(found.rounding * MOST_R_16**2 + (1.0 - found.rounding) * MOST_R**2)
    few = _FEW_MISROUNDED / max(1, found.count)
    return [
        ("R", found.rms, most),
        ("M before rounding", found.excess, MOST_EXCESS),
        ("the share of misrounded elements", found.misrounding,
         _MISROUNDED + _TIMES_EXPECTED * found.expected + few),
    ]  # fmt: skip


def drifts(found: Measured, unit: float) -> bool:
    """Whether a part of the error is in proportion to the truth, which no rounding makes."""
    is_large = abs(found.drift) * unit > _LEAST_DRIFT
    return is_large and abs(found.drift) > _MOST_DRIFT * found.drift_spread
