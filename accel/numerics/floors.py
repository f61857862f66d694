"""What is typical of the errors of a run: below it, no single reference error is believed.

Engines add up in different orders, and err coherently where they do, which neither the reference's
error nor shaking by independent noise shows; the more so, the more positions a parameter's gradient
sums over. In our benign runs (seven models, float32 and bf16; threads, oneDNN off, math attention,
channels-last) the largest such error was 6 units of float32, and 8 times the root of the number of
positions for a parameter's gradient; both in batch norm, channels-last. `_SUMMATION` units count as
typical, and budgets are twice that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from accel.numerics.entries import GRADIENT_PHASES, Phase
from accel.numerics.measures import Measured
from accel_kernels import budgets
from accel_kernels.budgets import Deviation

_SUMMATION = 4.0  # units of float32 (of float64 in a float64 run)
_SUMMATION_OVER_POSITIONS = 8.0  # the same for a parameter's gradient, per root of positions


class Floors:
    """The floors of one comparison.

    Args:
        everything: All measured tensors.
    """

    def __init__(self, everything: Sequence[Measured]) -> None:
        self._typical = {
            backward: budgets.typical(
                one.error_reference
                for one in everything
                if one.error_reference is not None and _is_backward(one.key.phase) == backward
            )
            for backward in (False, True)
        }
        self._outputs: Counter[str] = Counter()
        self._steps: Counter[str] = Counter()
        for one in everything:
            if one.key.phase == "gradient":
                self._outputs[one.key.module] += math.prod(one.reference.shape)
            elif one.key.phase == "parameter_gradient":
                self._steps[one.key.module] = max(self._steps[one.key.module], one.key.call + 1)

    def of(self, one: Measured, dtype: torch.dtype) -> Deviation:
        """The floor of one tensor that was computed in `dtype`."""
        units = _SUMMATION
        if one.key.phase == "parameter_gradient":
            units = _SUMMATION_OVER_POSITIONS * math.sqrt(self._positions(one))
        # Coarser dtypes accumulate in float32.
        least = units * min(map(budgets.unit_roundoff, (torch.float32, dtype)))
        typical = self._typical[_is_backward(one.key.phase)]
        return Deviation(max(typical.rms, least), max(typical.worst, least))

    def _positions(self, one: Measured) -> float:
        """Over how many positions the gradient of a parameter `[C, ...]` sums in one step."""
        shape = one.reference.shape
        channels = max(shape[0], 1) if shape else 1
        steps = max(self._steps[one.key.module], 1)
        return max(1.0, self._outputs[one.key.module] / channels / steps)


def _is_backward(phase: Phase) -> bool:
    return phase in GRADIENT_PHASES
