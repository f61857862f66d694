"""Gradients of the softmax loss's sums: one pass, in which the logits are computed once more.

A logit's gradient is `g_i exp(z_ij - X_i) + h_j exp(z_ij - Y_j)`, with `X` and `Y` the log-sum-exps
of rows and columns and `g` and `h` their gradients. Where those of a tile are near enough to a
number `k`, that is `exp(z_ij - k) (g_i exp(k - X_i) + h_j exp(k - Y_j))`: one exponential for an
element, and exact but for rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing
from accel_kernels.contrastive_loss.passes import InputGradients, SoftmaxGradients
from accel_kernels.contrastive_loss.tiles.accumulation import Accumulated
from accel_kernels.contrastive_loss.tiles.batch import Batch, Side, Tile, shaped, side_of
from accel_kernels.contrastive_loss.tiles.settings import Settings

# Log-sum-exps that are at most twice this share of a dtype's range of exponents apart have one
# constant: what then underflows has a probability below 1e-16 (float32).
_SHARE = 0.57


class _Anchors(NamedTuple):
    """One direction's rows that take part.

    Attributes:
        total: `[n]` float64, log-sum-exps of their logits; 0 for a row without gradient.
        gradient: `[n]` float64, of the log-sum-exp.
        active: bool `[n]`, where that is not 0.
        positive: `[n]`, gradient of the sum of positives.
    """

    total: Tensor
    gradient: Tensor
    active: Tensor
    positive: Tensor

    def bounds(self, places: slice) -> tuple[float, float]:
        """Least and greatest log-sum-exp of the rows with a gradient."""
        found = self.total[places][self.active[places]]
        return (float(found.min()), float(found.max())) if len(found) else (math.inf, -math.inf)

    def factors(self, places: slice, shift: float, like: Tensor) -> Tensor:
        """`gradient * exp(shift - total)`, of the dtype and device of `like`."""
        return (self.gradient[places] * (shift - self.total[places]).exp()).to(like)


def gradients(
    settings: Settings,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    references: tuple[Tensor, Tensor],
    pairing: Pairing,
    lses: tuple[Tensor, Tensor],
    given: SoftmaxGradients,
) -> InputGradients:
    """See `passes.SoftmaxBackwardPass`; `references` and `lses` are of rows and columns."""
    sides = _sides(x, y, pairing, lses, given)
    batch = Batch(settings, *sides, scale, pairing)
    positives = given.x_positive, given.y_positive
    unit = _unit(sides, given)
    anchors = [
        _anchors(settings, *parts, unit)
        for parts in zip(sides, references, lses, given[:2], positives, strict=True)
    ]
    weigh = _Weights(settings, batch, *anchors)
    found = Accumulated(batch)
    for tile in batch.tiles():
        weigh(tile)
        found.add(tile)
    return found.result(unit)


def _sides(
    x: Tensor,
    y: Tensor,
    pairing: Pairing,
    lses: tuple[Tensor, Tensor],
    given: SoftmaxGradients,
) -> tuple[Side, Side]:
    """Without rows that are absent, or that no gradient comes from, whatever they hold."""
    present = pairing.x_sample != ABSENT, pairing.y_sample != ABSENT
    wanted = [
        there & (((gradient != 0) & (lse != -torch.inf)) | (positive != 0))
        for there, gradient, lse, positive in zip(present, given[:2], lses, given[2:], strict=True)
    ]
    takes_part = [
        there & (own | other.any())
        for there, own, other in zip(present, wanted, reversed(wanted), strict=True)
    ]
    return side_of(x, takes_part[0]), side_of(y, takes_part[1])


def _unit(sides: tuple[Side, Side], given: SoftmaxGradients) -> float:
    """A power of two near the largest gradient: divided by it, none vanishes in an exponential."""
    largest = 0.0
    for side, gradient in zip((*sides, *sides), given, strict=True):
        taken = side.taken(gradient)
        if len(taken):
            largest = max(largest, float(taken.abs().max()))
    if not 0.0 < largest < math.inf:
        return 1.0
    return 2.0 ** math.floor(math.log2(largest))


def _anchors(
    settings: Settings,
    side: Side,
    reference: Tensor,
    lse: Tensor,
    gradient: Tensor,
    positive: Tensor,
    unit: float,
) -> _Anchors:
    reference, lse, gradient = (
        settings.wide(side.taken(vector)) for vector in (reference, lse, gradient)
    )
    active = (gradient != 0) & (lse != -torch.inf)
    total = torch.where(active, reference + lse, 0.0)
    gradient = torch.where(active, gradient / unit, 0.0)
    return _Anchors(total, gradient, active, side.taken(positive) / unit)


class _Weights:
    """Replaces the logits of tiles by their gradients."""

    def __init__(self, settings: Settings, batch: Batch, rows: _Anchors, columns: _Anchors) -> None:
        self._elementwise = settings.elementwise
        self._rows, self._columns = rows, columns
        self._scratch = batch.scratch()
        finfo = torch.finfo(self._scratch.dtype)
        self._reach = _SHARE * -math.log(finfo.tiny)
        self._whole = 1.0 / finfo.eps
        self._most, self._bound = math.log(finfo.max) - 1.0, batch.largest_logit()
        everything = slice(None)
        self._shift = self._common(rows.bounds(everything), columns.bounds(everything))
        if self._shift is None:  # each tile may have its own
            self._row_bounds = {block.start: rows.bounds(block) for block in batch.row_blocks()}
            self._column_bounds = {
                block.start: columns.bounds(block) for block in batch.column_blocks()
            }
        else:  # one for all tiles
            self._factors = [
                anchors.factors(everything, self._shift, self._scratch)
                for anchors in (rows, columns)
            ]

    def __call__(self, tile: Tile) -> None:
        """Exact but for rounding, whatever the logits are."""
        shift = self._shift
        if shift is None:
            shift = self._common(
                self._row_bounds[tile.rows.start], self._column_bounds[tile.columns.start]
            )
        if shift is None:
            self._apart(tile)
        else:
            self._together(tile, shift)
        if tile.positive is not None:
            rows, columns = tile.positive
            added = self._rows.positive[tile.rows][rows]
            added = added + self._columns.positive[tile.columns][columns]
            tile.logits[tile.positive] += added

    def _common(self, rows: tuple[float, float], columns: tuple[float, float]) -> float | None:
        """What can be subtracted from all logits; None: no one number."""
        low, high = min(rows[0], columns[0]), max(rows[1], columns[1])
        if low == math.inf:
            return 0.0  # no row has a gradient
        middle = (low + high) / 2
        # False for NaN. A greater number is not whole in the dtype of logits, and rounded apart.
        fits = high - low <= 2 * self._reach and abs(middle) < self._whole
        return float(round(middle)) if fits else None

    def _together(self, tile: Tile, shift: float) -> None:
        logits = tile.logits
        if self._shift is None:
            rows = self._rows.factors(tile.rows, shift, logits)
            columns = self._columns.factors(tile.columns, shift, logits)
        else:
            rows, columns = self._factors[0][tile.rows], self._factors[1][tile.columns]
        if not self._bound - shift <= self._most:
            # Pairs without a gradient in either direction, which could become infinity times 0.
            logits.clamp_(max=self._most + shift)
        scratch = shaped(self._scratch, *logits.shape)
        if tile.x_hidden is None or tile.y_hidden is None:
            self._elementwise.weigh(logits, shift, rows, columns, scratch)
            return
        torch.mul(tile.x_hidden.logical_not(), rows[:, None], out=scratch)
        scratch.add_(tile.y_hidden.logical_not() * columns)
        logits.sub_(shift).exp_().mul_(scratch)

    def _apart(self, tile: Tile) -> None:
        """Each direction with exponentials of its own."""
        logits = tile.logits
        scratch = shaped(self._scratch, *logits.shape)
        for values, anchors, places, dim, hidden in (
            (scratch.copy_(logits), self._rows, tile.rows, 1, tile.x_hidden),
            (logits, self._columns, tile.columns, 0, tile.y_hidden),
        ):
            total, active = anchors.total[places], anchors.active[places]
            # In two parts, so that subtracting a large one loses nothing.
            whole = total.round().to(values)
            values.sub_(whole.unsqueeze(dim))
            values.sub_((total - whole.to(total)).to(values).unsqueeze(dim)).exp_()
            values.mul_(anchors.gradient[places].to(values).unsqueeze(dim))
            unused = ~active.to(values.device).unsqueeze(dim)
            values.masked_fill_(unused if hidden is None else unused | hidden, 0.0)
        logits.add_(scratch)
