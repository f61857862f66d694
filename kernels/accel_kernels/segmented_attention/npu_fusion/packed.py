"""Several documents in one call: the operator's layout TND, sequences one after the other.

Documents are pieces beside one another along the diagonal. A call for each would leave a chip idle
that many short ones could fill. Between them the operator looks at nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel_kernels.segmented_attention.npu_fusion.calls import (
    BOTTOM_RIGHT,
    REPEATS,
    Tensors,
)
from accel_kernels.segmented_attention.npu_fusion.limits import Limits
from accel_kernels.segmented_attention.npu_fusion.operators import operator, triangle
from accel_kernels.segmented_attention.npu_fusion.pieces import Piece, Range
from accel_kernels.segmented_attention.state import accumulation_dtype

# op-plugin's page: up to 1K sequences in one call (`actual_seq_qlen`), and T up to 1M.
MOST_SEQUENCES = 1000


class Packed(NamedTuple):
    """Pieces of one kind, each beginning where the one before it ends, in queries and in keys.

    Attributes:
        pieces: At least two.
        causal: Each is causal from its bottom right; else each sees all of itself.
    """

    pieces: tuple[Piece, ...]
    causal: bool

    @property
    def batch(self) -> Range:
        """First entry of the batch and past the last."""
        return self.pieces[0].batch

    @property
    def heads(self) -> Range:
        """First head of the query and past the last."""
        return self.pieces[0].heads

    @property
    def rows(self) -> slice:
        """Its queries."""
        return slice(self.pieces[0].q0, self.pieces[-1].q1)

    @property
    def keys(self) -> slice:
        """Its keys."""
        return slice(self.pieces[0].k0, self.pieces[-1].k1)

    @property
    def whole(self) -> Piece:
        """The rectangle that it lies in."""
        first, last = self.pieces[0], self.pieces[-1]
        return Piece(first.q0, last.q1, first.k0, last.k1, first.batch, first.heads)

    def ends(self) -> dict[str, list[int]]:
        """Where the sequences end among the queries and among the keys of all entries."""
        entries = range(self.batch[1] - self.batch[0])
        rows, keys = self.rows, self.keys
        return {
            "actual_seq_qlen": [
                entry * (rows.stop - rows.start) + piece.q1 - rows.start
                for entry in entries
                for piece in self.pieces
            ],
            "actual_seq_kvlen": [
                entry * (keys.stop - keys.start) + piece.k1 - keys.start
                for entry in entries
                for piece in self.pieces
            ],
        }


def packed(pieces: list[Piece], width: int, limits: Limits) -> list[Piece | Packed]:
    """The pieces, those that can share a call put together.

    Args:
        pieces: Each within the limits of a call.
        width: Head size.
        limits: Of a call.
    """
    found: list[Piece | Packed] = []
    run: list[Piece] = []
    kinds: frozenset[bool] = frozenset()
    work = 0
    for piece in pieces:
        more, shared = _work(piece, width), kinds & _kinds(piece)
        fits = bool(run) and _follows(run[-1], piece) and _within(run, piece, limits)
        if fits and shared and work + more <= limits.work:
            kinds = shared
        else:
            found += _closed(run, kinds)
            run, kinds, work = [], _kinds(piece), 0
        run.append(piece)
        work += more
    return found + _closed(run, kinds)


def _kinds(piece: Piece) -> frozenset[bool]:
    """True if it is causal from its bottom right, False if it sees all; a single row is both."""
    if piece.masked or piece.lower is not None:
        return frozenset()
    if piece.upper is None:
        return frozenset({False, True} if piece.q1 - piece.q0 == 1 else {False})
    return frozenset({True} if piece.upper == piece.k1 - piece.q1 else ())


def _follows(one: Piece, other: Piece) -> bool:
    same = (one.batch, one.heads) == (other.batch, other.heads)
    return same and (one.q1, one.k1) == (other.q0, other.k0)


def _work(piece: Piece, width: int) -> int:
    many = (piece.batch[1] - piece.batch[0]) * (piece.heads[1] - piece.heads[0])
    return many * (piece.q1 - piece.q0) * piece.visible_keys * width


def _within(run: list[Piece], piece: Piece, limits: Limits) -> bool:
    entries = piece.batch[1] - piece.batch[0]
    longest = max(piece.q1 - run[0].q0, piece.k1 - run[0].k0)
    return entries * (len(run) + 1) <= MOST_SEQUENCES and entries * longest <= limits.length


def _closed(run: list[Piece], kinds: frozenset[bool]) -> list[Piece | Packed]:
    if len(run) < 2:
        return list(run)
    return [Packed(tuple(run), causal=True in kinds)]


def attend_packed(tensors: Tensors, group: Packed, scale: float) -> tuple[Tensor, Tensor]:
    """The attention state of a group; see `calls.attend`."""
    query, key, value = (_tokens(tensor) for tensor in tensors.of(group.whole))
    found = operator("npu_fusion_attention")(
        query,
        key,
        value,
        query.shape[1],
        "TND",
        scale=scale,
        softmax_layout="TND",
        **group.ends(),
        **_mask(group, query.device),
    )
    entries = group.batch[1] - group.batch[0]
    # By default each sequence's statistics lie heads first, in a tensor that says otherwise.
    highest, total = (item[..., 0] for item in found[1:3])
    lse = (highest + torch.log(total)).unflatten(0, (entries, -1)).mT
    return _entries(found[0], entries), lse


def attend_packed_backward(
    grad_out: Tensor, tensors: Tensors, out: Tensor, lse: Tensor, group: Packed, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A group's part of the gradients; see `calls.attend_backward`."""
    at = (slice(*group.batch), slice(*group.heads), group.rows)
    query, key, value = (_tokens(tensor) for tensor in tensors.of(group.whole))
    highest = lse[at].mT.flatten(0, 1).to(accumulation_dtype(query.dtype)).unsqueeze(-1)
    highest = highest.expand(*highest.shape[:2], REPEATS).contiguous()
    found = operator("npu_fusion_attention_grad")(
        query,
        key,
        value,
        _tokens(grad_out[at]),
        query.shape[1],
        "TND",
        softmax_max=highest,
        softmax_sum=torch.ones_like(highest),
        attention_in=_tokens(out[at]),
        scale_value=scale,
        softmax_layout="TND",
        **group.ends(),
        **_mask(group, query.device),
    )
    entries = group.batch[1] - group.batch[0]
    d_query, d_key, d_value = (_entries(item, entries) for item in found[:3])
    return d_query, d_key, d_value


def _mask(group: Packed, device: torch.device) -> dict[str, Any]:
    if not group.causal:
        return {}
    return {"atten_mask": triangle(device), "sparse_mode": BOTTOM_RIGHT}


def _tokens(tensor: Tensor) -> Tensor:
    """`[b, h, t, d]` as `[b * t, h, d]`."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _entries(tensor: Tensor, entries: int) -> Tensor:
    """`[b * t, h, d]` as `[b, h, t, d]`."""
    split: Tensor = tensor.unflatten(0, (entries, -1))
    return split.transpose(1, 2)
