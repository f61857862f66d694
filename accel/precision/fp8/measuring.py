"""How an operand fares in a format, measured on a sample of its rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.precision.controller.statistics import cast_statistics, rounding_statistics
from accel.precision.fp8.quantizing import quantized
from accel.precision.operand import OperandFormat
from accel_kernels.fp8 import dequantize
from accel_kernels.fp8.values import SATURATION

# Values that are looked at: shares are known to a per mille, and the cost no longer grows with the
# tensor. Non-finite values are counted in all of it.
_SAMPLE = 1 << 16
_NONFINITE = 4


def measured(
    values: Tensor, forms: tuple[OperandFormat, ...], amaxes: list[Tensor | None]
) -> Tensor:
    """Measure a matrix in several formats; the device is not waited for.

    Args:
        values: `[M, K]`.
        forms: The formats.
        amaxes: For each the largest magnitude that it supposes, of all values; None: of each block.

    Returns:
        float32 `[len(forms), 6]`, columns as in the controller's `OperandStatistics`.
    """
    found = torch.stack(
        [_measured(values, form, amax) for form, amax in zip(forms, amaxes, strict=True)]
    )
    found[:, _NONFINITE] = values.numel() - values.isfinite().sum()
    return found


def _measured(values: Tensor, form: OperandFormat, amax: Tensor | None) -> Tensor:
    if form.scaling is None:
        assert form.dtype is not None, "a format has one of both"  # noqa: S101
        return cast_statistics(sample(values, 1), form.dtype)
    some = sample(values, form.scaling.block(1, 1)[0])
    made = quantized(some, form.scaling, amax)
    if not form.history:
        return rounding_statistics(some, dequantize(made), math.inf)
    # Only a scale of earlier steps lets values saturate.
    largest = made.scales.amax() * SATURATION[form.scaling.format]
    return rounding_statistics(some, dequantize(made), largest)


def sample(values: Tensor, high: int) -> Tensor:
    """Bands of `high` rows at equal distances, about `_SAMPLE` values or at least one band.

    The distance is odd, so that it does not always meet the same place of sequences whose length is
    a power of two.
    """
    rows, columns = values.shape
    bands = -(-rows // high)
    distance = bands // max(_SAMPLE // max(columns * high, 1), 1)
    if distance < 2:
        return values
    distance |= 1
    if high == 1:
        return values[::distance]
    starts = range(0, rows, distance * high)
    return torch.cat([values[start : start + high] for start in starts])
