"""Measuring and clipping the gradients of one step, without waiting for the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# What `Measured.code` holds if every gradient is finite, or a chip that saturates reports overflow;
# and, plus one for NaN, if the loss was not finite in the first place. From `WITHHELD` on, below
# `CLEAN`, gradients are finite, but the controller says which operand has spoilt them.
CLEAN = 2**62
WITHHELD = 2**61
SATURATED = WITHHELD - 1
LOSS = -2


class Measured(NamedTuple):
    """Gradients of one step, measured where they are.

    Attributes:
        code: int64 `[]`: `CLEAN`, `SATURATED`, or of the first parameter whose gradient is not
            finite twice its place in the model, plus one for NaN: the least of many is the first.
        norm: Euclidean norm of them all, float32 `[]`; not finite where a gradient is not, or
            where it overflows. Zero if it was not asked for.
    """

    code: Tensor
    norm: Tensor


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


def unscale(gradients: list[Tensor], scale: float | Tensor) -> None:
    """Divide gradients by a loss scale, in place; a tensor is not read by the host."""
    if isinstance(scale, Tensor) or scale != 1.0:  # a power of two has an exact reciprocal
        _multiply(gradients, 1.0 / scale)


def measure(gradients: list[Tensor], places: list[int], with_norm: bool) -> Measured:
    """Measure them; the host waits for nothing.

    Args:
        gradients: At least one.
        places: Of each, its parameter's place in the model.
        with_norm: Whether the Euclidean norm is wanted.
    """
    device = gradients[0].device
    filled = [(g, place) for g, place in zip(gradients, places, strict=True) if _size(g)]
    if not filled:
        return Measured(torch.full((), CLEAN, device=device), torch.zeros((), device=device))
    tensors = [gradient for gradient, _ in filled]
    order = torch.tensor([place for _, place in filled], device=device)
    each = largest_of_each(tensors, device)
    codes = torch.where(each.isfinite(), CLEAN, order * 2 + each.isnan())
    norm = total_norm(tensors, device) if with_norm else each.new_zeros(())
    return Measured(codes.min(), norm)


def largest_of_each(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Largest magnitude of what each holds on this rank, float32 `[N]`; NaN where one is NaN."""
    norms: dict[int, Tensor] = {}
    for places in _by_device(tensors):
        found = torch._foreach_norm([as_local(tensors[n]) for n in places], math.inf)
        norms |= {n: norm.to(device, torch.float32) for n, norm in zip(places, found, strict=True)}
    return torch.stack([norms[n] for n in range(len(tensors))])


def total_norm(tensors: list[Tensor], device: torch.device, order: float = 2.0) -> Tensor:
    """A norm over all tensors and, of sharded ones, over all ranks; float32 `[]`."""
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:  # torch adds up norms of one device mesh only
        groups.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    norms = []
    for group in groups.values():
        norm = torch.nn.utils.get_total_norm(group, order)
        full = getattr(norm, "full_tensor", None)
        norms.append((norm if full is None else full()).to(device, torch.float32))
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), order)


def clip(gradients: list[Tensor], measured: Measured, max_norm: float, known: bool) -> None:
    """Scale finite gradients in place so that their Euclidean norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`, save where the norm overflows: torch makes every gradient
    zero there.

    Args:
        gradients: What was measured.
        measured: What `measure` said.
        max_norm: Above 0.
        known: Whether the host may read what was measured, which spares a pass over them.
    """
    coefficient = torch.clamp(max_norm / (measured.norm + 1e-6), max=1.0)
    if known and bool(measured.norm.isfinite()):
        _multiply(gradients, coefficient)
        return
    # In units of the largest, so that the norm is at most the root of their number.
    filled = [gradient for gradient in gradients if gradient.numel()]
    largest = total_norm(filled, measured.norm.device, math.inf)
    shares = [gradient / largest.to(gradient.device) for gradient in filled]
    relative = total_norm(shares, largest.device)
    overflows = measured.norm.isinf() & largest.isfinite()
    far = overflows & (largest.double() * relative.double() > max_norm)
    # In two steps: their quotient may be denormal.
    _divide(gradients, torch.where(far, largest, 1.0))
    kept = torch.where(overflows, 1.0, coefficient)
    _multiply(gradients, torch.where(far, max_norm / relative, kept))


def as_local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that is sharded over ranks; another one itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _multiply(gradients: list[Tensor], factor: float | Tensor) -> None:
    for places in _by_device(gradients):
        here = [as_local(gradients[n]) for n in places]
        moved = factor.to(here[0].device) if isinstance(factor, Tensor) else factor
        torch._foreach_mul_(here, moved)


def _divide(gradients: list[Tensor], divisor: Tensor) -> None:
    for places in _by_device(gradients):
        here = [as_local(gradients[n]) for n in places]
        torch._foreach_div_(here, divisor.to(here[0].device))


def _size(tensor: Tensor) -> int:
    return as_local(tensor).numel()


def _by_device(tensors: list[Tensor]) -> list[list[int]]:
    """Places of the tensors of each device."""
    found: dict[torch.device, list[int]] = {}
    for n, tensor in enumerate(tensors):
        found.setdefault(tensor.device, []).append(n)
    return list(found.values())
