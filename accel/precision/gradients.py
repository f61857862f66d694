"""Checking and clipping the gradients of one step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Magnitude(NamedTuple):
    """How large gradients are together.

    Attributes:
        norm: Their Euclidean norm; infinite where it overflows or a gradient is not finite.
        overflows: Whether `norm` is infinite though every gradient is finite.
        finite: Whether no gradient holds nan or an infinity.
    """

    norm: Tensor
    overflows: bool
    finite: bool


def dense_values(parameter: nn.Parameter) -> Tensor:
    """The gradient's numbers, to be changed in place; of a sparse one those that it stores.

    A sparse gradient is coalesced first: entries for one row are one gradient.
    """
    gradient = parameter.grad
    assert gradient is not None, "only parameters with a gradient come here"  # noqa: S101
    if gradient.layout == torch.strided:
        return gradient
    if not gradient.is_coalesced():
        parameter.grad = gradient = gradient.coalesce()
    return gradient._values()


def measure(gradients: list[Tensor]) -> Magnitude:
    """Measure them, with one synchronisation where their norm is finite."""
    norm = _norm(gradients, 2.0)
    if bool(torch.isfinite(norm)):
        return Magnitude(norm, overflows=False, finite=True)
    finite = bool(torch.isfinite(_norm(gradients, math.inf)))
    return Magnitude(norm, overflows=finite, finite=finite)


def clip(gradients: list[Tensor], magnitude: Magnitude, max_norm: float) -> None:
    """Scale finite gradients in place so that their Euclidean norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`, save where the norm overflows: torch makes every gradient
    zero there.
    """
    if not magnitude.overflows:
        coefficient = torch.clamp(max_norm / (magnitude.norm + 1e-6), max=1.0)
        for device in {gradient.device for gradient in gradients}:
            here = [gradient for gradient in gradients if gradient.device == device]
            torch._foreach_mul_(here, coefficient.to(device))
        return
    # In units of the largest, so that the norm is at most the root of their number.
    largest = _norm(gradients, math.inf)
    relative = _norm([gradient / largest.to(gradient.device) for gradient in gradients], 2.0).item()
    if largest.item() * relative > max_norm:
        for gradient in gradients:  # in two steps: their quotient may be denormal
            gradient.div_(largest.to(gradient.device)).mul_(max_norm / relative)


def _norm(gradients: list[Tensor], order: float) -> Tensor:
    filled = [gradient for gradient in gradients if gradient.numel()]
    return torch.nn.utils.get_total_norm(filled, order)
