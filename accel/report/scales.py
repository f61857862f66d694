"""Linear and logarithmic axes over numbers: where values lie, and round ticks."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_MOST = 308  # decades of a float
_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Scale:
    """Numbers to px.

    Attributes:
        low: The number at `start`.
        high: The number at `stop`.
        start: In px.
        stop: In px; below `start` for an axis that points upwards.
        is_log: Whether decades are of one length.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def px(self, value: float) -> float:
        """Where a finite value lies; positive, on a logarithmic scale."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        # Halves, since the difference of two floats can overflow.
        share = (at / 2 - low / 2) / (high / 2 - low / 2)
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round numbers inside the scale, ascending."""
        if self.is_log:
            low, high = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, math.ceil((high - low + 1) / most))
            return [10.0**decade for decade in range(low, high + 1, every)]
        step = _round_step((self.high / most - self.low / most) or 1.0)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [index * step for index in range(first, last + 1)]


def scale_of(values: Sequence[float], start: float, stop: float, *, is_log: bool = False) -> Scale:
    """The scale that holds `values`: to the next round tick, or in whole decades.

    Args:
        values: Those that are not finite (or on a logarithmic scale not positive) are not looked
            at.
        start: See `Scale`.
        stop: See `Scale`.
        is_log: See `Scale`.
    """
    kept = [v for v in values if math.isfinite(v) and (v > 0 or not is_log)]
    if is_log:
        first = math.floor(math.log10(min(kept))) if kept else -1
        last = math.ceil(math.log10(max(kept))) if kept else 0
        first = min(max(first, -_MOST + 1), _MOST - 1)
        return Scale(10.0**first, 10.0 ** min(max(last, first + 1), _MOST), start, stop, True)
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    if low == high:
        room = abs(low) / 2 or 0.5
        low, high = low - room, high + room
    step = _round_step(high / 6 - low / 6)
    ends = math.floor(low / step) * step, math.ceil(high / step) * step
    low, high = (min(max(end, -_LARGEST), _LARGEST) for end in ends)
    return Scale(low, high, start, stop)


def tick_text(value: float) -> str:
    """A tick's number: short, and without an exponent where that is readable."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:.6g}"


def _round_step(least: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    least = max(least, 1e-300)
    scale = 10.0 ** math.floor(math.log10(least))
    return next((n * scale for n in (1, 2, 5) if n * scale >= least * (1 - 1e-9)), 10 * scale)
