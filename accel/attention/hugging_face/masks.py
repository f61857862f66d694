"""Transformers' masks as structure.

What `transformers.masking_utils` describes by a function of four indices becomes one of this
package's masks, and no `[B, 1, T, S]` tensor is made. Transformers composes its masks from a
handful of functions whose parameters sit in closures (`sliding_window_overlay(w)`,
`padding_mask_function(mask)`, ...). Those are recognised here by name and written as row intervals;
the result is then held against transformers' own function on some rows, so that another version, in
which a name means something else, is found out. What is not recognised is read off transformers'
function, a band of rows at a time.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import (
    Dense,
    Mask,
    RowIntervals,
    Sizes,
    Window,
    causal,
    key_lengths,
    visibility,
    visible,
    window,
)

MaskFunction = Callable[..., Any]
Band = Callable[[int, int], Tensor]
_LOG = logging.getLogger("accel")
_MOST_INTERVALS = 8  # a row with more is kept as a dense mask
_BAND = 1 << 22  # pairs of query and key looked at together


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, but not at every step again."""
    _LOG.warning(message)


class Grid(NamedTuple):
    """Where queries and keys stand.

    Attributes:
        sizes: Of the mask; it is the same for every head.
        positions: int64 `[1 or B, T]`, of the queries.
        moved: What is added to a key's position to get its number, `[1 or B, T]` or a number.
        aligned: Whether the last query is known to stand at the last key.
    """

    sizes: Sizes
    positions: Tensor
    moved: Any
    aligned: bool

    def rows(self, low: Tensor | None, high: Tensor | None) -> Mask:
        """Keys at positions from `low` up to, not including, `high`; None: no limit."""
        last = self.sizes.key_length
        # int32 holds every key's number, and what is beyond the keys is cut off first.
        bounds = [
            torch.zeros_like(self.positions) + end
            if bound is None
            else (bound + self.moved).clamp(min=0).clamp(max=last)
            for bound, end in ((low, 0), (high, last))
        ]
        return RowIntervals(torch.stack(torch.broadcast_tensors(*bounds))[None].to(torch.int32))


class Unrecognised(Exception):  # noqa: N818 - control flow within this file
    """A mask function is none of those whose structure is known."""


def structure(function: MaskFunction, grid: Grid) -> Mask | None:
    """A mask function of transformers as a mask; None if every query sees every key.

    Raises:
        Unrecognised: It, or one that it is composed of, is not known here.
    """
    known = _KNOWN.get(_name(function))
    if known is None:
        raise Unrecognised(_name(function))
    mask: Mask | None = known(grid, **_held(function))
    return mask


def _name(function: MaskFunction) -> str:
    """`sliding_window_overlay` for what that returned; empty outside of transformers."""
    inside = getattr(function, "__module__", "").startswith("transformers.")
    return function.__qualname__.split(".<locals>")[0] if inside else ""


def _held(function: Any) -> dict[str, Any]:
    cells = function.__closure__ or ()
    return {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
    }


def _causal(grid: Grid) -> Mask:
    return causal() if grid.aligned else grid.rows(None, grid.positions + 1)


def _everything(grid: Grid) -> None:
    return None


def _sliding(grid: Grid, sliding_window: int) -> Mask:
    if grid.aligned:
        return window(sliding_window - 1, None)
    return grid.rows(grid.positions - sliding_window + 1, None)


def _sliding_both(grid: Grid, sliding_window: int) -> Mask:
    """Inclusive on both sides, unlike the causal one."""
    if grid.aligned:
        return window(sliding_window, sliding_window)
    return grid.rows(grid.positions - sliding_window, grid.positions + sliding_window + 1)


def _sliding_both_exclusive(grid: Grid, sliding_window: int) -> Mask:
    return _sliding_both(grid, sliding_window - 1)


def _chunked(grid: Grid, chunk_size: int, left_padding: Tensor) -> Mask:
    """Chunks are counted from the first token that is no padding."""
    within = (grid.positions - left_padding.to(grid.positions).unsqueeze(1)) % chunk_size
    low = grid.positions - within
    return grid.rows(low, low + chunk_size)


def _packed(grid: Grid, packed_sequence_mask: Tensor) -> Mask:
    """Documents numbered in ascending order, `[B, T]`, of as many queries as keys."""
    numbers = packed_sequence_mask.contiguous()
    low = torch.searchsorted(numbers, numbers)
    high = torch.searchsorted(numbers, numbers, right=True)
    return RowIntervals(torch.stack([low, high])[None].to(torch.int32))


def _remapped(grid: Grid, mask_function: MaskFunction, position_ids: Tensor) -> Mask | None:
    """Positions that begin anew in each document; right only together with `_packed`."""
    positions = position_ids.to(grid.positions)
    moved = torch.arange(grid.sizes.key_length, device=positions.device) - positions
    return structure(mask_function, grid._replace(positions=positions, moved=moved, aligned=False))


def _all_of(grid: Grid, mask_functions: tuple[MaskFunction, ...]) -> Mask | None:
    found: Mask | None = None
    for function in mask_functions:
        part = structure(function, grid)
        if part is not None:
            found = part if found is None else _both(found, part)
    return found


def _both(one: Mask, other: Mask) -> Mask:
    """Both; a causal window by its own name, which more kernels know."""
    sliding, rest = (one, other) if isinstance(one, Window) else (other, one)
    if isinstance(sliding, Window) and sliding.right is None and rest.key() == causal().key():
        return window(sliding.left, 0)
    return one & other


def _any_of(grid: Grid, mask_functions: tuple[MaskFunction, ...]) -> Mask | None:
    found: Mask | None = None
    for function in mask_functions:
        part = structure(function, grid)
        if part is None:
            return None
        found = part if found is None else found | part
    return found


_KNOWN: dict[str, Callable[..., Mask | None]] = {
    "causal_mask_function": _causal,
    "bidirectional_mask_function": _everything,
    "sliding_window_overlay": _sliding,
    "sliding_window_bidirectional_overlay": _sliding_both,
    "_bidirectional_window_overlay": _sliding_both_exclusive,
    "chunked_overlay": _chunked,
    "packed_sequence_mask_function": _packed,
    "remap_positions_for_packed_sequence": _remapped,
    "and_masks": _all_of,
    "or_masks": _any_of,
}


def padding(mask: Tensor | None, first: int, sizes: Sizes) -> Mask | None:
    """A padding mask of transformers as key lengths, one interval a row, or `[B, 1, 1, S]`.

    Args:
        mask: bool `[B, N]`, True where there is a token, by position; positions beyond it hold
            padding. None: no padding.
        first: Position of the first key.
        sizes: Of the mask.
    """
    if mask is None:
        return None
    last = sizes.key_length
    mask = torch.nn.functional.pad(mask, (0, max(first + last - mask.shape[1], 0)))
    mask = mask[:, first : first + last]
    if torch.compiler.is_compiling() or not last:
        return Dense(mask[:, None, None, :])
    low = mask.int().argmax(1)
    count = mask.sum(1)
    high = low + count
    places = torch.arange(last, device=mask.device)
    one_run = ((places >= low[:, None]) & (places < high[:, None])) == mask
    whole, right, runs = torch.stack([mask.all(), (low == 0).all(), one_run.all()]).tolist()
    if whole:
        return None
    if not runs:
        return Dense(mask[:, None, None, :])
    if right:
        return key_lengths(count.tolist())
    bounds = torch.stack([low, high]).unsqueeze(-1).expand(-1, -1, sizes.query_length)
    return RowIntervals(bounds[None].to(torch.int32).contiguous())


def settled(mask: Mask | None, sizes: Sizes, device: torch.device) -> Mask | None:
    """The same mask, resolved once if it holds tensors, instead of in every layer."""
    if mask is None or mask.key() is not None or isinstance(mask, (RowIntervals, Dense)):
        return mask
    seen = mask.resolve(sizes, device)
    parts: list[Mask] = [] if seen.intervals is None else [RowIntervals(seen.intervals)]
    parts += [] if seen.dense is None else [Dense(seen.dense)]
    return parts[0] & parts[1] if len(parts) == 2 else parts[0]


def traced(
    function: MaskFunction, grid: Grid, band: Band, sliding_window: int | None
) -> Mask | None:
    """As `structure`, in compiled code, where what a function holds cannot be looked at.

    Args:
        function: Of transformers.
        grid: Of the call.
        band: Transformers' mask of some rows, for what is not known: that is dense.
        sliding_window: Keys of the causal window that the function is known to be, if it is.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    if function is bidirectional_mask_function:
        return None
    if function is causal_mask_function:
        return _causal(grid)
    if sliding_window is not None:
        return _both(_sliding(grid, sliding_window), _causal(grid))
    return Dense(band(0, grid.sizes.query_length))


def agrees(mask: Mask | None, band: Band, sizes: Sizes, device: torch.device) -> bool:
    """Whether a mask is transformers' own on the first, a middle and the last row.

    Args:
        mask: What was recognised.
        band: Transformers' mask of some rows: `band(first, number)` is bool `[B, 1, number, S]`.
        sizes: Of the mask.
        device: Of the queries.
    """
    seen = visibility(mask, sizes, device)
    rows = {0, sizes.query_length // 2, sizes.query_length - 1}
    return all(
        bool((band(row, 1) == visible(seen, sizes, device, slice(row, row + 1))).all())
        for row in rows
    )


def scanned(band: Band, sizes: Sizes, device: torch.device) -> Mask:
    """Row intervals read off a mask function, a band of rows at a time; dense if they are many."""
    step = max(1, _BAND // max(1, sizes.batch * sizes.key_length))
    bands = [
        _runs(band(first, min(step, sizes.query_length - first)))
        for first in range(0, sizes.query_length, step)
    ]
    most = max(part.shape[0] for part in bands)
    if most > _MOST_INTERVALS:
        megabytes = sizes.batch * sizes.query_length * sizes.key_length / 1e6
        warn_once(
            f"the model's mask has up to {most} separate ranges of keys a row: it is kept as a "
            f"[B, 1, T, S] tensor, {megabytes:.0f} MB"
        )
        return Dense(band(0, sizes.query_length))
    filled = [torch.nn.functional.pad(p, (0, 0) * 3 + (0, most - p.shape[0])) for p in bands]
    return RowIntervals(torch.cat(filled, dim=3))


def _runs(allowed: Tensor) -> Tensor:
    """The runs of True in each row of bool `[B, 1, R, S]`: int32 `[m, 2, B, R]`."""
    edges = torch.nn.functional.pad(allowed[:, 0], (1, 1)).int().diff(dim=-1)  # [B, R, S + 1]
    most = max(int((edges > 0).sum(-1).max()), 1)
    found = edges.new_zeros((most, 2, *edges.shape[:2]))
    for end, sign in enumerate((1, -1)):
        here = edges == sign
        entry, row, at = here.nonzero().unbind(1)
        number = here.cumsum(-1)[entry, row, at] - 1
        found[number, end, entry, row] = at.int()
    return found
