"""Sums of the softmax loss: one pass over the tiles, one exponential for both directions.

With one constant `k` subtracted from all logits, the sums of `exp(logit - k)` over rows and over
columns come from the same numbers. That is exact in floating point as long as no sum overflows,
which `k` is chosen for, and none is so small that terms have been lost to underflow, which is
looked at afterwards: blocks with such rows are gone through again, with a running maximum for each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import SoftmaxSums
from accel_kernels.contrastive_loss.tiles.batch import Batch, Tile, without_absent
from accel_kernels.contrastive_loss.tiles.settings import Settings

# Natural logarithms that are kept from the largest number of a dtype, and the factor by which a sum
# must exceed the smallest normal one: underflow then took less than its rounding of it, whatever
# the number of terms, up to a million.
_MARGIN, _TRUSTED = 3.0, 1e14
# Binary digits of a float32.
_DIGITS = 24


class _Sums:
    """Running sums of one direction, of the rows that take part."""

    def __init__(self, rows: int, reference: Tensor) -> None:
        self.powers = reference.new_zeros(rows)
        self.positive = reference.new_zeros(rows)
        self.count = reference.new_zeros(rows)
        self.reference = reference

    def add_positives(self, places: Tensor, logits: Tensor) -> None:
        away = logits - self.reference[places]
        self.positive.index_add_(0, places, away)
        self.count.index_add_(0, places, torch.ones_like(away))


def sums(
    settings: Settings,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_reference: Tensor,
    y_reference: Tensor,
    pairing: Pairing,
) -> SoftmaxSums:
    """See `passes.SoftmaxPass`."""
    batch = without_absent(settings, x, y, scale, pairing)
    shift = _shift(batch)
    rows = _Sums(len(batch.x.values), batch.x.taken(x_reference))
    columns = _Sums(len(batch.y.values), batch.y.taken(y_reference))
    scratch = batch.scratch() if batch.is_guided else None
    for tile in batch.tiles():
        if tile.positive is not None:
            logits = tile.logits[tile.positive]
            rows.add_positives(tile.positive[0] + tile.rows.start, logits)
            columns.add_positives(tile.positive[1] + tile.columns.start, logits)
        _add_powers(settings, tile, shift, rows.powers, columns.powers, scratch)
    x_lse = _log(settings, rows, shift)
    y_lse = _log(settings, columns, shift)
    _mend_rows(batch, rows, x_lse)
    _mend_columns(batch, columns, y_lse)
    return SoftmaxSums(
        batch.x.given_back(x_lse, -torch.inf),
        batch.y.given_back(y_lse, -torch.inf),
        batch.x.given_back(rows.positive, 0.0),
        batch.y.given_back(columns.positive, 0.0),
        batch.x.given_back(rows.count, 0.0),
        batch.y.given_back(columns.count, 0.0),
    )


def _shift(batch: Batch) -> float:
    """A whole number, so that subtracting it from large logits is exact; 0 where it can be.

    It has no more digits than a dtype of logits: rounded it would be another one.
    """
    longest = max(len(batch.x.values), len(batch.y.values), 1)
    most = math.log(torch.finfo(batch.x.values.dtype).max) - math.log(longest) - _MARGIN
    over = batch.largest_logit() - most
    if not 0.0 < over < math.inf:
        return 0.0
    step = 2.0 ** max(0, math.frexp(over)[1] - _DIGITS)
    return math.ceil(over / step) * step


def _add_powers(
    settings: Settings,
    tile: Tile,
    shift: float,
    rows: Tensor,
    columns: Tensor,
    scratch: Tensor | None,
) -> None:
    rows, columns = rows[tile.rows], columns[tile.columns]
    if tile.x_hidden is None or tile.y_hidden is None or scratch is None:
        settings.elementwise.exp_sums(tile.logits, shift, rows, columns)
        return
    # Each direction leaves out other pairs: twice, and one of the sums is not used.
    unused = torch.empty_like(rows), torch.empty_like(columns)
    copy = scratch[: tile.logits.numel()].view_as(tile.logits).copy_(tile.logits)
    copy.masked_fill_(tile.x_hidden, -torch.inf)
    settings.elementwise.exp_sums(copy, shift, rows, unused[1])
    tile.logits.masked_fill_(tile.y_hidden, -torch.inf)
    settings.elementwise.exp_sums(tile.logits, shift, unused[0], columns)


def _log(settings: Settings, sums: _Sums, shift: float) -> Tensor:
    """In float64, where the difference of two large numbers keeps what is left of it."""
    powers, reference = settings.wide(sums.powers), settings.wide(sums.reference)
    return (powers.log() + (shift - reference)).to(sums.powers)


def _untrusted(sums: _Sums) -> Tensor:
    finfo = torch.finfo(sums.powers.dtype)
    return ~((sums.powers > finfo.tiny * _TRUSTED) & (sums.powers < finfo.max))


def _mend_rows(batch: Batch, sums: _Sums, lse: Tensor) -> None:
    """Compute anew, with running maxima, the blocks with rows whose sum says too little."""
    wrong = _untrusted(sums)
    if not bool(wrong.any()):
        return
    for rows in batch.row_blocks():
        if not bool(wrong[rows].any()):
            continue
        scaled = batch.scaled(rows)
        running = torch.full_like(lse[rows], -torch.inf)
        for columns in batch.column_blocks():
            tile = batch.tile(rows, columns, scaled)
            if tile.x_hidden is not None:
                tile.logits.masked_fill_(tile.x_hidden, -torch.inf)
            away = tile.logits.sub_(sums.reference[rows, None])
            running = torch.logaddexp(running, away.logsumexp(1))
        lse[rows] = torch.where(wrong[rows], running, lse[rows])


def _mend_columns(batch: Batch, sums: _Sums, lse: Tensor) -> None:
    wrong = _untrusted(sums)
    if not bool(wrong.any()):
        return
    for columns in batch.column_blocks():
        if not bool(wrong[columns].any()):
            continue
        running = torch.full_like(lse[columns], -torch.inf)
        for rows in batch.row_blocks():
            tile = batch.tile(rows, columns, batch.scaled(rows))
            if tile.y_hidden is not None:
                tile.logits.masked_fill_(tile.y_hidden, -torch.inf)
            away = tile.logits.sub_(sums.reference[columns])
            running = torch.logaddexp(running, away.logsumexp(0))
        lse[columns] = torch.where(wrong[columns], running, lse[columns])
