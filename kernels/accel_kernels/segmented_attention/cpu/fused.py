"""Runs of tiles through aten's fused kernel, merged by log-sum-exp and summed in float32.

aten's kernel is close to the processor's matrix rate, but it sums gradients in the inputs' dtype,
knows causal masking only for squares, and its backward works on as many threads as there are heads
times batch entries. A run hands it its tiles as batch entries, by strides and without a copy. The
backward hands each tile the *global* output and log-sum-exp, which makes its gradients exact
partial sums.

Numbers do not depend on how many tiles go into one call: each tile is computed alone, and sums are
made in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import Sizes, Visibility, visible
from accel_kernels.segmented_attention.cpu.few import attend, attend_few, is_few, is_lonely
from accel_kernels.segmented_attention.cpu.runs import Run
from accel_kernels.segmented_attention.state import accumulation_dtype, merge

# Rows from which a single head's full tile is cut into two, of which a thread each is quicker.
CUT_ROWS = 256

_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Problem(NamedTuple):
    """A call as aten takes it: head sizes equal and contiguous, the scale positive.

    Attributes:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D]`.
        scale: Of the scores.
        runs: What to compute.
        seen: What is visible, for runs that ask.
        sizes: Of the call.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    runs: tuple[Run, ...]
    seen: Visibility
    sizes: Sizes


class Part(NamedTuple):
    """Tiles of a run that go into one call: `tiles` of entry `batch`, or one of all entries."""

    run: Run
    first: int
    tiles: int
    batch: int | None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output `[B, H, T, D]` and log-sum-exp `[B, H, T]` of the runs."""
    query, key, value, scale, runs, _, sizes = problem
    if len(runs) == 1 and _is_whole(runs[0], sizes):
        if runs[0].kind == "full" and is_few(query, key):
            out, lse = attend_few(query, key, value, scale)
            return out.to(query.dtype), lse
        return attend(query, key, value, scale, runs[0].kind == "diagonal")
    dtype = accumulation_dtype(query.dtype)
    alone = are_disjoint(runs)
    out = torch.zeros(query.shape, dtype=query.dtype if alone else dtype, device="cpu")
    # In float64 while states merge: with each merge in float32 its error would grow, and the
    # backward takes the exponential of it.
    exact = dtype if alone else torch.float64
    lse = torch.full(query.shape[:-1], -torch.inf, dtype=exact, device="cpu")
    for run in runs:
        mask = _mask(run, problem)
        for part in _parts(run, sizes.batch, None):
            state = _attend_part(problem, part, mask)
            _write(out, lse, part, state, alone)
    return out.to(query.dtype), lse.to(dtype)


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from the global output and log-sum-exp.

    A row that sees no key has the log-sum-exp +inf here, so that its probabilities are 0.
    """
    query, key, value, scale, runs, _, sizes = problem
    if len(runs) == 1 and _is_whole(runs[0], sizes):
        inputs = (grad_out, query, key, value, out, lse)
        grad_q, *grads = _differentiate(*inputs, runs[0].kind == "diagonal", None, scale)
        return grad_q, grads[0].to(key.dtype), grads[1].to(value.dtype)
    dtype = accumulation_dtype(query.dtype)
    totals = tuple(
        torch.zeros(tensor.shape, dtype=dtype, device="cpu") for tensor in (query, key, value)
    )
    width = max(1, max(16, 2 * torch.get_num_threads()) // max(1, sizes.heads))
    for run in runs:
        mask = _mask(run, problem)
        for part in _parts(run, sizes.batch, width):
            found = _differentiate(
                _tiles(grad_out, part, "rows"),
                _tiles(query, part, "rows"),
                _tiles(key, part, "keys"),
                _tiles(value, part, "keys"),
                _tiles(out, part, "rows"),
                _tiles(lse.unsqueeze(-1), part, "rows").squeeze(-1),
                run.kind == "diagonal",
                _mask_of(mask, part),
                scale,
            )
            _tiles(totals[0], part, "rows").add_(found[0])
            _add_keys(totals[1], part, found[1])
            _add_keys(totals[2], part, found[2])
    return totals[0].to(query.dtype), totals[1].to(key.dtype), totals[2].to(value.dtype)


def _differentiate(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    diagonal: bool,
    added: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Aten's backward, whose tasks are key heads: a group's heads become tasks of their own."""
    heads = query.shape[1]
    if key.shape[1] == 1 and heads > 1:
        key, value = key.expand(-1, heads, -1, -1), value.expand(-1, heads, -1, -1)
        dtype = accumulation_dtype(query.dtype)
        inputs = (grad_out, query, key, value, out, lse)
        grad_q, grad_k, grad_v = _backward(*inputs, 0.0, diagonal, attn_mask=added, scale=scale)
        grad_k, grad_v = (grad.sum(1, keepdim=True, dtype=dtype) for grad in (grad_k, grad_v))
        return grad_q, grad_k.to(query.dtype), grad_v.to(query.dtype)
    inputs = (grad_out, query, key, value, out, lse)
    plain = added is None and not diagonal
    if plain and heads == 1 and query.shape[2] >= CUT_ROWS and query.shape[2] % 2 == 0:
        return _differentiate_halves(*inputs, scale)
    length, size = query.shape[2:]
    if is_lonely(query.shape[0] * key.shape[1], length, key.shape[2], size):
        twice = [tensor.expand(2, *tensor.shape[1:]) for tensor in inputs]
        found = _backward(*twice, 0.0, diagonal, attn_mask=added, scale=scale)
        return found[0][:1], found[1][:1], found[2][:1]
    whole: tuple[Tensor, Tensor, Tensor] = _backward(
        *inputs, 0.0, diagonal, attn_mask=added, scale=scale
    )
    return whole


def _differentiate_halves(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one head whose rows see all keys: its halves as two heads that share the keys.

    Whatever batch and threads are, so that the bits depend on neither.
    """
    halves = (t.unflatten(2, (2, -1)).squeeze(1) for t in (grad_out, query, out, lse))
    grad_out, rows, out, lse = halves
    key, value = key.expand(-1, 2, -1, -1), value.expand(-1, 2, -1, -1)
    found = _backward(grad_out, rows, key, value, out, lse, 0.0, False, scale=scale)
    dtype = accumulation_dtype(query.dtype)
    grad_k, grad_v = (grad.sum(1, keepdim=True, dtype=dtype) for grad in found[1:])
    return found[0].reshape(query.shape), grad_k, grad_v


def _is_whole(run: Run, sizes: Sizes) -> bool:
    return (
        run.kind in ("full", "diagonal")
        and run.tiles == 1
        and run.batch is None
        and run.rows == sizes.query_length
        and run.keys == sizes.key_length
    )


def are_disjoint(runs: tuple[Run, ...]) -> bool:
    """Whether no query is in two runs."""
    reached: dict[int | None, int] = {}
    for run in sorted(runs, key=lambda run: (run.batch is not None, run.batch or 0, run.q0)):
        if run.q0 < max(reached.get(run.batch, 0), reached.get(None, 0)):
            return False
        reached[run.batch] = run.q0 + run.tiles * run.rows
    return True


def _parts(run: Run, batch: int, width: int | None) -> Iterator[Part]:
    """Calls of aten for a run: along the tiles or along the batch, whichever makes fewer."""
    if run.tiles == 1:
        yield Part(run, 0, 1, run.batch)
        return
    if run.batch is None and batch >= run.tiles:
        for first in range(run.tiles):
            yield Part(run, first, 1, None)
        return
    entries = range(batch) if run.batch is None else (run.batch,)
    width = run.tiles if width is None else width
    for entry in entries:
        for first in range(0, run.tiles, width):
            yield Part(run, first, min(width, run.tiles - first), entry)


def _tiles(tensor: Tensor, part: Part, side: str) -> Tensor:
    """Tiles of `[B, H, T, D]` as batch entries, `[tiles or B, H, rows or keys, D]`, a view."""
    run = part.run
    if side == "rows":
        start, size, step = run.q0 + part.first * run.q_step, run.rows, run.q_step
    else:
        start, size, step = run.k0 + part.first * run.k_step, run.keys, run.k_step
    if part.batch is None:
        return tensor[:, :, start : start + size]
    if part.tiles == 1:
        return tensor[part.batch : part.batch + 1, :, start : start + size]
    entry, head, row, column = tensor.stride()
    return tensor.as_strided(
        (part.tiles, tensor.shape[1], size, tensor.shape[3]),
        (step * row, head, row, column),
        tensor.storage_offset() + part.batch * entry + start * row,
    )


def _attend_part(problem: Problem, part: Part, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, keys = _tiles(problem.query, part, "rows"), _tiles(problem.key, part, "keys")
    values, run = _tiles(problem.value, part, "keys"), part.run
    if run.kind == "full" and run.tiles == 1 and is_few(rows, keys):
        return attend_few(rows, keys, values, problem.scale)
    added = _mask_of(mask, part)
    out, lse = attend(rows, keys, values, problem.scale, run.kind == "diagonal", added)
    if run.kind == "masked" and added is not None:  # aten says 0 for a row that sees no key
        lse = lse.masked_fill((added == -torch.inf).all(-1), -torch.inf)
    return out, lse


def _write(out: Tensor, lse: Tensor, part: Part, state: tuple[Tensor, Tensor], alone: bool) -> None:
    """Merge tiles into the state, in place."""
    here, here_lse = _tiles(out, part, "rows"), _tiles(lse.unsqueeze(-1), part, "rows").squeeze(-1)
    new, new_lse = state
    if not alone:
        new, new_lse = merge(here, here_lse, new.to(out.dtype), new_lse.to(lse.dtype))
    here.copy_(new)
    here_lse.copy_(new_lse)


def _add_keys(total: Tensor, part: Part, found: Tensor) -> None:
    """Add the gradients of keys or values, tile after tile where tiles share keys."""
    run = part.run
    if part.tiles == 1 or run.k_step >= run.keys:
        _tiles(total, part, "keys").add_(found)
        return
    if run.k_step == 0:
        here = _tiles(total, part._replace(tiles=1), "keys")[0]
        for tile in found.unbind(0):
            here += tile
        return
    # Slices a step high do not overlap among tiles. From the last slice to the first, each key
    # gets the tiles' shares in ascending order.
    for start in reversed(range(0, run.keys, run.k_step)):
        stop = min(start + run.k_step, run.keys)
        moved = run._replace(k0=run.k0 + start, keys=stop - start)
        _tiles(total, part._replace(run=moved), "keys").add_(found[:, :, start:stop])


def _mask(run: Run, problem: Problem) -> Tensor | None:
    """What is added to the scores of a tile: 0 where a key is seen and -inf where not."""
    if run.kind == "band":
        row = torch.arange(run.rows, device="cpu").unsqueeze(1)
        key = torch.arange(run.keys, device="cpu")
        seen = (key >= row) & (key < row + run.width) if run.rises else key >= row
        seen = seen[None, None]
    elif run.kind == "masked":
        rows, keys = slice(run.q0, run.q0 + run.rows), slice(run.k0, run.k0 + run.keys)
        seen = visible(problem.seen, problem.sizes, problem.query.device, rows, keys)
    else:
        return None
    dtype = accumulation_dtype(problem.query.dtype)
    return torch.zeros(seen.shape, dtype=dtype, device="cpu").masked_fill_(~seen, -torch.inf)


def _mask_of(mask: Tensor | None, part: Part) -> Tensor | None:
    if mask is None or part.batch is None or mask.shape[0] == 1:
        return mask
    return mask[part.batch : part.batch + 1]
