"""Operators that torch_npu registers above autograd and that compute past the dispatcher there.

Each is handed back to torch's own definition: the composite formula where there is one, else the
derivative torch generates. Both call operators below autograd, which are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COMPOSITE = "CompositeImplicitAutograd"
# What attention calls below autograd; registered for the chip, so that nothing falls back.
HELPERS = (
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
)
_FLASH = 1  # SDPBackend.FLASH_ATTENTION: on a CPU torch's fused kernel


def make_kernel(operator: Any) -> Callable[..., Any]:
    """The kernel of an operator at the autograd key."""
    if operator.name() == "aten::scaled_dot_product_attention":
        return scaled_dot_product_attention
    key = COMPOSITE if _has(operator.name(), COMPOSITE) else "Autograd"
    dispatch_key = getattr(torch._C.DispatchKey, key)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        return operator._op_dk(dispatch_key, *args, **kwargs)

    kernel.__name__ = f"simulated {operator.name()} with gradient"
    return kernel


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that torch would choose for the same tensors on a CPU: fused or by the formula."""
    aten = torch.ops.aten
    attn_mask = _as_bias(attn_mask, query)
    if _fused(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
        fused: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
        return fused
    out: Tensor = aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return out


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> bool:
    """Whether torch takes its fused CPU kernel; asked with tensors that take no memory."""
    tensors = (query, key, value)
    if enable_gqa or any(tensor.numel() == 0 or tensor.dim() != 4 for tensor in tensors):
        return False
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return False
    choose: Any = torch._fused_sdp_choice
    chosen = choose(
        *map(_with_rows, tensors),
        None if mask is None else _with_rows(mask),
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return bool(chosen == _FLASH)


def _with_rows(tensor: Tensor) -> Tensor:
    """A CPU tensor of these sizes whose rows are contiguous; it has the memory of one row."""
    length = tensor.size(-1) if tensor.dim() else 1
    row = torch.empty(max(length, 1), dtype=tensor.dtype, device="cpu")
    shown = row.as_strided(tensor.size(), ([0] * tensor.dim())[:-1] + [1] * (tensor.dim() > 0))
    return shown.requires_grad_() if tensor.requires_grad else shown


def _as_bias(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A Boolean mask as what is added to the scores, as torch does first of all."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
    return bias.masked_fill_(~mask, -torch.inf)


def _has(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))
