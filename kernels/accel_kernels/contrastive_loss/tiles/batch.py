"""A batch without its absent rows, and its logits tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.arguments import accumulation_dtype
from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing
from accel_kernels.contrastive_loss.tiles.pairs import KeyedPairs, Pairs
from accel_kernels.contrastive_loss.tiles.settings import Settings


class Tile(NamedTuple):
    """Logits of some rows and columns, in a buffer that the next tile overwrites.

    Attributes:
        rows: Of the batch.
        columns: Of the batch.
        logits: `[R, C]`; -inf where a pair counts for neither side.
        positive: Where its positives are; None: there are none.
        x_hidden: bool `[R, C]`, what besides does not count for the rows; None: nothing.
        y_hidden: The same for the columns.
    """

    rows: slice
    columns: slice
    logits: Tensor
    positive: Pairs | None
    x_hidden: Tensor | None
    y_hidden: Tensor | None


class Side(NamedTuple):
    """The rows of one side that take part.

    Attributes:
        kept: Their places among all rows; None: all.
        total: How many rows there are.
        values: `[n, D]`, in the accumulation dtype.
    """

    kept: Tensor | None
    total: int
    values: Tensor

    def taken(self, vector: Tensor) -> Tensor:
        """The entries of a vector or matrix over all rows that belong to these."""
        return vector if self.kept is None else vector[self.kept]

    def given_back(self, values: Tensor, empty: float) -> Tensor:
        """Values of these rows among all; the others are `empty`."""
        if self.kept is None:
            return values
        whole = values.new_full((self.total, *values.shape[1:]), empty)
        whole[self.kept] = values
        return whole


def side_of(rows: Tensor, takes_part: Tensor) -> Side:
    """The rows of `rows [N, D]` that take part, bool `[N]`."""
    kept = None if bool(takes_part.all()) else takes_part.nonzero()[:, 0]
    values = rows if kept is None else rows[kept]
    return Side(kept, rows.shape[0], values.to(accumulation_dtype(rows.dtype)).contiguous())


class Batch:
    """Both sides, and what of a pairing concerns them.

    Args:
        settings: Sizes of tiles.
        x: Rows.
        y: Columns.
        scale: `[]`.
        pairing: Of all rows and columns.
    """

    def __init__(
        self, settings: Settings, x: Side, y: Side, scale: Tensor, pairing: Pairing
    ) -> None:
        self.x, self.y, self.scale = x, y, float(scale.detach())
        self.hardness = float(pairing.hardness)
        self._settings = settings
        sizes = settings.rows, settings.columns
        samples = x.taken(pairing.x_sample), y.taken(pairing.y_sample)
        self._partners = KeyedPairs(*samples, sizes)
        self._alike: KeyedPairs | None = None
        self._duplicates = pairing.duplicates
        if pairing.x_group is not None and pairing.y_group is not None:
            x_group, y_group = x.taken(pairing.x_group), y.taken(pairing.y_group)
            if pairing.duplicates != "negative":
                # Two numbers that are never equal stand for what is in no group.
                self._alike = KeyedPairs(
                    x_group.masked_fill(x_group < 0, -1),
                    y_group.masked_fill(y_group < 0, -2),
                    sizes,
                )
        self._samples, self._guide = samples, pairing.guide
        high = min(settings.rows, len(x.values)) * min(settings.columns, len(y.values))
        self._buffer = x.values.new_empty(high)

    @property
    def is_guided(self) -> bool:
        """Rows and columns may leave out different pairs."""
        return self._guide is not None

    def row_blocks(self) -> Iterator[slice]:
        """Blocks of rows, one after another."""
        return _blocks(len(self.x.values), self._settings.rows)

    def column_blocks(self) -> Iterator[slice]:
        """Blocks of columns, one after another."""
        return _blocks(len(self.y.values), self._settings.columns)

    def largest_logit(self) -> float:
        """A bound of the size of all logits (Cauchy-Schwarz); may be infinite or NaN."""
        if not len(self.x.values) or not len(self.y.values):
            return 0.0
        lengths = [torch.linalg.vector_norm(side.values, dim=1).max() for side in (self.x, self.y)]
        return (abs(self.scale) + self.hardness) * float(lengths[0]) * float(lengths[1])

    def tiles(self) -> Iterator[Tile]:
        """Every tile once, by rows."""
        for rows in self.row_blocks():
            scaled = self.scaled(rows)
            for columns in self.column_blocks():
                yield self.tile(rows, columns, scaled)

    def scaled(self, rows: slice) -> Tensor:
        """What `tile` multiplies the columns with."""
        values = self.x.values[rows]
        return values if self.hardness else values * self.scale

    def scratch(self) -> Tensor:
        """Another buffer as long as that of the logits."""
        return torch.empty_like(self._buffer)

    def tile(self, rows: slice, columns: slice, scaled: Tensor) -> Tile:
        """Logits of one tile."""
        y = self.y.values[columns]
        logits = shaped(self._buffer, len(scaled), len(y))
        torch.mm(scaled, y.T, out=logits)
        positive = self._partners.of_tile(rows, columns)
        alike = None if self._alike is None else self._alike.of_tile(rows, columns)
        if alike is not None:
            alike = self._without_partners(alike, rows, columns)
            if self._duplicates == "positive":
                positive = _joined(positive, alike)
        if self.hardness:
            products = None if positive is None else logits[positive]
            logits.mul_(self.scale + self.hardness)
            if positive is not None and products is not None:
                logits[positive] = products * self.scale
        if alike is not None and self._duplicates == "ignore":
            logits[alike] = -torch.inf
        return Tile(rows, columns, logits, positive, *self._hidden(rows, columns, positive))

    def _without_partners(self, pairs: Pairs, rows: slice, columns: slice) -> Pairs:
        x_sample, y_sample = self._samples[0][rows], self._samples[1][columns]
        others = x_sample[pairs[0]] != y_sample[pairs[1]]
        return pairs[0][others], pairs[1][others]

    def _hidden(
        self, rows: slice, columns: slice, positive: Pairs | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the guide leaves out for rows and for columns as anchors."""
        if self._guide is None:
            return None, None
        wide = self.x.values.dtype
        x, y = _some(self.x, self._guide.x, rows), _some(self.y, self._guide.y, columns)
        similarity = x.to(wide) @ y.to(wide).T
        x_hidden = similarity > _some(self.x, self._guide.x_threshold, rows)[:, None]
        y_hidden = similarity > _some(self.y, self._guide.y_threshold, columns)
        if positive is not None:
            x_hidden[positive] = False
            y_hidden[positive] = False
        return x_hidden, y_hidden


def without_absent(
    settings: Settings, x: Tensor, y: Tensor, scale: Tensor, pairing: Pairing
) -> Batch:
    """The batch of all rows that are there."""
    sides = side_of(x, pairing.x_sample != ABSENT), side_of(y, pairing.y_sample != ABSENT)
    return Batch(settings, *sides, scale, pairing)


def shaped(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """The beginning of a buffer as a matrix."""
    return buffer[: rows * columns].view(rows, columns)


def _blocks(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _some(side: Side, values: Tensor, places: slice) -> Tensor:
    return values[places] if side.kept is None else values[side.kept[places]]


def _joined(one: Pairs | None, other: Pairs) -> Pairs:
    if one is None:
        return other
    return torch.cat((one[0], other[0])), torch.cat((one[1], other[1]))
