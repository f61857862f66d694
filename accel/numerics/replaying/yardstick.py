"""How far one result is from its float64 truth, in units of what its arithmetic must cost.

A backward-stable kernel returns the exact result of slightly wrong inputs, rounded. So two things
are allowed for: rounding the output (half a unit in the last place of its dtype, `h`), and the
operator's response to inputs wrong by the unit roundoff of the precision it computes in (`delta`,
see `responses`). An error `e` is measured by

- R = rms(e) / sqrt(rms(delta)**2 + rms(h)**2),
- M = max |e_i| / (h_i + s_i), with s_i**2 = delta_i**2 and a part of the rms of its row and of the
  whole, since a response that was drawn a few times can be small by luck,
- for 16-bit outputs the share of misrounded elements, and the excess: the largest error that
  rounding to the output's dtype cannot explain, in units of the compute precision's noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the rms response of an element's row and of the whole tensor that count for it.
_OF_ROW = 1.0
OF_ALL = 0.1
_SHORTEST_ROW = 8
# Below the smallest normal number many chips flush to zero; float16 gradients live there, so its
# subnormal numbers count.
_FLUSHED = frozenset({torch.float32, torch.bfloat16, torch.float64})
_EXPONENT = 0x7FF0000000000000  # the bits of a float64's exponent
SIXTEEN_BIT = frozenset({torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class Measured:
    """One result against its truth.

    Attributes:
        dtype: Of the result.
        count: Its elements.
        rms: R.
        worst: M.
        excess: The largest error that rounding cannot explain, in compute noise; for outputs wider
            than 16 bits the same as M.
        misrounding: Share of elements that are not the truth rounded, for 16-bit outputs; else 0.
        expected: The share that noise of the compute precision explains.
        drift: The error's part in proportion to the truth: <e, truth> / <truth, truth>, in units
            of the compute precision's roundoff.
        drift_spread: How much that is by chance if the elements' errors are independent.
        rounding: Share of the output's rounding in the square of what R is measured by.
        nonfinite: Elements that are NaN or infinite where the truth is not, or the reverse.
        at: Flat index of the element with the largest M.
    """

    dtype: torch.dtype
    count: int
    rms: float
    worst: float
    excess: float
    misrounding: float
    expected: float
    drift: float
    drift_spread: float
    rounding: float
    nonfinite: int
    at: int


def half_ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance between neighbours of `dtype` at finite float64 `values`, as float64."""
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * (1.0 if dtype in _FLUSHED else limits.eps / 2)
    power = (values.view(torch.int64) & _EXPONENT).view(torch.float64)  # of two, or zero
    return power.mul_(limits.eps / 2).clamp_(min=least)


def measured(
    actual: Tensor,
    truth: Tensor,
    squares: Tensor,
    unit: float,
    *,
    of_all: float = OF_ALL,
    floors: bool = True,
) -> Measured:
    """Measure one result.

    Args:
        actual: Any shape, real floating dtype, on the CPU.
        truth: The same shape, float64.
        squares: The mean square of the response to noise of `unit`, the same shape, float64.
        unit: Unit roundoff of the precision that it is computed in.
        of_all: Which share of the whole tensor's rms response counts for every element.
        floors: Whether the responses of other elements count for an element at all.
    """
    dtype = actual.dtype
    out, truth = actual.detach().double(), truth.detach()
    finite = torch.isfinite(out) & torch.isfinite(truth)
    nonfinite = 0 if bool(finite.all()) else _disagreeing(out, truth, dtype, finite)
    if nonfinite or not bool(finite.all()):
        out, truth = out.where(finite, 0.0), truth.where(finite, 0.0)
        squares = squares.where(finite & torch.isfinite(squares), 0.0)
    if not out.numel():
        return Measured(dtype, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, nonfinite, 0)
    error = out - truth
    half = half_ulp(truth, dtype)
    noise = (squares + _floor(squares, of_all) if floors else squares).sqrt()
    ratio = error.abs() / (half + noise)
    at = int(ratio.argmax())
    rounding, total = float(half.square().mean()), float(squares.mean())
    drift, spread = _drift(error, truth, unit)
    excess, share, expected = _misrounding(out, truth, noise, unit, dtype)
    return Measured(
        dtype=dtype,
        count=out.numel(),
        rms=_ratio(math.sqrt(float(error.square().mean())), math.sqrt(rounding + total)),
        worst=float(ratio.reshape(-1)[at]),
        excess=excess,
        misrounding=share,
        expected=expected,
        drift=drift,
        drift_spread=spread,
        rounding=_ratio(rounding, rounding + total) if total else 1.0,
        nonfinite=nonfinite,
        at=at,
    )


def _drift(error: Tensor, truth: Tensor, unit: float) -> tuple[float, float]:
    size = float(truth.square().sum()) * unit
    if size == 0.0:
        return 0.0, 0.0
    products = error * truth
    return float(products.sum()) / size, math.sqrt(float(products.square().sum())) / size


def _floor(squares: Tensor, of_all: float) -> Tensor:
    """The part of the mean square response that counts for every element, by row and overall."""
    overall = squares.mean() * of_all**2
    if squares.dim() < 2 or squares.shape[-1] < _SHORTEST_ROW:
        return squares.mean().expand_as(squares)
    return squares.mean(-1, keepdim=True) * _OF_ROW**2 + overall


def _misrounding(
    out: Tensor, truth: Tensor, noise: Tensor, unit: float, dtype: torch.dtype
) -> tuple[float, float, float]:
    """Excess, misrounded share and expected share of a 16-bit result."""
    if dtype not in SIXTEEN_BIT:
        return 0.0, 0.0, 0.0
    noise = noise + unit * truth.abs()
    half = half_ulp(torch.maximum(out.abs(), truth.abs()), dtype)
    beyond = ((out - truth).abs() - half).clamp_(min=0.0)
    rounded = truth.to(dtype).double()
    wrong = (rounded != out) & torch.isfinite(rounded)
    share = float(wrong.double().mean())
    expected = float((noise / half).clamp_(max=1.0).mean())
    worst = beyond.div_(noise).nan_to_num_(nan=0.0)
    return float(worst.max()), share, expected


def _disagreeing(out: Tensor, truth: Tensor, dtype: torch.dtype, finite: Tensor) -> int:
    """How many elements are NaN or infinite on one side only, or otherwise."""
    limits = torch.finfo(dtype)
    # The truth of an overflow is finite; within a unit of the largest number either is right.
    edge = truth.abs() >= limits.max * (1 - limits.eps)
    agree = (out == truth) | (out.isnan() & truth.isnan())
    agree |= edge & (out.abs() >= limits.max * (1 - limits.eps)) & (out.sign() == truth.sign())
    return int((~finite & ~agree).sum())


def _ratio(part: float, whole: float) -> float:
    if part == 0.0:
        return 0.0
    return part / whole if whole else math.inf
