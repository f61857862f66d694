"""Ulysses: from a part of the sequence with all heads to all of it with a part of the heads.

Jacobs et al., DeepSpeed Ulysses, arXiv 2309.14509: one exchange before the attention and one after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from accel.attention.context_parallel.sharding import Piece, apart, in_order
from accel.distributed import all_to_all

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Pieces = Sequence[Sequence[Piece]]


def check_heads(heads: int, key_heads: int, ranks: int) -> None:
    """See that heads can be dealt out.

    Raises:
        ValueError: They cannot.
    """
    if heads % ranks:
        raise ValueError(
            f"Ulysses deals {heads} query heads out to {ranks} ranks, which does not come out "
            "even; use method='ring', or fewer ranks for Ulysses in a mesh with a ring"
        )
    if key_heads % ranks and ranks % key_heads:
        raise ValueError(
            f"Ulysses deals {key_heads} key heads out to {ranks} ranks: one must be a multiple of "
            "the other; use method='ring'"
        )


def to_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    key_pieces: Pieces,
    group: ProcessGroup | None,
    rank: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """All positions of the group for this rank's heads, by ascending positions.

    Where key heads are fewer than ranks, a head goes to each rank whose query heads need it.

    Args:
        query: `[B, H, T_local, D]`.
        key: `[B, H_kv, S_local, D]`.
        value: `[B, H_kv, S_local, D_v]`.
        pieces: Of the queries that each rank of the group holds.
        key_pieces: The same of the keys.
        group: Of the exchange.
        rank: In it.

    Returns:
        The three, `[B, H / ranks, T, D]`, `[B, max(1, H_kv / ranks), S, D]` and likewise `D_v`.
        One exchange carries them, in the backward too, so that no order of three is to be kept.
    """
    ranks = len(pieces)
    dealt = [_deal(tensor, ranks) for tensor in (query, key, value)]
    packed = [torch.cat([t.reshape(-1) for t in three]) for three in zip(*dealt, strict=True)]
    shapes = [
        [
            (*mine[rank].shape[:2], sum(p.length for p in held), mine[rank].shape[3])
            for mine, held in zip(dealt, three, strict=True)
        ]
        for three in zip(pieces, key_pieces, key_pieces, strict=True)
    ]
    sizes = [[torch.Size(shape).numel() for shape in three] for three in shapes]
    received = all_to_all(packed, [(sum(three),) for three in sizes], group)
    unpacked = [
        [part.view(shape) for part, shape in zip(one.split(size), three, strict=True)]
        for one, size, three in zip(received, sizes, shapes, strict=True)
    ]
    queries, keys, values = zip(*unpacked, strict=True)
    return (
        in_order(queries, pieces, 2), in_order(keys, key_pieces, 2), in_order(values, key_pieces, 2)
    )  # fmt: skip


def to_sequence(tensor: Tensor, pieces: Pieces, group: ProcessGroup | None, rank: int) -> Tensor:
    """The inverse, for the output: this rank's positions for all heads.

    Args:
        tensor: `[B, H / ranks, T, D]`.
        pieces: That each rank of the group holds.
        group: Of the exchange.
        rank: In it.

    Returns:
        `[B, H, T_local, D]`.
    """
    batch, heads, _, size = tensor.shape
    shape = (batch, heads, sum(piece.length for piece in pieces[rank]), size)
    return torch.cat(all_to_all(apart(tensor, pieces, 2), [shape] * len(pieces), group), 1)


def _deal(tensor: Tensor, ranks: int) -> list[Tensor]:
    """The heads for each rank, `[B, h, T, D]`."""
    heads = tensor.shape[1]
    if heads % ranks == 0:
        return list(tensor.split(heads // ranks, 1))
    copies = ranks // heads
    return [tensor.narrow(1, rank // copies, 1) for rank in range(ranks)]
