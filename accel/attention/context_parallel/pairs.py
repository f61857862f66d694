"""What of an attention falls to one rank's queries and another rank's keys.

A mask, a bias and a dropout are given for the whole sequence. Cut to a contiguous piece of queries
and a contiguous piece of keys each is one of its own kind again, counted from their beginnings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel.attention.context_parallel.sharding import Piece, SequenceLayout
from accel_kernels.masks import (
    Dense,
    Mask,
    RowIntervals,
    Sizes,
    Visibility,
    causal,
    row_bounds,
    visibility,
)
from accel_kernels.segmented_attention.call import Bias, Call, Dropout
from accel_kernels.segmented_attention.differentiable import Implementation


class Pair(NamedTuple):
    """A piece of queries against a piece of keys, of which something is visible.

    Attributes:
        rows: Where the queries are among this rank's.
        keys: Where the keys are among those of the rank that holds them.
        call: What to compute of them.
        at: The two pieces, in positions of the whole.
    """

    rows: slice
    keys: slice
    call: Call
    at: tuple[Piece, Piece]


class Whole(NamedTuple):
    """An attention over a whole sequence, and how it is laid out over a ring.

    Attributes:
        sizes: Batch, this rank's query heads, and both lengths of the whole.
        layout: Of the queries.
        key_layout: Of the keys.
        call: Its arguments, mask and bias of the whole; the bias of this rank's heads.
    """

    sizes: Sizes
    layout: SequenceLayout
    key_layout: SequenceLayout
    call: Call


class PairMasks:
    """A mask over the pieces of a layout, as one rank needs it.

    Attributes:
        distances: How far around the ring keys must travel: each distance at which any rank sees
            something of the keys that it then holds, ascending, and 0. The same on every rank.
        kernels: For the pairs, where they have been chosen before, by what else a choice hangs on.
    """

    def __init__(self, whole: Whole, rank: int, device: torch.device) -> None:
        mask, sizes = whole.call.mask, whole.sizes
        home = home_of(mask, device)
        self._seen = visibility(mask, sizes, home)
        self._bounds = row_bounds(self._seen, sizes, home).cpu()
        self._device, self._rank = device, rank
        self._layout, self._key_layout = whole.layout, whole.key_layout
        self.kernels: dict[Any, dict[tuple[int, int], Implementation]] = {}
        self._found: dict[int, list[tuple[Piece, Piece, Mask | None]]] = {}
        self.distances = self._needed_distances()

    def of(self, source: int) -> list[tuple[Piece, Piece, Mask | None]]:
        """The pieces of this rank's queries and of `source`'s keys that see one another."""
        if source not in self._found:
            rows, keys = self._layout.pieces[self._rank], self._key_layout.pieces[source]
            group = torch.full((self._layout.length,), -1)
            for index, piece in enumerate(rows):
                group[piece.start : piece.stop] = index
            local = self._layout.positions(self._rank)
            met = _met(self._bounds[..., local], group[local], len(rows), keys)
            self._found[source] = [
                (rows[a], keys[b], self._cut(rows[a], keys[b])) for a, b in met.nonzero().tolist()
            ]
        return self._found[source]

    def _needed_distances(self) -> tuple[int, ...]:
        ranks = self._layout.ranks
        owner = torch.empty(self._layout.length, dtype=torch.int64)
        for rank, mine in enumerate(self._layout.pieces):
            for piece in mine:
                owner[piece.start : piece.stop] = rank
        held = [
            (piece, rank) for rank, mine in enumerate(self._key_layout.pieces) for piece in mine
        ]
        held.sort()
        met = _met(self._bounds, owner, ranks, [piece for piece, _ in held])
        holders = torch.tensor([rank for _, rank in held], dtype=torch.int64)
        seers, pieces = met.nonzero().unbind(1)
        needed = ((seers - holders[pieces]) % ranks).unique().tolist()
        return tuple(sorted({0, *needed}))

    def _cut(self, rows: Piece, keys: Piece) -> Mask | None:
        bounds = self._bounds[..., rows.start : rows.stop]
        mask = _cut_intervals(bounds, rows, keys, self._device)
        if self._seen.dense is None:
            return mask
        dense = Dense(_dense_part(self._seen, rows, keys))
        return dense if mask is None else mask & dense


def pairs_of(masks: PairMasks, whole: Whole, rank: int, source: int, head: int) -> list[Pair]:
    """The calls to make of this rank's queries and `source`'s keys.

    Args:
        masks: Of this rank.
        whole: The attention.
        rank: Of the queries.
        source: Of the keys.
        head: The first of this rank's query heads among all, for dropout.
    """
    row_places = _places(whole.layout.pieces[rank])
    key_places = _places(whole.key_layout.pieces[source])
    return [
        Pair(
            slice(row_places[a], row_places[a] + a.length),
            slice(key_places[b], key_places[b] + b.length),
            whole.call._replace(
                mask=mask,
                bias=_cut_bias(whole.call.bias, whole.sizes, a, b),
                dropout=_cut_dropout(whole.call.dropout, a, b, head),
                return_lse=True,
            ),
            (a, b),
        )
        for a, b, mask in masks.of(source)
    ]


def home_of(mask: Mask | None, device: torch.device) -> torch.device:
    """Where to resolve a mask: which calls to make is decided on the CPU; a dense one stays."""
    is_dense = mask is not None and "dense" in mask.kinds()
    return device if is_dense else torch.device("cpu")


def bias_place(bias: Bias, rows: Piece, keys: Piece) -> tuple[Any, ...]:
    """Which part of the whole's bias tensor a pair's bias is."""
    if bias.kind != "dense":
        return (...,)
    shape = bias.tensor.shape
    at_rows = slice(None) if shape[2] == 1 else slice(*rows)
    return (slice(None), slice(None), at_rows, slice(None) if shape[3] == 1 else slice(*keys))


def _places(pieces: tuple[Piece, ...]) -> dict[Piece, int]:
    """Where each piece begins among what its rank holds."""
    found, reached = {}, 0
    for piece in pieces:
        found[piece] = reached
        reached += piece.length
    return found


def _cut_bias(bias: Bias | None, sizes: Sizes, rows: Piece, keys: Piece) -> Bias | None:
    if bias is None:
        return None
    part = bias.tensor[bias_place(bias, rows, keys)]
    return Bias(bias.kind, part, bias.place(sizes) + rows.start - keys.start)


def _cut_dropout(dropout: Dropout | None, rows: Piece, keys: Piece, head: int) -> Dropout | None:
    if dropout is None:
        return None
    return dropout._replace(first=(0, head, rows.start, keys.start))


def _cut_intervals(bounds: Tensor, rows: Piece, keys: Piece, device: torch.device) -> Mask | None:
    """The mask of a pair: None if all is visible, and `causal` where it is just that."""
    inside = (bounds - keys.start).clamp_(0, keys.length)
    low, high = inside[:, 0], inside[:, 1]
    counts = (high - low).clamp_(min=0)
    if bool((counts.sum(0) == keys.length).all()):
        return None
    kept = counts.flatten(1).any(1)
    inside, counts = inside[kept], counts[kept]
    upto = torch.arange(1, rows.length + 1) + (keys.length - rows.length)
    from_first = ((inside[:, 0] == 0) | (counts == 0)).all()
    if len(counts) == 1 and from_first and bool((counts[0] == upto.clamp_(0, keys.length)).all()):
        return causal()
    return RowIntervals(inside.to(device))


def _dense_part(seen: Visibility, rows: Piece, keys: Piece) -> Tensor:
    assert seen.dense is not None  # noqa: S101
    part = seen.dense if seen.dense.shape[2] == 1 else seen.dense[:, :, rows.start : rows.stop]
    return part if part.shape[3] == 1 else part[..., keys.start : keys.stop]


def _met(
    bounds: Tensor, group: Tensor, groups: int, pieces: tuple[Piece, ...] | list[Piece]
) -> Tensor:
    """Which groups of rows see anything of which pieces, bool `[groups, pieces]`.

    Args:
        bounds: Row intervals `[m, 2, B or 1, R]`.
        group: Of each row, int64 `[R]`.
        groups: How many.
        pieces: Of the keys, ascending.
    """
    starts = torch.tensor([piece.start for piece in pieces], dtype=torch.int32)
    stops = torch.tensor([piece.stop for piece in pieces], dtype=torch.int32)
    low, high = bounds[:, 0].contiguous(), bounds[:, 1].contiguous()
    first = torch.searchsorted(stops, low, right=True)  # the first piece that ends beyond low
    last = torch.searchsorted(starts, high)  # how many begin before high
    some = (high > low) & (last > first)
    # One more where an interval begins to touch pieces, one less where it ends: a running sum
    # counts the intervals that touch a piece.
    width = len(pieces) + 1
    change = torch.zeros(groups * width, dtype=torch.int64)
    row = (group * width).expand_as(low)
    change.index_add_(0, (row + first)[some], torch.ones_like(first[some]))
    change.index_add_(0, (row + last)[some], -torch.ones_like(last[some]))
    return change.view(groups, width).cumsum(1)[:, :-1] > 0
