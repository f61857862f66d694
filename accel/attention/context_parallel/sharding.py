"""Which positions of a sequence each rank holds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from accel.attention.context_parallel.ranks import RankGrid
from accel.distributed import all_gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class Piece(NamedTuple):
    """Positions `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many positions."""
        return self.stop - self.start


@dataclass(frozen=True)
class SequenceLayout:
    """Which positions of a sequence each rank holds: everything else is derived from it.

    A rank holds its pieces one after the other, in ascending order. A rank may hold nothing.

    Attributes:
        pieces: The pieces of every rank, which together cover the sequence once.

    Raises:
        ValueError: A piece is reversed, a rank's do not ascend, or they overlap or leave a gap.
    """

    pieces: tuple[tuple[Piece, ...], ...]

    def __post_init__(self) -> None:
        kept = tuple(
            tuple(Piece(*piece) for piece in mine if piece[0] != piece[1]) for mine in self.pieces
        )
        if not kept:
            raise ValueError("a layout needs at least one rank")
        object.__setattr__(self, "pieces", kept)
        for rank, mine in enumerate(kept):
            if any(b.start < a.stop for a, b in itertools.pairwise(mine)):
                raise ValueError(f"the pieces of rank {rank} must ascend, and are {mine}")
        reached = 0
        for piece in sorted(piece for mine in kept for piece in mine):
            if piece.start != reached or piece.stop < piece.start:
                raise ValueError(
                    f"the pieces of a layout must cover its sequence once: after position "
                    f"{reached} comes the piece {piece.start} to {piece.stop}"
                )
            reached = piece.stop

    def __str__(self) -> str:
        parts = ["+".join(f"{a}..{b}" for a, b in mine) or "nothing" for mine in self.pieces]
        return f"{self.length} positions: {', '.join(parts)}"

    @classmethod
    def contiguous(cls, length: int, ranks: int) -> SequenceLayout:
        """One piece each, of lengths that differ by at most one.

        A causal mask leaves the first ranks little to do and the last much: see `zigzag`.
        """
        _check(length, ranks)
        return cls(tuple((piece,) for piece in _cut(0, length, ranks)))

    @classmethod
    def zigzag(
        cls, length: int, ranks: int, *, documents: Sequence[int] | None = None
    ) -> SequenceLayout:
        """Of `2 * ranks` chunks, rank `r` holds chunks `r` and `2 * ranks - 1 - r`.

        Under a causal mask every rank then sees about as many keys (Brandon et al., Striped
        Attention, arXiv 2311.09431; the order of chunks is that of Llama 3, arXiv 2407.21783,
        section 3.3.2). The length need not be divisible.

        Args:
            length: Positions in all.
            ranks: Ranks in all.
            documents: `cu_seqlens`, from 0 to `length`: every document is cut by itself, which
                balances packed documents; pieces, and so kernel calls, are as many times more.
        """
        _check(length, ranks)
        bounds = [0, length] if documents is None else list(documents)
        if bounds[0] != 0 or bounds[-1] != length or sorted(bounds) != bounds:
            raise ValueError(f"documents must ascend from 0 to {length}, and are {bounds[:8]}")
        held: list[list[Piece]] = [[] for _ in range(ranks)]
        for start, stop in itertools.pairwise(bounds):
            chunks = _cut(start, stop, 2 * ranks)
            for rank, mine in enumerate(held):
                mine += _joined([chunks[rank], chunks[2 * ranks - 1 - rank]])
        return cls(tuple(tuple(_joined(mine)) for mine in held))

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> SequenceLayout:
        """One piece each, of these lengths, which may be 0."""
        if any(length < 0 for length in lengths):
            raise ValueError(f"lengths must be at least 0, and are {list(lengths)}")
        stops = [sum(lengths[: rank + 1]) for rank in range(len(lengths))]
        pieces = ((Piece(b - a, b),) for a, b in zip(lengths, stops, strict=True))
        return cls(tuple(pieces))

    @property
    def ranks(self) -> int:
        """How many ranks hold it."""
        return len(self.pieces)

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Positions that each rank holds."""
        return tuple(sum(piece.length for piece in mine) for mine in self.pieces)

    @functools.cached_property
    def length(self) -> int:
        """Positions in all."""
        return sum(self.lengths)

    def positions(self, rank: int, device: torch.device | str = "cpu") -> Tensor:
        """The positions a rank holds, int64 `[T_local]`: what rotary embeddings count by."""
        parts = [torch.arange(a, b, device=device) for a, b in self.pieces[rank]]
        return torch.cat(parts) if parts else torch.arange(0, device=device)

    def grouped(self, count: int) -> SequenceLayout:
        """The layout where each `count` successive ranks are one, which holds all their pieces.

        Raises:
            ValueError: The ranks do not divide.
        """
        if self.ranks % count:
            raise ValueError(f"{self.ranks} ranks do not make groups of {count}")
        groups = [self.pieces[i : i + count] for i in range(0, self.ranks, count)]
        return SequenceLayout(
            tuple(tuple(_joined(sorted(p for mine in group for p in mine))) for group in groups)
        )


def shard(
    tensor: Tensor,
    layout: SequenceLayout,
    mesh: DeviceMesh | ProcessGroup | None = None,
    *,
    dim: int = 2,
) -> Tensor:
    """This rank's part of a tensor that every rank has whole; nothing is communicated.

    Args:
        tensor: `layout.length` long in `dim`.
        layout: Of the sequence.
        mesh: As in `context_parallel_attention`; None: all processes.
        dim: Of the sequence; 2 for `[B, H, T, D]`.

    Returns:
        A copy, differentiable: its gradient is zero outside this rank's positions.

    Raises:
        ValueError: The length or the number of ranks is another.
    """
    grid = RankGrid.of(mesh)
    grid.check_layout(layout)
    if tensor.shape[dim] != layout.length:
        raise ValueError(
            f"the layout is of {layout.length} positions, but the tensor {tuple(tensor.shape)} has "
            f"{tensor.shape[dim]} in dimension {dim}"
        )
    parts = [tensor.narrow(dim, a, b - a) for a, b in layout.pieces[grid.rank]]
    return torch.cat(parts or [tensor.narrow(dim, 0, 0)], dim)


def unshard(
    tensor: Tensor,
    layout: SequenceLayout,
    mesh: DeviceMesh | ProcessGroup | None = None,
    *,
    dim: int = 2,
) -> Tensor:
    """The whole of a tensor of which every rank has a part.

    Args:
        tensor: This rank's part.
        layout: Of the sequence.
        mesh: As in `context_parallel_attention`; None: all processes.
        dim: Of the sequence.

    Returns:
        The same on every rank. Differentiable, as `accel.distributed.all_gather`: the gradient is
        that of the sum of all ranks' losses.

    Raises:
        ValueError: The length or the number of ranks is another.
    """
    grid = RankGrid.of(mesh)
    grid.check_layout(layout)
    dim = dim % tensor.dim()
    if tensor.shape[dim] != layout.lengths[grid.rank]:
        raise ValueError(
            f"rank {grid.rank} holds {layout.lengths[grid.rank]} positions of the layout, but the "
            f"tensor {tuple(tensor.shape)} has {tensor.shape[dim]} in dimension {dim}"
        )
    count, first = grid.ulysses_size, grid.ring_rank * grid.ulysses_size
    if count > 1:
        tensor = _gathered(tensor, layout.pieces[first : first + count], grid.ulysses, dim)
    if grid.ring_size > 1:
        tensor = _gathered(tensor, layout.grouped(count).pieces, grid.ring, dim)
    return tensor


def _gathered(
    tensor: Tensor, pieces: Sequence[Sequence[Piece]], group: ProcessGroup | None, dim: int
) -> Tensor:
    before, after = tensor.shape[:dim], tensor.shape[dim + 1 :]
    lengths = [sum(piece.length for piece in mine) for mine in pieces]
    parts = all_gather(tensor, group, shapes=[(*before, n, *after) for n in lengths])
    return in_order(parts, pieces, dim)


def in_order(parts: Sequence[Tensor], pieces: Sequence[Sequence[Piece]], dim: int) -> Tensor:
    """Parts of several ranks as one, by ascending positions."""
    found: list[tuple[int, Tensor]] = []
    for part, mine in zip(parts, pieces, strict=True):
        cut = part.split([piece.length for piece in mine], dim) if mine else ()
        found += [(piece.start, one) for piece, one in zip(mine, cut, strict=True)]
    ordered = [one for _, one in sorted(found, key=lambda pair: pair[0])]
    return torch.cat(ordered or list(parts[:1]), dim)


def apart(tensor: Tensor, pieces: Sequence[Sequence[Piece]], dim: int) -> list[Tensor]:
    """The inverse of `in_order`: what each rank holds of it."""
    ascending = sorted(piece for mine in pieces for piece in mine)
    cut = dict(zip(ascending, tensor.split([p.length for p in ascending], dim), strict=True))
    nothing = tensor.narrow(dim, 0, 0)
    return [torch.cat([cut[piece] for piece in mine] or [nothing], dim) for mine in pieces]


def _cut(start: int, stop: int, count: int) -> list[Piece]:
    """Pieces of lengths that differ by at most one, the longer first."""
    least, longer = divmod(stop - start, count)
    bounds = [start + i * least + min(i, longer) for i in range(count + 1)]
    return [Piece(a, b) for a, b in itertools.pairwise(bounds)]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Ascending pieces, with those that touch made one."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.length == 0:
            continue
        if found and found[-1].stop == piece.start:
            piece = Piece(found.pop().start, piece.stop)
        found.append(piece)
    return found


def _check(length: int, ranks: int) -> None:
    if length < 0 or ranks < 1:
        raise ValueError(f"a layout needs a length of 0 or more and a rank, not {length}, {ranks}")
