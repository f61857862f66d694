"""The CPU: aten's fused kernel wherever it is exact, tile formulas of our own for the rest.

aten computes full tiles, squares on the diagonal and, with a small mask, the tiles of a band. What
it has no argument for (softcap, dropout, the gradient of a bias), and masked keys or values that
are not finite, which it lets through as `0 * NaN`, is computed by formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from accel_kernels.masks import Causal, Mask, visibility
from accel_kernels.segmented_attention.call import Bias, Call, Dropout, Way, sizes_of
from accel_kernels.segmented_attention.cpu import fused
from accel_kernels.segmented_attention.cpu import tiles as cpu_tiles
from accel_kernels.segmented_attention.cpu.few import attend, is_few
from accel_kernels.segmented_attention.cpu.fused import Problem
from accel_kernels.segmented_attention.cpu.quick import way
from accel_kernels.segmented_attention.cpu.runs import Run, block, plan
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation, run

# Most queries and keys of a tile in the backward: aten sums bfloat16 gradients in bfloat16 within a
# tile, so that the error would grow with it. With one head, tiles are what threads share.
BACKWARD_TILE = 2048
BACKWARD_TILE_ONE_HEAD = 1024


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: Dropout | None = None,
    softcap: float | None = None,
    bias: Bias | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by tiles, computed by aten where it can.

    Args:
        query: `[B, H, T, D]`, float64, float32, bfloat16 or float16.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`.
        mask: Which keys a query sees.
        scale: Of the scores; `1/sqrt(D)` if None.
        dropout: Of the probabilities.
        softcap: Of the scaled scores.
        bias: Added to the capped scores.
        segment_size: Most queries and keys of a tile. If None, a tile of the forward is as large as
            the mask allows and one of the backward 2048 a side, or 1024 with one head.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype and `lse` `[B, H, T]` in float32 (float64 for
        float64), both differentiable, twice too. Scores and sums are in that dtype; of a single
        tile, gradients of bfloat16 and float16 are summed by aten in their own.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    call = Call(mask, scale, softcap, bias, dropout, segment_size, return_lse)
    if not _is_transformed():
        quick = prepare(query, key, value, call)
        out = None if quick is None else quick(query, key, value)
        if out is not None:
            return out, None
    return run(IMPLEMENTATION, query, key, value, call)


def prepare(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Way | None:
    """How every call of this kind is computed as long as no value is NaN or infinite.

    None if that is not known beforehand, and `segmented_attention` has to be asked.
    """
    if call.return_lse or not _is_plain(query, key, value, call):
        return None
    return way(query, key, value, call, _backward_tile(query))


segmented_attention.prepare = prepare  # type: ignore[attr-defined]


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a call."""
    if _is_plain(query, key, value, call) and not is_few(query, key):
        diagonal = _is_diagonal(query, call)
        state = attend(query, key, value, call.scale, diagonal)
        # The last row multiplies every value: what is not finite shows in it, and nothing else can
        # reach a row that does not see it.
        if not diagonal or _finite(_last_row(state[0])):
            return state
    if _needs_formula(call):
        return cpu_tiles.forward(query, key, value, call)
    size = value.shape[-1]
    problem = _problem(query, key, value, call, call.segment_size)
    if _hides(problem.runs) and not _finite(key, value):
        return cpu_tiles.forward(query, key, value, call)
    out, lse = fused.forward(problem)
    return out[..., :size], lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
) -> Gradients:
    """Gradients of a call."""
    # float16 has not the range of a log-sum-exp's gradient, which aten takes in the inputs' dtype.
    if _needs_formula(call) or (grad_lse is not None and query.dtype == torch.float16):
        return cpu_tiles.backward(grad_out, grad_lse, query, key, value, out, lse, call)
    limit = _backward_tile(query) if call.segment_size is None else call.segment_size
    if query.shape[1] == 1 and call.mask is not None and call.segment_size is None:
        # Two triangles and what is below them are work for two threads; one triangle is for one.
        limit = min(limit, max(fused.CUT_ROWS, block(query.shape[2], -(-query.shape[2] // 2))))
    problem = _problem(query, key, value, call, limit)
    if _hides(problem.runs) and not _finite(query, key, value, grad_out):
        return cpu_tiles.backward(grad_out, grad_lse, query, key, value, out, lse, call)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # makes every probability of a row zero
    width = problem.query.shape[-1]
    grad_out, out = _widened(grad_out, width), _widened(out, width)
    if grad_lse is not None:
        problem, out, grad_out = _with_lse_column(problem, out, grad_out, grad_lse)
    grad_q, grad_k, grad_v = fused.backward(problem, out, lse, grad_out)
    size = query.shape[-1]
    grad_q, grad_k = grad_q[..., :size], grad_k[..., :size]
    factor, _ = _factors(call.scale)
    grad_q = grad_q if factor == 1.0 else grad_q * factor
    return Gradients(grad_q, grad_k, grad_v[..., : value.shape[-1]], None)


IMPLEMENTATION = Implementation("cpu", forward, backward)


def _backward_tile(query: Tensor) -> int:
    return BACKWARD_TILE if query.shape[1] > 1 else BACKWARD_TILE_ONE_HEAD


def _is_transformed() -> bool:
    """Whether something watches or rewrites what is called, and `run` has to tell it how."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def _is_diagonal(query: Tensor, call: Call) -> bool:
    return call.mask is not None and query.shape[2] > 1


def _is_plain(query: Tensor, key: Tensor, value: Tensor, call: Call) -> bool:
    """Whether aten does all of it in one call; told quickly, for the sake of short sequences."""
    mask, size = call.mask, query.shape
    whole = call.segment_size is None or call.segment_size >= max(size[2], key.shape[2])
    return (
        (mask is None or (type(mask) is Causal and size[2] == key.shape[2]))
        and whole
        and call.scale > 0.0
        and not _needs_formula(call)
        and size[3] == value.shape[3]
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and 0 not in (*size, *key.shape)
    )


def _needs_formula(call: Call) -> bool:
    return call.softcap is not None or call.bias is not None or call.dropout is not None


def _problem(query: Tensor, key: Tensor, value: Tensor, call: Call, limit: int | None) -> Problem:
    """The call as aten takes it."""
    sizes = sizes_of(query, key)
    seen = visibility(call.mask, sizes, query.device)
    runs = plan(call.mask, seen, sizes, limit)
    factor, scale = _factors(call.scale)
    query = query if factor == 1.0 else query * factor
    width = max(query.shape[-1], value.shape[-1])
    query, key, value = (_widened(tensor, width) for tensor in (query, key, value))
    return Problem(query, key, value, scale, runs, seen, sizes)


def _factors(scale: float) -> tuple[float, float]:
    """A factor for the query and a positive scale for aten, whose product is the scale.

    aten masks with -inf before it scales, which a negative scale turns into +inf and zero into NaN.
    Changing the query's sign instead is exact.
    """
    return (0.0, 1.0) if scale == 0.0 else (math.copysign(1.0, scale), abs(scale))


def _widened(tensor: Tensor, width: int) -> Tensor:
    """Padded with zeros to a head size; aten reads it with stride 1, whatever the real stride."""
    if tensor.shape[-1] < width:
        tensor = pad(tensor, (0, width - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _with_lse_column(
    problem: Problem, out: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Problem, Tensor, Tensor]:
    """Append a column that makes aten's backward include the gradient of the log-sum-exp.

    aten computes `p * (grad_out·v - grad_out·out)`. With `v` extended by 0, `out` by -1 and
    `grad_out` by `grad_lse` that becomes `p * (grad_out·v - grad_out·out + grad_lse)`, which is
    what is wanted. `query` and `key` get a column of zeros, since aten needs one head size.
    """
    column = grad_lse.to(grad_out.dtype).unsqueeze(-1)
    query, key, value = (pad(tensor, (0, 1)) for tensor in problem[:3])
    return (
        problem._replace(query=query, key=key, value=value),
        pad(out, (0, 1), value=-1.0),
        torch.cat([grad_out, column], -1),
    )


def _hides(runs: tuple[Run, ...]) -> bool:
    """Whether a tile holds keys that some of its rows do not see."""
    return any(run.kind != "full" for run in runs)


def _last_row(out: Tensor) -> Tensor:
    return out.detach().select(2, -1)  # detached: a graph of a check costs as much as the check


def _finite(*tensors: Tensor) -> bool:
    """Whether nothing is NaN or infinite; False too where sums overflow, which costs time only."""
    wide = torch.float32 if tensors[0].dtype == torch.float16 else None
    return all(math.isfinite(tensor.detach().sum(dtype=wide).item()) for tensor in tensors)
