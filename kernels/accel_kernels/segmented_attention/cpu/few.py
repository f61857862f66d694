"""One call of aten's fused kernel, and few queries against many keys.

aten computes each query head alone and each on one thread. With few queries the heads of a group
are packed as query rows, so that their keys are read once, and long keys are split among calls
whose states are merged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.segmented_attention.state import accumulation_dtype

aten = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

# Rows of a packed group up to which packing pays; keys of a split, and how many splits at most.
FEW_ROWS = 64
SPLIT_KEYS = 2048
_SPLITS = 16
# Query rows that are one task of aten's forward, where there are few.
BLOCK = 32
# Multiplications that MKL does on one thread: of 1,512 shapes the smallest that it shared had 680.
_ALONE = 256


def attend(
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    diagonal: bool = False,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The state of query rows over keys, with -inf for a row whose scores are all -inf.

    aten gives such a row the log-sum-exp 0 and the output 0, which a row may have by right. Rows
    with both are therefore looked at again.
    """
    length, size = rows.shape[2:]
    if length <= BLOCK and is_lonely(rows.shape[0] * rows.shape[1], length, keys.shape[2], size):
        twice = (tensor.expand(2, -1, -1, -1) for tensor in (rows, keys, values))
        out, lse = aten(*twice, 0.0, diagonal, attn_mask=added, scale=scale)
        out, lse = out[:1], lse[:1]
    else:
        out, lse = aten(rows, keys, values, 0.0, diagonal, attn_mask=added, scale=scale)
    if bool((lse == 0).any()):
        out, lse = _with_empty_rows(out, lse, rows, keys, scale, diagonal, added)
    return out, lse


def is_lonely(tasks: int, length: int, keys: int, size: int) -> bool:
    """Whether a call would leave its threads to MKL, whose sums depend on their number.

    With one task aten starts no threads of its own, and the library that multiplies does. Such a
    call is made for two equal entries, on two threads: as quick, and the same to the bit as on one.
    MKL itself uses one thread for the smallest products.
    """
    return is_alone(tasks, length, keys, size) and torch.get_num_threads() > 1


def is_alone(tasks: int, length: int, keys: int, size: int) -> bool:
    """Whether a call would be lonely on more than one thread."""
    return tasks == 1 and length * keys * size > _ALONE


def is_few(rows: Tensor, keys: Tensor) -> bool:
    """Whether `attend_few` is the way to go: a packed group is small and gains something."""
    groups = rows.shape[1] // keys.shape[1]
    packed = groups * rows.shape[2]
    return packed <= FEW_ROWS and (groups > 1 or keys.shape[2] >= 2 * SPLIT_KEYS)


def attend_few(rows: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The state of a few query rows, all of which see all keys.

    Where keys are split depends on their number alone.

    Args:
        rows: `[B, H, T, D]`.
        keys: `[B, H_kv, S, D]`.
        values: `[B, H_kv, S, D]`.
        scale: Of the scores.

    Returns:
        `out` `[B, H, T, D]`, of a wider dtype where it was merged, and `lse` `[B, H, T]`.
    """
    batch, heads, length, size = rows.shape
    packed = rows.reshape(batch, keys.shape[1], -1, size)
    splits = min(_SPLITS, keys.shape[2] // SPLIT_KEYS)
    if splits < 2:
        out, lse = attend(packed, keys, values, scale)
    else:
        out, lse = _merged(*_split(packed, keys, values, scale, splits))
    return out.reshape(rows.shape), lse.reshape(batch, heads, length)


def _split(
    packed: Tensor, keys: Tensor, values: Tensor, scale: float, splits: int
) -> tuple[Tensor, Tensor]:
    """States over parts of the keys, `[parts, B, H_kv, rows, D]` and `[parts, B, H_kv, rows]`."""
    batch, length = packed.shape[0], keys.shape[2]
    step = length // splits
    rest = length - step * splits
    dtype = accumulation_dtype(packed.dtype)
    parts = splits + (1 if rest else 0)
    outs = torch.empty((parts, *packed.shape), dtype=dtype, device="cpu")
    lses = torch.empty((parts, *packed.shape[:-1]), dtype=torch.float64, device="cpu")
    for n in range(splits, parts) if batch < splits else range(parts):
        some = slice(n * step, min((n + 1) * step, length))
        outs[n], lses[n] = attend(packed, keys[:, :, some], values[:, :, some], scale)
    if batch < splits:
        for entry in range(batch):
            rows = packed[entry].expand(splits, *packed.shape[1:])
            ks, vs = (
                tensor[entry, :, : splits * step].unflatten(1, (splits, step)).transpose(0, 1)
                for tensor in (keys, values)
            )
            outs[:splits, entry], lses[:splits, entry] = attend(rows, ks, vs, scale)
    return outs, lses


def _merged(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.logsumexp(lses, 0)
    # From differences, as in `merge`: the weights add up to one.
    weights = torch.softmax(lses, 0).masked_fill(lse == -torch.inf, 0.0).to(outs.dtype)
    out = outs[0] * weights[0].unsqueeze(-1)
    for part, weight in zip(outs[1:], weights[1:], strict=True):
        out.addcmul_(part, weight.unsqueeze(-1))
    return out, lse.to(outs.dtype)


def _with_empty_rows(
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    keys: Tensor,
    scale: float,
    diagonal: bool,
    added: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """With -inf where every score of a row is -inf, and NaN where one is NaN.

    aten loses the NaN of a row whose scores are all NaN, if they are fewer than a vector holds, and
    gives it the numbers of an empty row.
    """
    doubtful = ((lse == 0) & (out == 0).all(-1)).nonzero()
    if not len(doubtful):
        return out, lse
    out, lse = out.clone(), lse.clone()
    groups = rows.shape[1] // keys.shape[1]
    for batch, head, row in doubtful.tolist():
        seen = keys[batch, head // groups, : row + 1 if diagonal else None]
        scores = (seen.to(lse.dtype) @ rows[batch, head, row].to(lse.dtype)) * scale
        if added is not None:
            b, h = (0 if n == 1 else at for n, at in zip(added.shape, (batch, head), strict=False))
            # Not a sum: a hidden key's score may be NaN.
            scores = scores.masked_fill(added[b, h, row] == -torch.inf, -torch.inf)
        if bool((scores == -torch.inf).all()):
            lse[batch, head, row] = -torch.inf
        elif bool(scores.isnan().any()):
            out[batch, head, row] = lse[batch, head, row] = torch.nan
    return out, lse
