"""One call of aten's kernel with its own backward: the way of short sequences.

A Python function in the graph costs several times the operator's own time for a few dozen tokens.
So where aten is exact in both directions, nothing of ours is between it and its backward. Whether
it is follows from shapes, dtype, mask and wanted gradients, but for values that are not finite,
which every call looks for; the rest is decided once for all calls of a kind.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel_kernels.segmented_attention.call import Call, Way
from accel_kernels.segmented_attention.cpu import fused
from accel_kernels.segmented_attention.cpu.few import BLOCK, is_alone, is_few

# The function in C: a call through `torch.ops` costs several microseconds more.
_aten = torch._scaled_dot_product_flash_attention_for_cpu
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
# Scores in the widest vector that aten takes a maximum of.
_VECTOR = 16
# From as many numbers on (128 tokens in 4 heads of 64) torch sums on all threads, in several steps;
# the least and the greatest take fewer.
_SHARED = 32768


def way(query: Tensor, key: Tensor, value: Tensor, call: Call, tile: int) -> Way | None:
    """How to compute a plain call and all others of its kind; None where this is not the way.

    Args:
        query: `[B, H, T, D]`; of the three no value counts.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D]`.
        call: A call that aten computes in one, without its log-sum-exp.
        tile: Most queries and keys that a backward may take together.

    Returns:
        A function from the three tensors to the output, or to None where they hold what is not
        finite and might reach what must not see it.
    """
    batch, heads, length, size = query.shape
    keys, diagonal = key.shape[2], call.mask is not None and length > 1
    tracked = torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    )
    if is_few(query, key) or (tracked and not _has_quick_backward(query, key, tile)):
        return None
    scale, alone = call.scale, is_alone(batch * heads, length, keys, size)
    if alone and length > BLOCK:
        if tracked and torch.get_num_threads() > 1:
            return None  # the backward would leave its threads to MKL
        alone = tracked  # the forward shares its rows among threads
    # aten gives zeros to a row of so few scores that are all NaN. Hidden values reach the output
    # and gradients as 0 * NaN; infinite queries and keys need not show in it, and reach gradients.
    scores, values = keys < _VECTOR or (diagonal and tracked), diagonal
    many = max(query.numel(), key.numel(), value.numel()) >= _SHARED

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        twice = alone and torch.get_num_threads() > 1
        if twice and length > BLOCK:
            return None  # there are more threads than when this was prepared
        if tracked and _saved_tensors_hooks(False) is not None:
            return None  # aten's backward reads what they give back by the strides that it saved
        if scores or values:
            if tracked:  # a graph of a check would cost as much as the check
                torch._C._set_grad_enabled(False)
            try:
                told = _ends if many and torch.get_num_threads() > 1 else _total
                total = told(query) + told(key) if scores else 0.0
                if values:
                    total += told(value)
            finally:
                if tracked:
                    torch._C._set_grad_enabled(True)
            if not math.isfinite(total):
                return None
        if twice:
            query, key, value = (tensor.expand(2, -1, -1, -1) for tensor in (query, key, value))
            out = _aten(query, key, value, 0.0, diagonal, scale=scale)[0][:1]
        else:
            out = _aten(query, key, value, 0.0, diagonal, scale=scale)[0]
        if tracked:
            node: Any = out.grad_fn
            node._register_hook_dict(_HOOKED)
        return out

    return attend


def _has_quick_backward(query: Tensor, key: Tensor, tile: int) -> bool:
    """Whether aten's backward is as exact as ours and as quick.

    float64, in which derivatives are checked, keeps its second derivatives. Our own backward shares
    among threads the heads of one key/value head, and the rows of a single head.
    """
    heads, length = query.shape[1:3]
    return (
        query.dtype != torch.float64
        and max(length, key.shape[2]) <= tile
        and not (key.shape[1] == 1 and heads > 1)
        and not (heads == 1 and length >= fused.CUT_ROWS)
    )


def _total(tensor: Tensor) -> float:
    """Finite if all of it is; if a sum overflows that costs time only."""
    wide = torch.float32 if tensor.dtype == torch.float16 else None
    return tensor.sum(dtype=wide).item()


def _ends(tensor: Tensor) -> float:
    """As `_total`, by the least and the greatest."""
    least, greatest = torch.aminmax(tensor)
    return least.item() + greatest.item()


def _refuse_second_derivative(grad: Tensor) -> None:
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(
            "segmented_attention's cpu backend has no second derivative for short sequences in "
            "less than float64; call it with backend='reference' or with return_lse=True, which "
            "have one"
        )


# Lends its hook to the graph of every output: `register_hook` would make a dictionary and a handle
# each time, at several times the cost, and no output gives this hook back.
_HOOKED = torch.empty(0, device="cpu")
_HOOKED._backward_hooks = {0: _refuse_second_derivative}
