"""What each kernel touches and needs beside inputs and results, from sizes alone.

Read off the kernels, term by term; where a kernel runs on a CPU its terms are held against measured
peaks by tests/test_attention_plan.py. A kernel of another package is in no table here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import Sizes, Visibility, row_bounds
from accel_kernels.segmented_attention import cpu, flex, reference
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.cpu import fused
from accel_kernels.segmented_attention.cpu import runs as cpu_runs
from accel_kernels.segmented_attention.cpu import tiles as cpu_tiles
from accel_kernels.segmented_attention.npu_fusion import job as npu_job
from accel_kernels.segmented_attention.npu_fusion import limits as npu_limits
from accel_kernels.segmented_attention.npu_fusion import pieces as npu_pieces
from accel_kernels.segmented_attention.state import accumulation_dtype
from accel_kernels.segmented_attention.tiles import EMPTY, FULL, tile_kinds

_MB = 1_000_000
# Cells of a table of tile kinds that are in memory at once.
_CELLS = 1 << 22


class Asked(NamedTuple):
    """A call without its tensors.

    Attributes:
        sizes: Batch, query heads, query length and key length.
        key_heads: Of keys and values.
        head_size: Of query and key.
        value_size: Of values and output.
        dtype: Of the three.
        call: Its other arguments.
        seen: What its mask lets see, on the CPU unless a tensor in the mask is elsewhere.
        needs_grad: Whether a backward follows.
    """

    sizes: Sizes
    key_heads: int
    head_size: int
    value_size: int
    dtype: torch.dtype
    call: Call
    seen: Visibility
    needs_grad: bool

    @property
    def element(self) -> int:
        """Bytes of an element of the inputs."""
        return self.dtype.itemsize

    @property
    def wide(self) -> int:
        """Bytes of an element of the sums."""
        return accumulation_dtype(self.dtype).itemsize

    @property
    def rows(self) -> int:
        """Query rows over batch and heads."""
        return self.sizes.batch * self.sizes.heads * self.sizes.query_length

    @property
    def key_rows(self) -> int:
        """Key rows over batch and key heads."""
        return self.sizes.batch * self.key_heads * self.sizes.key_length

    @property
    def gradients(self) -> int:
        """Elements of the gradients of query, key and value."""
        return self.rows * self.head_size + self.key_rows * (self.head_size + self.value_size)


class Tiles(NamedTuple):
    """What a kernel's plan touches in one direction.

    Attributes:
        full: Tiles of which every score is seen.
        partial: Tiles of which some scores are seen.
        empty: Tiles of its grid that it leaves out; None where it has no grid, but cuts what is
            seen.
        scores: Scores of the tiles that it touches, over batch and heads.
    """

    full: int
    partial: int
    empty: int | None
    scores: int


class Workspace(NamedTuple):
    """Bytes at the peak of each direction.

    Attributes:
        forward: Beside inputs, output and log-sum-exp.
        backward: Beside these and the gradients; 0 if there is no backward.
    """

    forward: int
    backward: int


def workspace(name: str, asked: Asked) -> Workspace | None:
    """What a kernel needs, in bytes; None for a kernel that is not of this package."""
    formula = _BYTES.get(name)
    if formula is None:
        return None
    if 0 in asked.sizes:
        return Workspace(0, 0)
    found = formula(asked)
    return found if asked.needs_grad else Workspace(found.forward, 0)


def touched(name: str, asked: Asked) -> tuple[Tiles, Tiles] | None:
    """The tiles of a kernel's forward and backward; None where they are not ours to know."""
    plan = _TILES.get(name)
    if plan is None:
        return None
    if 0 in asked.sizes:
        return Tiles(0, 0, 0, 0), Tiles(0, 0, 0, 0)
    return plan(asked)


# --- tiles --------------------------------------------------------------------------------------


def grid_tiles(seen: Visibility, sizes: Sizes, rows: int, keys: int) -> Tiles:
    """The tiles of a grid, counted as `tile_kinds` tells them, in time linear in the length.

    Args:
        seen: What is visible.
        sizes: Of the call, none of them 0.
        rows: Queries of a tile.
        keys: Keys of a tile.
    """
    if seen.dense is not None:
        entries = list(tile_kinds(seen, sizes, rows, keys).unbind(0))
        chunks = [(0, entry) for entry in entries]
    else:
        bounds = _joined(row_bounds(seen, sizes, torch.device("cpu")).cpu())
        entries = list(bounds.unbind(2))
        chunks = [part for entry in entries for part in _kinds(entry, sizes, rows, keys)]
    missing = -sizes.key_length % keys  # of the last column of tiles
    full = seen_tiles = all_tiles = scores = 0
    for first, kinds in chunks:
        kinds = kinds.cpu()
        some = kinds != EMPTY
        height = sizes.query_length - torch.arange(first, first + len(kinds)) * rows
        width = some.sum(1) * keys - some[:, -1] * missing
        scores += int((height.clamp(max=rows) * width).sum())
        full += int((kinds == FULL).sum())
        seen_tiles += int(some.sum())
        all_tiles += some.numel()
    shared = sizes.batch // len(entries)
    partial = seen_tiles - full
    return Tiles(full, partial, all_tiles - seen_tiles, scores * shared * sizes.heads)


def _joined(bounds: Tensor) -> Tensor:
    """Row intervals `[m, 2, B or 1, T]`, those of a row that touch made one."""
    if len(bounds) == 1:
        return bounds
    low, high = bounds.unbind(1)
    empty = high <= low
    low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
    low, order = torch.sort(low, dim=0, stable=True)
    high = high.gather(0, order)
    for n in range(1, len(low)):
        meets = (low[n] == high[n - 1]) & (high[n - 1] > low[n - 1]) & (high[n] > low[n])
        low[n] = torch.where(meets, low[n - 1], low[n])
        for bound in (low, high):
            bound[n - 1] = bound[n - 1].masked_fill(meets, 0)
    return torch.stack((low, high), 1)


def _kinds(bounds: Tensor, sizes: Sizes, rows: int, keys: int) -> list[tuple[int, Tensor]]:
    """Kinds of the tiles of one entry's intervals `[m, 2, T]`, some rows of tiles at a time.

    Each interval adds one where its tiles begin and takes it away behind them; sums along the row
    of tiles then count the query rows that see something, or all, of a tile.
    """
    columns = -(-sizes.key_length // keys)
    at_once = max(1, _CELLS // (columns + 1))
    found = []
    for first in range(0, -(-sizes.query_length // rows), at_once):
        low, high = bounds[..., first * rows : (first + at_once) * rows].unbind(1)
        empty = high <= low  # their tiles are none, unlike those of any other row
        low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
        length = low.shape[-1]
        blocks = -(-length // rows)
        some = torch.zeros((blocks, columns + 1), dtype=torch.int32)
        whole = torch.zeros_like(some)
        for lower, upper in zip(low, high, strict=True):
            past = (upper + (keys - 1)) // keys
            last = torch.where(upper == sizes.key_length, past, upper // keys)
            ranges = torch.stack((lower // keys, past, (lower + (keys - 1)) // keys, last))
            # Neighbours mostly have the same tiles: one stands for all.
            changes = (ranges[:, 1:] != ranges[:, :-1]).any(0)
            changes[rows - 1 :: rows] = True
            places = torch.cat((torch.zeros(1, dtype=torch.int64), changes.nonzero().view(-1) + 1))
            counts = torch.diff(places, append=torch.tensor([length]))
            _cover(some, places // rows, ranges[0, places], ranges[1, places], counts)
            _cover(whole, places // rows, ranges[2, places], ranges[3, places], counts)
        height = (length - torch.arange(blocks) * rows).clamp(max=rows).unsqueeze(1)
        some, whole = (t.cumsum_(1)[:, :columns] for t in (some, whole))
        found.append((first, (some > 0).to(torch.uint8) + (whole == height).to(torch.uint8)))
    return found


def _cover(table: Tensor, block: Tensor, first: Tensor, last: Tensor, counts: Tensor) -> None:
    """Note that `counts` rows of a block have the range `[first, last)`, if it is not empty."""
    counts = (counts * (last > first)).to(table.dtype)
    table.index_put_((block, first), counts, accumulate=True)
    table.index_put_((block, torch.maximum(first, last)), -counts, accumulate=True)


def _reference_side(asked: Asked) -> int:
    return asked.call.segment_size or reference.DEFAULT_SEGMENT_SIZE


def _reference_tiles(asked: Asked) -> tuple[Tiles, Tiles]:
    return _both(asked, _reference_side(asked))


def _both(asked: Asked, side: int) -> tuple[Tiles, Tiles]:
    """The same grid of square tiles in both directions."""
    found = grid_tiles(asked.seen, asked.sizes, side, side)
    return found, found


def _cpu_uses_formula(asked: Asked) -> bool:
    call = asked.call
    return call.softcap is not None or call.bias is not None or call.dropout is not None


def _cpu_side(asked: Asked) -> int:
    """As `cpu_tiles` has it."""
    heads = asked.sizes.heads
    fitting = [s for s in cpu_tiles.SIDES if heads * s * s <= cpu_tiles.SCORES]
    side = fitting[0] if fitting else cpu_tiles.SIDES[-1]
    return min(side, asked.call.segment_size or side)


def _cpu_runs(asked: Asked, backward: bool) -> tuple[cpu_runs.Run, ...]:
    """The cpu kernel's plan of a direction: a backward without a segment size has a limit."""
    limit = asked.call.segment_size
    if backward and limit is None:
        limit = cpu.BACKWARD_TILE if asked.sizes.heads > 1 else cpu.BACKWARD_TILE_ONE_HEAD
    return cpu_runs.plan(asked.call.mask, asked.seen, asked.sizes, limit)


def _cpu_tiles(asked: Asked) -> tuple[Tiles, Tiles]:
    if _cpu_uses_formula(asked):
        found, _ = _both(asked, _cpu_side(asked))
        # It walks entry by entry, also where a mask is the same for all.
        alike = asked.sizes.batch if _mask_entries(asked.seen) == 1 else 1
        full, partial, empty = found.full * alike, found.partial * alike, found.empty or 0
        found = Tiles(full, partial, empty * alike, found.scores)
        return found, found
    return _tiles_of(asked, _cpu_runs(asked, False)), _tiles_of(asked, _cpu_runs(asked, True))


def _tiles_of(asked: Asked, runs: tuple[cpu_runs.Run, ...]) -> Tiles:
    full = partial = scores = 0
    batch, heads = asked.sizes[:2]
    for run in runs:
        many = run.tiles
        full, partial = (full + many, partial) if run.kind == "full" else (full, partial + many)
        scores += many * run.rows * run.keys * heads * (batch if run.batch is None else 1)
    return Tiles(full, partial, None, scores)


def _mask_entries(seen: Visibility) -> int:
    """Entries of the batch that a mask tells apart."""
    intervals = 1 if seen.intervals is None else seen.intervals.shape[2]
    return max(intervals, 1 if seen.dense is None else seen.dense.shape[0])


def _npu_fusion_tiles(asked: Asked) -> tuple[Tiles, Tiles]:
    """Its pieces: bands in one call each, before the limits of a call cut them."""
    side = _npu_side(asked)
    full = partial = scores = 0
    for piece in npu_pieces.pieces_of(asked.seen, asked.sizes, side):
        is_full = piece.lower is None and piece.upper is None and not piece.masked
        full, partial = full + is_full, partial + (not is_full)
        many = (piece.batch[1] - piece.batch[0]) * (piece.heads[1] - piece.heads[0])
        scores += many * (piece.q1 - piece.q0) * (piece.k1 - piece.k0)
    return (Tiles(full, partial, None, scores),) * 2


def _npu_side(asked: Asked) -> int:
    """Of a tile with a mask, or a bias, of its own; as `npu_job` has it."""
    most = npu_limits.SIDE if asked.call.bias is None else npu_limits.BIAS_SIDE
    fitting = math.isqrt(npu_job.TILE_ELEMENTS // (asked.sizes.batch * asked.sizes.heads))
    side = max(npu_job.LEAST_SIDE, min(most, fitting))
    return min(side, asked.call.segment_size or side)


def _flex_tiles(asked: Asked) -> tuple[Tiles, Tiles]:
    return _both(asked, flex.block_size(asked.sizes))


_TILES: dict[str, Callable[[Asked], tuple[Tiles, Tiles]]] = {
    "reference": _reference_tiles,
    "cpu": _cpu_tiles,
    "flex": _flex_tiles,
    "npu_fusion": _npu_fusion_tiles,
}


# --- bytes --------------------------------------------------------------------------------------


def _score_bytes(asked: Asked, plain: int, softcap: int, bias: int, dropout: int) -> int:
    """Bytes for each score of a tile: how many tensors of its size live at once."""
    call = asked.call
    used = plain
    used += softcap if call.softcap is not None else 0
    used += bias if call.bias is not None else 0
    used += dropout if call.dropout is not None else 0
    return used * asked.wide // 4


def _bias_sum(asked: Asked) -> int:
    """The gradient of a bias while it is summed."""
    bias = asked.call.bias
    return 0 if bias is None else bias.tensor.numel() * asked.wide


def _reference_bytes(asked: Asked) -> Workspace:
    sizes, wide = asked.sizes, asked.wide
    side = _reference_side(asked)
    scores = min(side, sizes.query_length) * min(side, sizes.key_length)
    alone = _mask_entries(asked.seen) > 1
    scores *= sizes.heads * (1 if alone else sizes.batch)
    # The sum, its quotient, the zeros beside it and the choice between them; maxima and sums.
    totals = asked.rows * wide * (4 * asked.value_size + 6)
    # Scores, scaled, chosen, exponentiated; a cap and its slope; distances in int64, the bias and
    # its sum; random words in int64, what is kept, its factor and the product.
    # In glibc's heap, which takes what is smaller than 32 MiB, what comes and goes leaves holes.
    holes = 28 if scores * wide < 1 << 25 else 0
    forward = (
        totals + scores * _score_bytes(asked, 28 + holes // 3, 12, 24, 24) + _bounds_bytes(asked)
    )
    # Sums in a wider dtype beside the gradients in their own, the output times its gradient.
    sums = 0 if wide == asked.element else asked.gradients * wide
    products = asked.rows * wide * (3 * asked.value_size + 4)
    backward = sums + products + _bias_sum(asked) + _bounds_bytes(asked)
    backward += scores * _score_bytes(asked, 36 + holes, 12, 24, 16)
    return Workspace(forward + 4 * _MB, backward + 4 * _MB)


def _bounds_bytes(asked: Asked) -> int:
    """Row intervals in int32 and, while tiles are told apart, in int64."""
    count = 1 if asked.seen.intervals is None else asked.seen.intervals.shape[0]
    return count * _mask_entries(asked.seen) * asked.sizes.query_length * 2 * (4 + 8)


def _cpu_bytes(asked: Asked) -> Workspace:
    return _cpu_formula_bytes(asked) if _cpu_uses_formula(asked) else _cpu_aten_bytes(asked)


def _cpu_formula_bytes(asked: Asked) -> Workspace:
    sizes = asked.sizes
    side = _cpu_side(asked)
    scores = min(side, sizes.query_length) * min(side, sizes.key_length) * sizes.heads
    # As for the reference, mostly in place. Twice that, since glibc's heap has holes where tensors
    # of many sizes come and go.
    forward = scores * _score_bytes(asked, 36, 12, 24, 40) + _bounds_bytes(asked)
    sums = 0 if asked.wide == asked.element else asked.gradients * asked.wide
    backward = sums + _bias_sum(asked) + _bounds_bytes(asked)
    backward += scores * _score_bytes(asked, 40, 8, 32, 40)
    return Workspace(forward + 4 * _MB, backward + 4 * _MB)


def _padded_inputs(asked: Asked) -> int:
    """Copies of query, key and value at the wider of two head sizes, and a scaled query."""
    width = max(asked.head_size, asked.value_size)
    copied = 0
    if asked.head_size < width:
        copied = (asked.rows + asked.key_rows) * width
    elif asked.value_size < width:
        copied = asked.key_rows * width
    if asked.dtype in (torch.float32, torch.float64):  # unless the scale is a power of two
        copied += asked.rows * width
    return copied * asked.element


def _aten_forward(asked: Asked) -> int:
    """One call of aten's kernel: buffers of its threads, and which log-sum-exps are 0."""
    return asked.rows + 10 * _MB


def _cpu_aten_bytes(asked: Asked) -> Workspace:
    width = max(asked.head_size, asked.value_size)
    row = width * asked.element
    copies = _padded_inputs(asked)
    forward = copies + _aten_forward(asked)
    runs = _cpu_runs(asked, backward=False)
    if len(runs) > 1:
        # Most rows of one call, their output and its merged form; the sum of all, wide.
        most = max(_call_rows(run, asked, None)[0] for run in runs)
        forward += most * row
        if not fused.are_disjoint(runs):
            forward += most * (3 * width * asked.wide + 8 * 8)
            forward += asked.rows * (width * asked.wide + 8)
        forward += max(_mask_bytes(run, asked) for run in runs)
    return Workspace(forward + _bounds_bytes(asked), copies + _cpu_aten_backward(asked, row))


def _cpu_aten_backward(asked: Asked, row: int) -> int:
    runs = _cpu_runs(asked, backward=True)
    found = 0
    if len(runs) > 1:
        at_once = max(1, max(16, 2 * torch.get_num_threads()) // asked.sizes.heads)
        for run in runs:
            rows, keys = _call_rows(run, asked, at_once)
            # Its gradients, those of the call before, and aten's transposed ones.
            needed = 2 * row * (rows + 2 * keys) + _mask_bytes(run, asked)
            if asked.key_heads != asked.sizes.heads:  # aten's are for each head of the query
                needed += 2 * row * keys * asked.sizes.heads // asked.key_heads
            found = max(found, needed)
        if asked.wide > asked.element:
            found += asked.gradients * asked.wide
    if asked.head_size != asked.value_size:
        width = row // asked.element
        # Output and its gradient, widened, and the sums as wide as that.
        found += 2 * asked.rows * row
        found += (asked.rows + 2 * asked.key_rows) * width * asked.wide
    if asked.call.return_lse:
        # Every tensor again with a column more, that carries the gradient of the log-sum-exp.
        found += (3 * asked.rows + 2 * asked.key_rows) * (row + asked.element)
    # oneDNN compiles its products of 16 bits for each shape that it meets.
    compiled = 28 * _MB if asked.element == 2 else 12 * _MB
    return found + 2 * asked.rows * asked.wide + _bounds_bytes(asked) + compiled


def _call_rows(run: cpu_runs.Run, asked: Asked, at_once: int | None) -> tuple[int, int]:
    """Query and key rows over batch and heads of the widest call for a run."""
    sizes = asked.sizes
    together = run.tiles if at_once is None else min(run.tiles, at_once)
    if run.batch is None and (run.tiles == 1 or sizes.batch >= run.tiles):
        together = sizes.batch
    return together * run.rows * sizes.heads, together * run.keys * asked.key_heads


def _mask_bytes(run: cpu_runs.Run, asked: Asked) -> int:
    """A tile's mask: places compared in int32 or int64, bools, and what is added to scores."""
    if run.kind not in ("band", "masked"):
        return 0
    entries = 1
    if run.kind == "masked" and asked.seen.dense is not None:
        entries = asked.seen.dense.shape[0] * asked.seen.dense.shape[1]
    return run.rows * run.keys * (entries * (asked.wide + 3) + 4)


def _cpu_amx_bytes(asked: Asked) -> Workspace:
    sizes = asked.sizes
    # Keys and values lined up for the products, in panels of 64 keys.
    panels = sizes.batch * asked.key_heads * -(-sizes.key_length // 64) * 64
    lined_up = panels * asked.element * (_up(asked.head_size, 2) + _up(asked.value_size, 16))
    # Log-sum-exp and delta of a row, and the query's gradient in float32, in blocks of 96 rows.
    blocks = sizes.batch * sizes.heads * -(-sizes.query_length // 96) * 96
    backward = asked.rows * 12 + blocks * _up(asked.head_size, 16) * 4
    # Scratch of the threads: a tile and its products each, within a core's cache.
    scratch = torch.get_num_threads() * 2 * _MB + _bounds_bytes(asked)
    return Workspace(lined_up + scratch + 2 * _MB, backward + scratch + 2 * _MB)


def _sdpa_bytes(asked: Asked) -> Workspace:
    rows, wide = asked.rows, asked.wide
    added = 0
    for tensor in (asked.seen.dense, None if asked.call.bias is None else asked.call.bias.tensor):
        if tensor is not None:  # bools and other dtypes become a tensor of the query's
            added += tensor.numel() * asked.element
    forward = _aten_forward(asked) + added
    # FlashAttention's float32 sums of the query's gradient, whose head size it pads to 32 and
    # whose rows to 128; the row sums; keys' and values' gradients for each head of the query.
    backward = rows * (_up(asked.head_size, 32) * wide + 8) + 16 * _MB
    if asked.key_heads != asked.sizes.heads:
        many = asked.sizes.batch * asked.sizes.heads * asked.sizes.key_length
        backward += many * (asked.head_size + asked.value_size) * asked.element
    return Workspace(forward, backward + added)


def _flex_bytes(asked: Asked) -> Workspace:
    side = flex.block_size(asked.sizes)
    blocks = -(-asked.sizes.query_length // side) * -(-asked.sizes.key_length // side)
    # Four tables in int32, forward and transposed for partial and full blocks; a sort in int64.
    tables = 0
    if asked.call.mask is not None:
        tables = blocks * _mask_entries(asked.seen) * (4 * 4 + 2 * 8 + 4) + _bounds_bytes(asked)
    return Workspace(tables + 4 * _MB, tables + asked.rows * 4 * 3 + 4 * _MB)


def _triton_bytes(asked: Asked) -> Workspace:
    bounds = _bounds_bytes(asked) if asked.seen.intervals is not None else 0
    # Row sums in float32, those of the slopes by block of at least 16 queries.
    backward = bounds + asked.rows * 4 * 2 + asked.rows // 16 * 4
    bias = asked.call.bias
    if bias is not None and bias.kind == "dense":
        backward += bias.tensor.numel() * asked.wide
    elif bias is not None and bias.kind == "relative":
        # Sums by distance, in halves that overlap, and joined.
        backward += asked.sizes.heads * 4 * 4 * (asked.sizes.query_length + asked.sizes.key_length)
    return Workspace(bounds + _MB, backward + _MB)


def _npu_fusion_bytes(asked: Asked) -> Workspace:
    sizes, wide = asked.sizes, asked.wide
    width = max(asked.head_size, asked.value_size)
    copies = 0
    if asked.head_size < width:
        copies = (asked.rows + asked.key_rows) * width * asked.element
    if asked.call.bias is not None and wide > asked.element:  # then all is in float32
        copies += (asked.rows + asked.key_rows) * width * wide + asked.key_rows * wide * width
    # A row's maximum and sum, eight times each in float32; the sum of several pieces, merged.
    statistics = asked.rows * 2 * 8 * 4
    pieces = asked.rows * (4 * asked.value_size * wide + 4 * wide)
    side = _npu_side(asked)
    tile = min(side, sizes.query_length) * min(side, sizes.key_length)
    tile *= sizes.batch * sizes.heads
    composed = tile * 32 if asked.call.bias is not None else tile * 2
    # The compressed mask of 2048 x 2048 is one byte an element.
    forward = copies + statistics + pieces + composed + (1 << 22)
    sums = asked.gradients * (wide + asked.element)
    return Workspace(forward, copies + statistics + sums + composed + (1 << 22) + _bias_sum(asked))


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


_BYTES: dict[str, Callable[[Asked], Workspace]] = {
    "reference": _reference_bytes,
    "cpu": _cpu_bytes,
    "cpu_amx": _cpu_amx_bytes,
    "sdpa": _sdpa_bytes,
    "flex": _flex_bytes,
    "triton": _triton_bytes,
    "npu_fusion": _npu_fusion_bytes,
}
MEASURED = frozenset({("reference", "cpu"), ("cpu", "cpu"), ("cpu_amx", "cpu"), ("sdpa", "cpu")})
"""Kernel and device type for which the formulas have been held against measured peaks."""
