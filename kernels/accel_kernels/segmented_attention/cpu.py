"""Segments over aten's fused CPU kernel, merged by their log-sum-exps.

aten's kernel is close to the processor's matrix rate, but rounds its gradients to the inputs' dtype
and knows causal masking only for squares, aligned at the top left. Here it computes one tile at a
time: squares on the diagonal and full rectangles, for which its conventions are right. The backward
hands each tile the *global* output and log-sum-exp, which makes its gradients exact partial sums
(checked against float64); they are summed in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel_kernels.segmented_attention.state import Tile, accumulation_dtype, merge
from accel_kernels.segmented_attention.state import tiles as tiles_of

# One aten call per tile: large enough that the call costs nothing, small enough for one tile's
# intermediate results to be a few megabytes.
DEFAULT_SEGMENT_SIZE = 2048

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_differentiate = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by segments of keys, each computed by aten.

    Args:
        query: `[B, H, T, D]`, float64, float32, bfloat16 or float16.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D]`.
        is_causal: Aligned at the bottom right.
        scale: Of the scores; `1/sqrt(D)` if None.
        segment_size: Keys per segment; 2048 if None.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D]` in the query's dtype and `lse` `[B, H, T]` in float32 (float64 for
        float64), both differentiable.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if scale <= 0.0:
        # aten masks with -inf before it scales, which a negative scale turns into +inf and zero
        # into NaN. Changing the query's sign instead is exact.
        query, scale = (-query, -scale) if scale < 0.0 else (query * 0.0, 1.0)
    if query.shape[2] == 1:
        is_causal = False  # a single last query sees every key
    segment_size = DEFAULT_SEGMENT_SIZE if segment_size is None else segment_size
    arguments = (query, key, value, is_causal, scale, segment_size)
    wanted = query.requires_grad or key.requires_grad or value.requires_grad
    if wanted and torch.is_grad_enabled():
        out, lse = _SegmentedAttention.apply(*arguments, return_lse)
    else:
        out, lse = _forward(*arguments)
    return out, lse if return_lse else None


class _SegmentedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        scale: float,
        segment_size: int,
        return_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        return _forward(query, key, value, is_causal, scale, segment_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, ctx.is_causal, ctx.scale, ctx.segment_size, ctx.return_lse = inputs
        ctx.save_for_backward(query, key, value, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        shapes = query.shape, key.shape, value.shape
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        # Compiled code hands in zeros for an output that nobody uses.
        if grad_lse is not None and ctx.return_lse:
            query, key, value, out, grad_out = _with_lse_column(
                query, key, value, out, grad_out, grad_lse
            )
        query, key, value = _unit_stride(query), _unit_stride(key), _unit_stride(value)
        grad_out = _unit_stride(grad_out)
        covering = _plan(query, key, ctx.segment_size, ctx.is_causal)
        with torch.no_grad():
            gradients = _backward(query, key, value, out, grad_out, lse, covering, ctx.scale)
        kept = [
            gradient[..., : shape[-1]] for gradient, shape in zip(gradients, shapes, strict=True)
        ]
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "segmented_attention's cpu backend does not run under torch.func; call it with "
                "backend='reference'"
            )
        if torch.is_grad_enabled():  # create_graph=True
            kept = [_Undifferentiable.apply(gradient.requires_grad_()) for gradient in kept]
        return (*kept, None, None, None, None)


class _Undifferentiable(torch.autograd.Function):
    """The identity, with an error for a derivative.

    torch's `once_differentiable` gives one only if the gradient handed in has a graph itself;
    otherwise it lets the gradients pass for constants, and a gradient penalty would be silently 0.
    """

    @staticmethod
    def forward(gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            "segmented_attention's cpu backend has no second derivative; call it with "
            "backend='reference', which has"
        )


def _forward(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, segment_size: int
) -> tuple[Tensor, Tensor]:
    query, key, value = _unit_stride(query), _unit_stride(key), _unit_stride(value)
    covering = _plan(query, key, segment_size, is_causal)
    if len(covering) == 1 and covering[0].q0 == 0:
        return _attend_tile(query, key, value, covering[0], scale)
    dtype = accumulation_dtype(query.dtype)
    out = torch.zeros_like(query, dtype=dtype)
    # In float64: with every merge in float32 its error would grow, and the backward takes the
    # exponential of it.
    lse = query.new_full(query.shape[:-1], -torch.inf, dtype=torch.float64)
    for tile in covering:
        _merge_tile(out, lse, query, key, value, tile, scale)
    return out.to(query.dtype), lse.to(dtype)


def _attend_tile(
    query: Tensor, key: Tensor, value: Tensor, tile: Tile, scale: float
) -> tuple[Tensor, Tensor]:
    """The state of a tile's rows over its keys.

    aten gives a row whose scores are all -inf the log-sum-exp 0, which is also that of a row with
    one score of 0. Rows with a 0 are therefore looked at again.
    """
    rows, keys = query[:, :, tile.q0 : tile.q1], key[:, :, tile.k0 : tile.k1]
    out, lse = _attend(rows, keys, value[:, :, tile.k0 : tile.k1], 0.0, tile.diagonal, scale=scale)
    if torch.compiler.is_compiling():
        return out, torch.ops.accel_kernels.with_empty_rows(lse, rows, keys, scale, tile.diagonal)
    return out, _with_empty_rows(lse, rows, keys, scale, tile.diagonal)


def _with_empty_rows(
    lse: Tensor, rows: Tensor, keys: Tensor, scale: float, diagonal: bool
) -> Tensor:
    """`lse` with -inf where every score of a row is -inf."""
    doubtful = (lse == 0).nonzero()
    if not len(doubtful):
        return lse
    lse = lse.clone()
    groups = rows.shape[1] // keys.shape[1]
    for batch, head, row in doubtful.tolist():
        seen = keys[batch, head // groups, : row + 1] if diagonal else keys[batch, head // groups]
        scores = (seen.to(lse.dtype) @ rows[batch, head, row].to(lse.dtype)) * scale
        if bool((scores == -torch.inf).all()):
            lse[batch, head, row] = -torch.inf
    return lse


@torch.library.custom_op("accel_kernels::with_empty_rows", mutates_args=())
def _with_empty_rows_op(
    lse: Tensor, rows: Tensor, keys: Tensor, scale: float, diagonal: bool
) -> Tensor:
    # An operator, because which rows are doubtful depends on data and would not trace.
    return _with_empty_rows(lse, rows, keys, scale, diagonal).clone()


@_with_empty_rows_op.register_fake
def _(lse: Tensor, rows: Tensor, keys: Tensor, scale: float, diagonal: bool) -> Tensor:
    return torch.empty_like(lse)


def _plan(query: Tensor, key: Tensor, segment_size: int, is_causal: bool) -> list[Tile]:
    if query.numel() == 0 or key.numel() == 0:
        return []
    return tiles_of(query.shape[2], key.shape[2], segment_size, is_causal)


def _merge_tile(
    out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, tile: Tile, scale: float
) -> None:
    """Merge one tile into the state, in place."""
    rows = slice(tile.q0, tile.q1)
    part, part_lse = _attend_tile(query, key, value, tile, scale)
    if tile.k0 == 0:  # the first keys: these rows have seen none before
        out[:, :, rows], lse[:, :, rows] = part, part_lse
        return
    out[:, :, rows], lse[:, :, rows] = merge(
        out[:, :, rows], lse[:, :, rows], part.to(out.dtype), part_lse.to(lse.dtype)
    )


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    covering: list[Tile],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if len(covering) == 1 and covering[0].q0 == 0:
        diagonal = covering[0].diagonal
        whole: tuple[Tensor, Tensor, Tensor] = _differentiate(
            grad_out, query, key, value, out, lse, 0.0, diagonal, scale=scale
        )
        return whole
    dtype = accumulation_dtype(query.dtype)
    grad_q, grad_k, grad_v = (torch.zeros_like(t, dtype=dtype) for t in (query, key, value))
    for tile in covering:
        rows, keys = slice(tile.q0, tile.q1), slice(tile.k0, tile.k1)
        part_q, part_k, part_v = _differentiate(
            grad_out[:, :, rows],
            query[:, :, rows],
            key[:, :, keys],
            value[:, :, keys],
            out[:, :, rows],
            lse[:, :, rows],
            0.0,
            tile.diagonal,
            scale=scale,
        )
        grad_q[:, :, rows] += part_q
        grad_k[:, :, keys] += part_k
        grad_v[:, :, keys] += part_v
    return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype)


def _with_lse_column(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Append a column that makes aten's backward include the gradient of the log-sum-exp.

    aten computes `p * (grad_out·v - grad_out·out)`. With `v` extended by 0, `out` by -1 and
    `grad_out` by `grad_lse` that becomes `p * (grad_out·v - grad_out·out + grad_lse)`, which is
    what is wanted. `query` and `key` get a column of zeros, since aten needs one head size.
    """
    column = grad_lse.to(grad_out.dtype).unsqueeze(-1)
    pad = torch.nn.functional.pad
    return (
        pad(query, (0, 1)),
        pad(key, (0, 1)),
        pad(value, (0, 1)),
        pad(out, (0, 1), value=-1.0),
        torch.cat([grad_out, column], -1),
    )


def _unit_stride(tensor: Tensor) -> Tensor:
    """Aten reads the head size with stride 1, whatever the real stride is."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
