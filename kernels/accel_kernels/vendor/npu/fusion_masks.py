"""Which scores `npu_fusion_attention` keeps: the sparse modes and their masks.

The operator's masks are the inverse of torch's: 1 or True marks a score that is left out. Modes 2,
3, 4, 7 and 8 take a fixed 2048 x 2048 triangle, mode 6 one of 3072 x 2048; what such a mask holds
is known beforehand, so it is compared and not used.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from accel_kernels.vendor.npu.fusion_call import FusionCall, Shapes
from accel_kernels.vendor.npu.values import refuse, require_shape

SIDE = 2048
PREFIX_ROWS = 1024


def visible(call: FusionCall, shapes: Shapes) -> list[Tensor | None]:
    """Per sequence what is kept: `[N or 1, Sq, Skv]`, True where kept, or None for everything.

    Without `atten_mask` everything is kept: the operator then ignores `sparse_mode`, `pre_tokens`
    and `next_tokens`.

    Raises:
        ValueError: If mask, mode, tokens or prefix contradict one another.
    """
    if call.atten_mask is None:
        return [None] * shapes.batch
    masked = _as_bool(call, call.atten_mask)
    if call.sparse_mode in (5, 6):
        _check_prefix(call, shapes)
    if call.sparse_mode in (0, 1, 5):
        return [_whole_mask(call, shapes, masked, index) for index in range(shapes.batch)]
    _check_compressed(call, masked)
    if call.sparse_mode in (7, 8):
        _check_cut(call, shapes)
    return [_from_mode(call, shapes, index, masked.device) for index in range(shapes.batch)]


def _as_bool(call: FusionCall, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    if mask.dtype != torch.uint8:
        raise TypeError(f"{call.operator}: atten_mask is {mask.dtype}; give bool or uint8")
    if mask.numel() and int(mask.max()) > 1:
        raise ValueError(f"{call.operator}: atten_mask holds {int(mask.max())}; give 0 and 1")
    return mask.bool()


def _whole_mask(call: FusionCall, shapes: Shapes, masked: Tensor, index: int) -> Tensor:
    """Modes 0, 1 and 5: the mask itself says what is kept; mode 0 and 5 are checked against it."""
    rows, columns = shapes.query_lengths[index], shapes.key_lengths[index]
    keep = ~_slice(call, shapes, masked, index)
    if call.sparse_mode == 5:
        expected = _prefix(call, index, rows, columns, masked.device)
        if not torch.equal(keep, expected.expand_as(keep)):
            raise ValueError(f"{call.operator}: atten_mask is not that of prefix={call.prefix}")
    if call.sparse_mode == 0:
        if rows:
            _check_tokens(call, rows, columns)
        band = _band(rows, columns, call.pre_tokens, call.next_tokens, 0, masked.device)
        if bool((keep & ~band).any()):
            raise ValueError(
                f"{call.operator}: atten_mask keeps scores outside pre_tokens={call.pre_tokens}, "
                f"next_tokens={call.next_tokens} (counted from the top left); make them agree"
            )
    if call.layout == "TND" and rows and not bool(keep.any(-1).all()):
        raise ValueError(f"{call.operator}: under TND no row of atten_mask may be all 1")
    return keep


def _slice(call: FusionCall, shapes: Shapes, masked: Tensor, index: int) -> Tensor:
    rows, columns = max(shapes.query_lengths), max(shapes.key_lengths)
    if call.layout == "TND":
        require_shape(call.operator, "atten_mask (TND)", masked, (rows, columns))
        masked = masked[: shapes.query_lengths[index], : shapes.key_lengths[index]]
        return masked.unsqueeze(0)
    batch, heads = shapes.batch, shapes.heads
    allowed: list[tuple[int, ...]] = [(batch, heads, rows, columns), (batch, 1, rows, columns)]
    if call.sparse_mode != 5:
        allowed += [(1, 1, rows, columns), (rows, columns)]
    require_shape(call.operator, "atten_mask", masked, *allowed)
    if masked.ndim == 2:
        return masked.unsqueeze(0)
    return masked[index if masked.shape[0] > 1 else 0]


def _check_tokens(call: FusionCall, rows: int, columns: int) -> None:
    before, after = call.pre_tokens, call.next_tokens
    if after < 0 and (before < -after or -after >= columns):
        raise ValueError(
            f"{call.operator}: next_tokens={after} needs pre_tokens >= {-after} and more than "
            f"{-after} keys, not {before} and {columns}"
        )
    if before < 0 and (after < -before or -before >= rows):
        raise ValueError(
            f"{call.operator}: pre_tokens={before} needs next_tokens >= {-before} and more than "
            f"{-before} queries, not {after} and {rows}"
        )


def _band(
    rows: int, columns: int, before: int, after: int, shift: int, device: torch.device
) -> Tensor:
    """Row i keeps columns `i + shift - before` to `i + shift + after`."""
    row = torch.arange(rows, device=device).unsqueeze(1) + shift
    column = torch.arange(columns, device=device)
    return ((column >= row - before) & (column <= row + after)).unsqueeze(0)


def _prefix(call: FusionCall, index: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Causal from the bottom right, and the first `prefix[index]` columns besides."""
    assert call.prefix is not None  # noqa: S101 - _check_prefix saw it
    causal = _band(rows, columns, rows + columns, 0, columns - rows, device)
    return causal | (torch.arange(columns, device=device) < call.prefix[index])


def _check_prefix(call: FusionCall, shapes: Shapes) -> None:
    prefix = list(call.prefix or ())
    if len(prefix) != shapes.batch or shapes.batch > 32:
        raise ValueError(
            f"{call.operator}: prefix={prefix}; give one number for each of the {shapes.batch} "
            f"sequences, of which there may be at most 32"
        )
    for length, rows, columns in zip(prefix, shapes.query_lengths, shapes.key_lengths, strict=True):
        least = max(columns - rows, 0)
        if not least <= length <= columns:
            raise ValueError(
                f"{call.operator}: prefix={prefix}; with {rows} queries and {columns} keys give "
                f"{least} to {columns}"
            )


@lru_cache(maxsize=4)
def _compressed(mode: int, device: torch.device) -> Tensor:
    triangle = torch.ones(SIDE, SIDE, dtype=torch.bool, device=device).triu(1)
    if mode != 6:
        return triangle
    block = torch.arange(SIDE, device=device) >= SIDE // 2
    return torch.cat([triangle, block.expand(PREFIX_ROWS, SIDE)])


def _check_compressed(call: FusionCall, masked: Tensor) -> None:
    expected = _compressed(6 if call.sparse_mode == 6 else 2, masked.device)
    require_shape(
        call.operator,
        f"atten_mask of sparse_mode {call.sparse_mode}",
        masked,
        tuple(expected.shape),
    )
    if not torch.equal(masked, expected):
        what = "1 above the diagonal and 0 elsewhere"
        if call.sparse_mode == 6:
            what = f"{what}, then {PREFIX_ROWS} rows with 0 in the left half and 1 in the right"
        raise ValueError(f"{call.operator}: atten_mask of sparse_mode {call.sparse_mode}: {what}")


def _check_cut(call: FusionCall, shapes: Shapes) -> None:
    """Modes 7 and 8: the last or first sequence is a piece cut from a causal one."""
    cut = shapes.batch - 1 if call.sparse_mode == 7 else 0
    rows, columns = shapes.query_lengths[cut], shapes.key_lengths[cut]
    if not rows:
        why = "no document says which sequence is the cut one if that one is empty"
        refuse(call.operator, "sparse_mode", call.sparse_mode, why)
    if shapes.batch == 1:
        return
    if call.pre_tokens < columns:
        raise ValueError(
            f"{call.operator}: pre_tokens={call.pre_tokens}; sparse_mode {call.sparse_mode} needs "
            f"at least the {columns} keys of the cut sequence"
        )
    if call.sparse_mode == 7 and call.next_tokens > 0:
        raise ValueError(f"{call.operator}: next_tokens={call.next_tokens}; mode 7 needs <= 0")


def _from_mode(call: FusionCall, shapes: Shapes, index: int, device: torch.device) -> Tensor:
    rows, columns, mode = shapes.query_lengths[index], shapes.key_lengths[index], call.sparse_mode
    if mode == 6:
        return _prefix(call, index, rows, columns, device)
    cut = shapes.batch - 1 if mode == 7 else 0
    if mode == 4 or (mode in (7, 8) and index == cut):
        before, after = call.pre_tokens, call.next_tokens
        keep = _band(rows, columns, before, after, columns - rows, device)
        if rows and not bool(keep.any()):
            raise ValueError(
                f"{call.operator}: pre_tokens={before}, next_tokens={after} keep nothing of "
                f"{rows} queries and {columns} keys (counted from the bottom right)"
            )
        return keep
    top_left = mode in (2, 8)
    return _band(rows, columns, rows + columns, 0, 0 if top_left else columns - rows, device)
