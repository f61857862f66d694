"""The two passes: from tensors and a layout to results."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.masks import Causal
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.cpu_amx.layout import Layout, lay_out
from accel_kernels.segmented_attention.cpu_amx.library import library

# Rows of a packed group of heads, up to which it is packed.
_FEW_ROWS = 32


def forward_layout(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Layout:
    """How a forward is laid out; as `lay_out`."""
    if not _sees_all(query, key, call):
        return lay_out(query, key, value, call)
    # A group's heads as query rows: their keys are read once.
    rows = (query.shape[0], key.shape[1], -1, query.shape[3])
    packed = lay_out(query.reshape(rows), key, value, call._replace(mask=None))
    return packed._replace(is_packed=True)


def forward_pass(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp.

    Args:
        layout: `forward_layout` of such tensors, none of them empty.
        query: `[B, H, T, D]`, `aligned` as key and value.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        lse: `[B, H, T]` in float32, contiguous; is written to.

    Returns:
        `out` `[B, H, T, D_v]`, with the query's strides where it may be, and `lse`.
    """
    shape, size = query.shape, value.shape[3]
    if layout.is_packed:
        # In the call's shape: autograd lets nobody change a view in place.
        out = query.new_empty((*shape[:3], size))
        query = query.reshape(shape[0], key.shape[1], -1, shape[3])
        memory = layout.memory(lse, query, key, value, out.view(*query.shape[:3], size))
    else:
        out = _like(query) if shape[3] == size else query.new_empty((*shape[:3], size))
        memory = layout.memory(lse, query, key, value, out)
    _check(library(query.dtype).accel_attention_forward(memory))
    return out, lse


def backward_pass(
    layout: Layout,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each with its tensor's strides where it may be.

    Args:
        layout: `lay_out` of such tensors, none of them empty.
        grad_out: As `out`, `aligned`.
        query: As given to `forward_pass`, `aligned`; `key` and `value` too.
        key: See `query`.
        value: See `query`.
        out: What `forward_pass` returned, `aligned`.
        lse: What `forward_pass` returned, contiguous.
        grad_lse: As `lse`, contiguous; None for zeros.
    """
    grads = _like(query), _like(key), _like(value)
    memory = layout.memory(lse, query, key, value, out, grad_out, *grads)
    if grad_lse is not None:
        memory.grad_lse = grad_lse.data_ptr()
    _check(library(query.dtype).accel_attention_backward(memory))
    return grads


def _like(tensor: Tensor) -> Tensor:
    """An empty tensor with a tensor's strides, if its rows then lie together in memory.

    What torch makes like a tensor with overlapping rows may have another dimension innermost.
    """
    made = torch.empty_like(tensor)
    return made if made.stride(3) == 1 else tensor.new_empty(tensor.shape)


def _sees_all(query: Tensor, key: Tensor, call: Call) -> bool:
    """Whether a few queries of grouped heads see every key, and nothing tells the heads apart."""
    if query.shape[1] == key.shape[1] or key.numel() == 0 or call.bias or call.dropout:
        return False
    heads, length = query.shape[1:3]
    if call.mask is None:
        return heads // key.shape[1] * length <= _FEW_ROWS
    return length == 1 and type(call.mask) is Causal and call.mask.align == "bottom_right"


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory for attention's copies of queries, keys and values")
