"""The sketch in plain torch, for any device: what the C code must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel_kernels.sketch.layout import (
    BUCKETS,
    COUNT,
    GAMMA,
    LARGEST,
    LEAST,
    MIX,
    NAN_PLACES,
    NANS,
    NEGATIVE,
    NEGATIVE_PLACES,
    NUMBERS,
    PLACE_BITS,
    PLACES,
    POSITIVE,
    POSITIVE_PLACES,
    ROTATIONS,
    SIGNS,
    SQUARES,
)

CHUNK = 1 << 20  # elements at a time: some 64 MB of temporary int64 and float64


def sketch_numbers(tensor: Tensor, whole: Sequence[int], offset: Sequence[int]) -> Tensor:
    """The 72 numbers of a tensor's sketch, on its device, without waiting for the device.

    Args:
        tensor: Real numbers of any dtype and strides, on a device that has float64.
        whole: Shape of the whole tensor that it is a part of.
        offset: Where in the whole it begins.

    Returns:
        `[72]` in float64.
    """
    flat = tensor.reshape(-1)
    total = torch.zeros(NUMBERS, dtype=torch.float64, device=tensor.device)
    total[LEAST], total[LARGEST] = torch.inf, -torch.inf
    for begin in range(0, flat.numel(), CHUNK):
        end = min(begin + CHUNK, flat.numel())
        index = _whole_index(begin, end, tensor.shape, whole, offset, tensor.device)
        _add(total, _double(flat[begin:end]), index, in_runs=tuple(tensor.shape) == tuple(whole))
    return total + 0.0  # no negative zero, which is equal and looks different


def _double(x: Tensor) -> Tensor:
    if x.dtype == torch.uint64:  # torch converts it as if it were signed on some devices
        signed = x.view(torch.int64)
        half = ((signed >> 1) & ((1 << 63) - 1)) | (signed & 1)  # rounds as the whole does
        return torch.where(signed < 0, half.double() * 2, signed.double())
    return x.to(torch.float64)


def _whole_index(
    begin: int,
    end: int,
    shape: Sequence[int],
    whole: Sequence[int],
    offset: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Row-major index in the whole of the elements `begin` to `end` of the part, `[n]` int64."""
    rest = torch.arange(begin, end, dtype=torch.int64, device=device)
    if tuple(shape) == tuple(whole):
        return rest
    index = torch.zeros_like(rest)
    stride = 1
    for size, length, first in zip(reversed(shape), reversed(whole), reversed(offset), strict=True):
        index += (rest % size + first) * stride
        rest = torch.div(rest, size, rounding_mode="floor")
        stride *= length
    return index


def _add(total: Tensor, x: Tensor, index: Tensor, *, in_runs: bool) -> None:
    """Add the elements `x`, `[n]` float64, at the places `index`, `[n]` int64.

    `in_runs` says that `index` counts up from a multiple of 64.
    """
    finite = torch.isfinite(x)
    value = torch.where(finite, x, 0.0)
    block, lane = index >> 6, index & 63
    negative = (_mixed(block, SIGNS) >> lane) & 1
    bucket = lane ^ _high(_mixed(block, ROTATIONS), 6)
    signed = torch.where(negative.bool(), -value, value)
    if in_runs:
        total[:BUCKETS] += _bucket_sums(signed, bucket)
    else:
        total[:BUCKETS].index_add_(0, bucket, signed)
    total[LEAST] = torch.minimum(total[LEAST], torch.where(finite, x, torch.inf).amin())
    total[LARGEST] = torch.maximum(total[LARGEST], torch.where(finite, x, -torch.inf).amax())
    total[SQUARES] += value.square().sum()
    total[COUNT] += x.numel()
    kinds = (
        (NANS, NAN_PLACES, torch.isnan(x)),
        (POSITIVE, POSITIVE_PLACES, torch.isposinf(x)),
        (NEGATIVE, NEGATIVE_PLACES, torch.isneginf(x)),
    )
    for place, start, found in kinds:
        total[place] += found.sum()
        hashes = _high(_mixed(index, start), PLACE_BITS)
        # The sum wraps modulo 2**64, of which 2**53 is a divisor.
        added = total[PLACES].to(torch.int64) + torch.where(found, hashes, 0).sum()
        total[PLACES] = (added & ((1 << PLACE_BITS) - 1)).to(torch.float64)


def _bucket_sums(signed: Tensor, bucket: Tensor) -> Tensor:
    """Sums by bucket where each run of 64 elements has every bucket once.

    `index_add_` would be right too, but adds in another order each time on a CUDA device.
    """
    short = -signed.numel() % BUCKETS
    signed, bucket = (torch.nn.functional.pad(t, (0, short)) for t in (signed, bucket))
    lanes = torch.arange(BUCKETS, device=signed.device)
    turned = bucket.view(-1, BUCKETS)[:, :1] ^ lanes  # the lane of each bucket: XOR undoes itself
    return signed.view(-1, BUCKETS).gather(1, turned).sum(0)


def _mixed(number: Tensor, start: int) -> Tensor:
    """64 well mixed bits for each number, `[n]` int64; products wrap around as in C."""
    z = number * _signed(GAMMA) + _signed(start)
    for shift, factor in MIX:
        z = (z ^ _high(z, 64 - shift)) * _signed(factor)
    return z


def _high(z: Tensor, bits: int) -> Tensor:
    """The highest bits, without the sign's extension."""
    return (z >> (64 - bits)) & ((1 << bits) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
