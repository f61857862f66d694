"""A call of attention on Ascend: its mask resolved, its tensors as the operator takes them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel_kernels.masks import Mask, Sizes, visibility
from accel_kernels.segmented_attention.bias import bias_tile
from accel_kernels.segmented_attention.call import Call, sizes_of
from accel_kernels.segmented_attention.npu_fusion.calls import Tensors, pse_of, seen_of
from accel_kernels.segmented_attention.npu_fusion.limits import (
    BIAS_SIDE,
    LIMITS,
    SIDE,
    within_limits,
)
from accel_kernels.segmented_attention.npu_fusion.packed import Packed, packed
from accel_kernels.segmented_attention.npu_fusion.pieces import Piece, cut, pieces_of
from accel_kernels.segmented_attention.state import accumulation_dtype

# Elements of a tile's scores, or of its mask, over batch and heads; and the least side of a tile.
TILE_ELEMENTS, LEAST_SIDE = 1 << 25, 128
_PLANS = 64
_plans: dict[tuple[Any, ...], tuple[Piece, ...]] = {}


class Job:
    """What forward and backward of one call share.

    Attributes:
        call: What is asked.
        sizes: Of the call.
        device: Of its tensors.
        tensors: Of one head size, and in float32 where there is a bias: the operator takes that in
            the query's dtype, and 16 bits are too few for distances.
        unsafe: A key or value is not finite, and not every row sees every key. The operators
            multiply what is masked by zero, so it would reach rows that do not see it.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> None:
        self.call, self.sizes, self.device = call, sizes_of(query, key), query.device
        if call.bias is not None:
            wide = accumulation_dtype(query.dtype)
            query, key, value = (tensor.to(wide) for tensor in (query, key, value))
        width = max(query.shape[-1], value.shape[-1])
        self.tensors = Tensors(padded(query, width), padded(key, width), value)
        # Looking waits for the device.
        self.unsafe = call.mask is not None and 0 not in self.sizes and not _finite(key, value)

    def calls(self) -> list[Piece | Packed]:
        """What the operator computes, one call after the other."""
        if 0 in self.sizes:
            return []
        call, width = self.call, self.tensors.query.shape[-1]
        groups = self.sizes.heads // self.tensors.key.shape[1]
        found = self.tiles() if call.bias is not None else self._pieces()
        parts = [
            part
            for piece in found
            for part in within_limits(piece, groups, width, call.segment_size, LIMITS)
        ]
        return [*parts] if call.bias is not None else packed(parts, width, LIMITS)

    def tiles(self) -> list[Piece]:
        """The same in tiles small enough for their scores, or their bias, to be a tensor."""
        side = self._side(BIAS_SIDE)
        return [part for piece in self._pieces() for part in cut(piece, side, side)]

    def _pieces(self) -> tuple[Piece, ...]:
        if 0 in self.sizes:
            return ()
        return _pieces(self.call.mask, self.sizes, self.device, self._side(SIDE))

    def _side(self, most: int) -> int:
        """Of a tile, so that what has an element for each of its scores stays small."""
        fitting = math.isqrt(TILE_ELEMENTS // (self.sizes.batch * self.sizes.heads))
        side = max(LEAST_SIDE, min(most, fitting))
        return side if self.call.segment_size is None else min(side, self.call.segment_size)

    def seen(self, piece: Piece) -> Tensor | None:
        """What a piece's rows see of its keys, `[b or 1, h or 1, rows, keys]`; None: all."""
        there = visibility(self.call.mask, self.sizes, self.device)
        return seen_of(piece, there, self.sizes, self.device)

    def pse(self, piece: Piece) -> Tensor | None:
        """A piece's bias as the operator takes it; None if there is none."""
        if self.call.bias is None:
            return None
        return pse_of(self.call.bias, self.sizes, piece, self.tensors.query.dtype)

    def bias(self, piece: Piece) -> Tensor | None:
        """A piece's bias, `[b or 1, h or 1, rows or 1, keys or 1]`; None if there is none."""
        if self.call.bias is None:
            return None
        return bias_tile(self.call.bias, self.sizes, piece.tile, self.tensors.query.dtype)


def padded(tensor: Tensor, width: int) -> Tensor:
    """With zeros up to a head size, which changes no score and no output."""
    missing = width - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _pieces(mask: Mask | None, sizes: Sizes, device: torch.device, side: int) -> tuple[Piece, ...]:
    """What a mask becomes; remembered for masks without tensors, as every layer asks the same."""
    if mask is None or (key := mask.key()) is None:
        return _planned(mask, sizes, device, side)
    place = (key, sizes, side)
    found = _plans.get(place)
    if found is None:
        if len(_plans) >= _PLANS:
            _plans.clear()
        found = _plans[place] = _planned(mask, sizes, device, side)
    return found


def _planned(mask: Mask | None, sizes: Sizes, device: torch.device, side: int) -> tuple[Piece, ...]:
    # Resolved on the CPU if that can be: what is planned with is read.
    dense = mask is not None and "dense" in mask.kinds()
    here = visibility(mask, sizes, device if dense else torch.device("cpu"))
    return tuple(pieces_of(here, sizes, side))


def _finite(key: Tensor, value: Tensor) -> bool:
    # In float32: a sum of many float16 numbers may well be too large for float16.
    wide = accumulation_dtype(key.dtype)
    return bool(torch.isfinite(key.sum(dtype=wide) + value.sum(dtype=wide)))
