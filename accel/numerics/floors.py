"""What is typical of the errors of a run: below it, no single reference error is believed.

Engines add up in different orders, and err coherently where they do, which neither the reference's
error nor shaking by independent noise shows. What sums over all positions (the statistics of a
batch norm, every parameter's gradient) errs the more, the more positions there are. In our benign
runs (seven models, eight seeds, float32 and bf16; threads, oneDNN off, math attention,
channels-last) the largest such errors, in units of float32 per root of the number of positions,
were 0.43 for values and 8 for parameters' gradients, both of batch norm in channels-last. Twice
that, since budgets are twice the floor, is what another order may cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from accel.numerics.entries import GRADIENT_PHASES, Phase
from accel.numerics.measures import Measured
from accel.numerics.reader import Recording
from accel_kernels import budgets
from accel_kernels.budgets import Deviation

_SUMMATION = 4.0  # units of float32 (of float64 in a float64 run), where there are few positions
_PER_ROOT = 0.5  # the same per root of positions, for values and their gradients
_PER_ROOT_OF_PARAMETERS = 8.0  # and for parameters' gradients


class Floors:
    """The floors of one comparison.

    Args:
        everything: All measured tensors.
        reference: The recording that is believed.
    """

    def __init__(self, everything: Sequence[Measured], reference: Recording) -> None:
        self._typical = {
            backward: budgets.typical(
                one.error_reference
                for one in everything
                if one.error_reference is not None and _is_backward(one.key.phase) == backward
            )
            for backward in (False, True)
        }
        self._positions = _positions(reference)
        self._most = max(self._positions.values(), default=1.0)

    def of(self, one: Measured, dtype: torch.dtype) -> Deviation:
        """The floor of one tensor that was computed in `dtype`."""
        # An error goes on to what comes after, so the module with most positions counts for all.
        units = max(_SUMMATION, _PER_ROOT * math.sqrt(self._most))
        if one.key.phase == "parameter_gradient":
            units = _PER_ROOT_OF_PARAMETERS * math.sqrt(self._positions.get(one.key.module, 1.0))
        # Coarser dtypes accumulate in float32.
        least = units * min(map(budgets.unit_roundoff, (torch.float32, dtype)))
        typical = self._typical[_is_backward(one.key.phase)]
        return Deviation(max(typical.rms, least), max(typical.worst, least))


def _positions(recording: Recording) -> dict[str, float]:
    """Over how many positions each module's parameters `[C, ...]` act in one step."""
    outputs: Counter[str] = Counter()
    channels: dict[str, int] = {}
    steps = 0
    for key, entry in recording.entries.items():
        if key.phase == "forward":
            outputs[key.module] += math.prod(entry.shape)
        elif key.phase == "parameter":
            channels[key.module] = max([channels.get(key.module, 1), *entry.shape[:1]])
        elif key.phase == "parameter_gradient":
            steps = max(steps, key.call + 1)
    steps = steps or max(1, len(recording.calls))
    return {module: max(1.0, outputs[module] / size / steps) for module, size in channels.items()}


def _is_backward(phase: Phase) -> bool:
    return phase in GRADIENT_PHASES
