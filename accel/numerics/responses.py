"""Measuring a gradient of the run against its float64 truths; `entries.Response` says what for."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.numerics.entries import Response
from accel.numerics.watchers import NOISE
from accel_kernels import budgets

_LARGEST = 1e300  # JSON has no infinity


def response_of(run: Tensor, exact: Tensor, shaken: Tensor, own: Tensor) -> Response:
    """Measure one gradient.

    Args:
        run: What the program computed, any shape and dtype.
        exact: Its float64 truth.
        shaken: The same with a relative change of `NOISE` in every gradient before it.
        own: The same, but from the forward values of the run.

    Raises:
        ValueError: The shapes differ.
    """
    nonfinite = budgets.deviation(run, own).nonfinite
    run = run.to(own.dtype)
    error, size = _sizes(run - own), _sizes(exact)
    change = [value / NOISE for value in _sizes(shaken - exact)]
    scale = [max(pair) for pair in zip(size, change, strict=True)]
    rms, worst = (_ratio(e, s) for e, s in zip(error, scale, strict=True))
    more_rms, more_worst = (_ratio(s, own) for s, own in zip(scale, size, strict=True))
    return Response((rms, worst, nonfinite), (more_rms, more_worst))


def _sizes(tensor: Tensor) -> tuple[float, float]:
    """Root mean square and largest absolute value of the finite elements."""
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    values = parts[torch.isfinite(parts)].abs()
    largest = float(values.max()) if values.numel() else 0.0
    if largest == 0.0:
        return 0.0, 0.0
    # Scaled first, so that squares neither overflow nor vanish.
    return largest * float((values / largest).square().mean().sqrt()), largest


def _ratio(value: float, scale: float) -> float:
    if value == 0.0:
        return 0.0
    return min(value / scale, _LARGEST) if scale > 0.0 else _LARGEST
