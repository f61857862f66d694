"""Results of pieces, put together: states merged and gradients summed, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.segmented_attention.call import Bias
from accel_kernels.segmented_attention.differentiable import Gradients
from accel_kernels.segmented_attention.npu_fusion.packed import Packed
from accel_kernels.segmented_attention.npu_fusion.pieces import Piece
from accel_kernels.segmented_attention.state import accumulation_dtype, merge


class State:
    """Output and log-sum-exp of all rows, grown piece by piece.

    One piece that is the whole is kept as it is, without a copy in float32.
    """

    def __init__(self, query: Tensor, value: Tensor) -> None:
        self.shape = (*query.shape[:3], value.shape[3])
        self.dtype, self.device = query.dtype, query.device
        self.wide = accumulation_dtype(query.dtype)
        self.out: Tensor | None = None
        self.lse: Tensor | None = None
        # On the CPU: whether a row of an entry of the batch has a state yet.
        self.reached = torch.zeros(query.shape[0], query.shape[2], dtype=torch.bool, device="cpu")

    def add(self, piece: Piece | Packed, out: Tensor, lse: Tensor) -> None:
        """Take in a piece's `out` `[b, h, rows, D_v]` and `lse` `[b, h, rows]`."""
        if self.out is None and out.shape == self.shape:
            self.out, self.lse = out, lse
        else:
            total, normaliser = self._wide_ones()
            at = (slice(*piece.batch), slice(*piece.heads), piece.rows)
            if bool(self.reached[at[0], at[2]].any()):
                out, lse = merge(total[at], normaliser[at], out.to(self.wide), lse.to(self.wide))
            total[at], normaliser[at] = out, lse
        self.reached[slice(*piece.batch), piece.rows] = True

    def _wide_ones(self) -> tuple[Tensor, Tensor]:
        """The totals, in the dtype of accumulation; the empty state if there are none."""
        if self.out is None or self.lse is None:
            out = torch.zeros(self.shape, dtype=self.wide, device=self.device)
            lse = torch.full_like(out[..., 0], -torch.inf)
        else:
            out, lse = self.out.to(self.wide), self.lse.to(self.wide)
        self.out, self.lse = out, lse
        return out, lse

    def result(self) -> tuple[Tensor, Tensor]:
        """The output in the query's dtype, and the log-sum-exp."""
        if self.out is not None and self.lse is not None:
            return self.out.to(self.dtype), self.lse.to(self.wide)
        out, lse = self._wide_ones()
        return out.to(self.dtype), lse


class Sums:
    """Gradients of query, key, value and bias, summed in float32 (float64 for float64)."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, bias: Bias | None) -> None:
        self.like = (query, key, value)
        self.given = bias
        wide = accumulation_dtype(query.dtype)
        self.groups = query.shape[1] // key.shape[1] if key.shape[1] else 1
        self.totals = [_zeros(tensor, wide) for tensor in self.like]
        self.bias = None if bias is None else _zeros(bias.tensor, wide)

    def add(self, piece: Piece | Packed, parts: tuple[Tensor, Tensor, Tensor]) -> None:
        """Add what a piece contributes, less the columns that pad it."""
        batch, (first, last) = slice(*piece.batch), piece.heads
        kv = slice(first // self.groups, -(-last // self.groups))
        places = ((slice(first, last), piece.rows), (kv, piece.keys), (kv, piece.keys))
        for total, part, (heads, tokens) in zip(self.totals, parts, places, strict=True):
            total[batch, heads, tokens] += part[..., : total.shape[-1]]

    def result(self) -> Gradients:
        """Each in the dtype of what it belongs to."""
        query, key, value = (
            total.to(tensor.dtype) for total, tensor in zip(self.totals, self.like, strict=True)
        )
        bias = None
        if self.bias is not None and self.given is not None:
            bias = self.bias.to(self.given.tensor.dtype)
        return Gradients(query, key, value, bias)


def _zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    # Contiguous, whatever the strides of the other.
    return torch.zeros(like.shape, dtype=dtype, device=like.device)
