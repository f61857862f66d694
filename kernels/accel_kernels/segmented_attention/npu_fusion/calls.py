"""One piece of a score matrix as one call of `npu_fusion_attention` or of its gradient.

What differs from torch, and is silent if forgotten (op-plugin's page of the operator): True in a
mask leaves a score out; without `atten_mask` every `sparse_mode` and both token limits are ignored;
`scale` is 1 unless given; limits of a band count from the bottom right corner.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import Sizes, Visibility, visible
from accel_kernels.segmented_attention.bias import bias_tile
from accel_kernels.segmented_attention.call import Bias
from accel_kernels.segmented_attention.npu_fusion.operators import operator, triangle
from accel_kernels.segmented_attention.npu_fusion.pieces import Piece
from accel_kernels.segmented_attention.state import accumulation_dtype

UNLIMITED = 2147483647
WHOLE_MASK, TOP_LEFT, BOTTOM_RIGHT, BAND = 1, 2, 3, 4
ROWS_MAY_BE_EMPTY = 2
REPEATS = 8
"""How often the operator repeats a row's maximum and sum."""

# A probability exp(score - this) is 0 for any score.
_FAR_ABOVE = 1e30


class Tensors(NamedTuple):
    """Query, key and value of a call as the operator takes them: of one head size.

    Attributes:
        query: `[B, H, T, W]`.
        key: `[B, H_kv, S, W]`.
        value: `[B, H_kv, S, W or less]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor

    def of(self, piece: Piece) -> Tensors:
        """Those of a piece, as views."""
        groups = self.query.shape[1] // self.key.shape[1]
        first, last = piece.heads
        heads = slice(first // groups, -(-last // groups))
        batch = slice(*piece.batch)
        return Tensors(
            self.query[batch, slice(first, last), piece.rows],
            self.key[batch, heads, piece.keys],
            self.value[batch, heads, piece.keys],
        )


def seen_of(piece: Piece, seen: Visibility, sizes: Sizes, device: torch.device) -> Tensor | None:
    """What a piece's rows see of its keys, bool `[b or 1, h or 1, rows, keys]`; None: all."""
    if not piece.masked:
        band = piece.seen(device)
        return None if band is None else band[None, None]
    allowed = visible(seen, sizes, device, piece.rows, piece.keys)
    return of_range(of_range(allowed, 0, piece.batch), 1, piece.heads)


def of_range(tensor: Tensor, dim: int, part: tuple[int, int]) -> Tensor:
    """A range of a dimension that may be 1 for all."""
    return tensor if tensor.shape[dim] == 1 else tensor.narrow(dim, part[0], part[1] - part[0])


def mask_arguments(piece: Piece, allowed: Tensor | None, device: torch.device) -> dict[str, Any]:
    """How the operator is told what a piece's rows see.

    Args:
        piece: The piece.
        allowed: What is visible, if the piece is masked.
        device: Of the tensors.
    """
    if piece.masked:
        assert allowed is not None  # noqa: S101
        batch = piece.batch[1] - piece.batch[0] if max(allowed.shape[:2]) > 1 else 1
        heads = piece.heads[1] - piece.heads[0] if allowed.shape[1] > 1 else 1
        shape = (batch, heads, piece.q1 - piece.q0, piece.k1 - piece.k0)
        # Mode 1 takes the mask as it is; mode 0 would hold it against the two token limits.
        return {
            "atten_mask": (~allowed).expand(shape).contiguous(),
            "sparse_mode": WHOLE_MASK,
            "inner_precise": ROWS_MAY_BE_EMPTY,
        }
    if piece.lower is None and piece.upper is None:
        return {}
    mask = triangle(device)
    after = UNLIMITED if piece.upper is None else piece.upper + piece.q1 - piece.k1
    before = UNLIMITED if piece.lower is None else piece.k1 - piece.q1 - piece.lower
    if piece.lower is None and after == 0:
        return {"atten_mask": mask, "sparse_mode": BOTTOM_RIGHT}
    if piece.lower is None and piece.upper == piece.k0 - piece.q0:
        return {"atten_mask": mask, "sparse_mode": TOP_LEFT}
    return {
        "atten_mask": mask,
        "sparse_mode": BAND,
        "pre_tockens": before,
        "next_tockens": after,
    }


def attend(
    tensors: Tensors, piece: Piece, allowed: Tensor | None, scale: float, pse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The attention state of a piece.

    Args:
        tensors: Of the whole call.
        piece: What is computed.
        allowed: What its rows see, if it is masked.
        scale: Of the scores.
        pse: Added to the scaled scores, `[b or 1, h, rows, keys]`, of the query's dtype.

    Returns:
        `out` `[b, h, rows, D_v]` in the query's dtype, and `lse` `[b, h, rows]` in float32 (float64
        for float64).
    """
    query, key, value = tensors.of(piece)
    arguments = mask_arguments(piece, allowed, query.device)
    if pse is None:
        found = operator("npu_fusion_attention")(
            query, key, value, query.shape[1], "BNSD", scale=scale, **arguments
        )
    else:
        # Only the second form adds after scaling, which is pse_type 0; it spells tokens otherwise.
        spelled = {name.replace("tockens", "tokens"): item for name, item in arguments.items()}
        found = operator("npu_fusion_attention_v2")(
            query, key, value, query.shape[1], "BNSD", scale=scale, pse=pse, pse_type=0, **spelled
        )
    out, highest, total = found[:3]
    lse = highest[..., 0] + torch.log(total[..., 0])
    if allowed is not None:
        # What the operator leaves in a row of which all is masked, no page states.
        some = allowed.any(-1)
        out = torch.where(some.unsqueeze(-1), out, 0.0)
        lse = torch.where(some, lse, -torch.inf)
    return out, lse


def attend_backward(
    grad_out: Tensor,
    tensors: Tensors,
    out: Tensor,
    lse: Tensor,
    piece: Piece,
    allowed: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A piece's part of the gradients of query, key and value.

    The gradient operator takes the rows' maxima, sums and outputs as given. With those of the whole
    row, of which the piece is a part, the gradients of the pieces add up to the exact ones.

    Args:
        grad_out: Of the output, `[B, H, T, W or less]`, as wide as `out` and the value.
        tensors: Of the whole call.
        out: Of the whole rows.
        lse: Of the whole rows, `[B, H, T]`.
        piece: What is computed.
        allowed: What its rows see, if it is masked.
        scale: Of the scores.
    """
    query, key, value = tensors.of(piece)
    at = (slice(*piece.batch), slice(*piece.heads), piece.rows)
    grad, result, highest = grad_out[at], out[at], lse[at]
    if piece.masked:
        # Rows that see nothing at all: no probabilities, whatever their gradient is.
        empty = highest == -torch.inf
        highest = torch.where(empty, _FAR_ABOVE, highest)
        grad = torch.where(empty.unsqueeze(-1), 0.0, grad)
    statistics = accumulation_dtype(query.dtype)
    highest = highest.to(statistics).unsqueeze(-1).expand(*highest.shape, REPEATS).contiguous()
    found = operator("npu_fusion_attention_grad")(
        query,
        key,
        value,
        grad,
        query.shape[1],
        "BNSD",
        softmax_max=highest,
        softmax_sum=torch.ones_like(highest),
        attention_in=result,
        scale_value=scale,
        **mask_arguments(piece, allowed, query.device),
    )
    return found[0], found[1], found[2]


def pse_of(bias: Bias, sizes: Sizes, piece: Piece, dtype: torch.dtype) -> Tensor:
    """A piece's bias as the operator takes it, `[b or 1, h, rows, keys]`."""
    tile = bias_tile(bias, sizes, piece.tile, dtype)
    if piece.tile.batch is None:
        tile = of_range(tile, 0, piece.batch)
    tile = of_range(tile, 1, piece.heads)
    shape = (
        tile.shape[0],
        piece.heads[1] - piece.heads[0],
        piece.q1 - piece.q0,
        piece.k1 - piece.k0,
    )
    return tile.expand(shape).contiguous()
