"""Error budgets: how far from float64 a result may be, derived and not guessed.

The rule (DESIGN, section 5): a result may be at most `FACTOR` times as far from the float64 truth
as an independent implementation in the same dtype is, plus the rounding of the output itself.
It is for a kernel that has an independent implementation to be measured against; an operator
without one is judged by its own float64 replay (`accel.numerics.replay`).

"As far" means the root mean square of the error. It is stable: in 8,800 right results (attention
outputs and gradients by three kernels, float32 and bfloat16, 100 seeds; measured by
`benchmarks/budget_population.py`) it stayed below 1.5 times that of the plain formula. The largest
error of a tensor is not: a single cancellation decides it, and in the same population it reached
3.2 times the plain formula's. It is therefore held to `WORST_FACTOR`, a coarse limit that finds
single corrupted elements.

An independent error is also one draw of a random quantity, and on a tensor of few elements it can
be tiny by luck. So a budget takes a `floor`: the typical error of its peers in the same run (see
`typical`), below which a single reference error is not believed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
WORST_FACTOR = 8.0
_WORST_RATIO = WORST_FACTOR / FACTOR


@dataclass(frozen=True)
class Deviation:
    """How far a tensor is from its float64 truth.

    Attributes:
        rms: Root mean square of the error over the root mean square of the truth.
        worst: Largest absolute error over the largest absolute value of the truth.
        nonfinite: Elements that are NaN or infinite where the truth is not, or the reverse, or
            infinite with the other sign. They are left out of `rms` and `worst`.
    """

    rms: float
    worst: float
    nonfinite: int = 0


@dataclass(frozen=True)
class Budget:
    """The largest `Deviation.rms` and `Deviation.worst` that are still in order.

    Raises:
        ValueError: One is negative or NaN, which every error or none would exceed.
    """

    rms: float
    worst: float

    def __post_init__(self) -> None:
        if not (self.rms >= 0.0 and self.worst >= 0.0):
            raise ValueError(f"a budget must be at least 0, not rms={self.rms}, worst={self.worst}")

    def exceeded_by(self, deviation: Deviation) -> str | None:
        """Why `deviation` is out of this budget, in words; None if it is within."""
        if deviation.nonfinite:
            return f"{deviation.nonfinite} elements are NaN or infinite where the truth is not"
        if deviation.rms > self.rms:
            return f"rms error {deviation.rms:.3g} exceeds its budget {self.rms:.3g}"
        if deviation.worst > self.worst:
            return f"worst error {deviation.worst:.3g} exceeds its budget {self.worst:.3g}"
        return None


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to `dtype`: half its machine epsilon.

    Raises:
        TypeError: `dtype` is not a real floating-point dtype.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"{dtype} has no unit roundoff: pass a real floating-point dtype")
    return torch.finfo(dtype).eps / 2


def deviation(actual: Tensor, truth: Tensor) -> Deviation:
    """Measure `actual` against `truth`, in float64 on the CPU.

    Args:
        actual: Any shape, real or complex, any device.
        truth: Same shape; float64 (or complex128).

    Raises:
        ValueError: The shapes differ.
    """
    if actual.shape != truth.shape:
        raise ValueError(
            f"cannot measure a tensor of shape {tuple(actual.shape)} against a truth of shape "
            f"{tuple(truth.shape)}"
        )
    a, t = _real64(actual), _real64(truth)
    finite = torch.isfinite(a) & torch.isfinite(t)
    # NaN agrees with NaN and an infinity with the same infinity; any other pair does not.
    agree = finite | (torch.isnan(a) & torch.isnan(t)) | (a == t)
    error, size = (a - t)[finite].abs(), t[finite].abs()
    return Deviation(
        rms=_ratio(_rms(error), _rms(size)),
        worst=_ratio(_largest(error), _largest(size)),
        nonfinite=int((~agree).sum()),
    )


def budget(
    reference: Deviation,
    dtype: torch.dtype,
    *,
    floor: Deviation | None = None,
    factor: float = FACTOR,
) -> Budget:
    """The budget that an independent implementation's own error allows.

    Args:
        reference: Error of the independent implementation against the float64 truth.
        dtype: What the outputs are rounded to; its unit roundoff is the rounding band.
        floor: The typical error of the other tensors of the run (`typical`); see this module's
            text for why.
        factor: How many times the reference's rms error is allowed (and the worst error in
            proportion); a kernel with another than `FACTOR` says why in the CHANGELOG.
    """
    band = unit_roundoff(dtype)
    least = floor or Deviation(0.0, 0.0)
    return Budget(
        rms=factor * max(reference.rms, least.rms) + band,
        worst=factor * _WORST_RATIO * max(reference.worst, least.worst) + band,
    )


def typical(deviations: Iterable[Deviation]) -> Deviation:
    """The median error of many tensors, the yardstick for those too small to have their own."""
    measured = [d for d in deviations if math.isfinite(d.rms) and math.isfinite(d.worst)]
    if not measured:
        return Deviation(0.0, 0.0)
    return Deviation(
        rms=statistics.median(d.rms for d in measured),
        worst=statistics.median(d.worst for d in measured),
    )


def _real64(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to("cpu")
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.to(torch.complex128))
    return tensor.to(torch.float64)


def _rms(values: Tensor) -> float:
    if values.numel() == 0:
        return 0.0
    # Scaled first, so that squares of very large or very small values neither overflow nor vanish.
    largest = float(values.max())
    if largest == 0.0:
        return 0.0
    return largest * float((values / largest).square().mean().sqrt())


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _ratio(error: float, size: float) -> float:
    """Relative error; against a truth that is all zero any error at all is infinitely large."""
    if error == 0.0:
        return 0.0
    return error / size if size > 0.0 else math.inf
