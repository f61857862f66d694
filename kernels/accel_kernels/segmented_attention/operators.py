"""`torch.ops.accel_kernels.segmented_attention`: one operator for traced and exported programs.

It has fake, autograd, autocast and vmap rules and a FLOP count (`flops`), and computes by the
kernel that its last argument names. A mask arrives as what every mask becomes: row intervals, a
dense tensor, or the word causal.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from accel_kernels.masks import (
    Both,
    Causal,
    Dense,
    Mask,
    RowIntervals,
    visibility,
)
from accel_kernels.segmented_attention.call import BIAS_KINDS, Bias, Call, Dropout, sizes_of
from accel_kernels.segmented_attention.differentiable import Gradients, implementation
from accel_kernels.segmented_attention.flops import register_flops
from accel_kernels.segmented_attention.state import accumulation_dtype

# What follows query, key and value in both operators.
_ARGUMENTS = (
    "Tensor? intervals, Tensor? dense, bool causal, float scale, float? softcap, Tensor? bias, "
    "str bias_kind, SymInt? bias_shift, float dropout_p, Tensor? dropout_seed, "
    "SymInt[]? dropout_sizes, SymInt[] dropout_first, SymInt? segment_size, bool return_lse, "
    "str backend"
)
_library = torch.library.Library("accel_kernels", "FRAGMENT")
_library.define(
    f"segmented_attention(Tensor query, Tensor key, Tensor value, {_ARGUMENTS}) -> (Tensor, Tensor)"
)
_library.define(
    "segmented_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, "
    f"Tensor value, Tensor out, Tensor lse, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
forward = torch.ops.accel_kernels.segmented_attention.default
backward = torch.ops.accel_kernels.segmented_attention_backward.default
_COUNT = _ARGUMENTS.count(",") + 1
_BIAS, _RETURN_LSE = 5, 13  # places of these among the arguments


def call_operator(
    backend: str, query: Tensor, key: Tensor, value: Tensor, call: Call
) -> tuple[Tensor, Tensor]:
    """The operator for a call: its output and log-sum-exp."""
    result: tuple[Tensor, Tensor] = forward(query, key, value, *_encoded(query, key, call), backend)
    return result


def call_backward_operator(
    backend: str,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
) -> Gradients:
    """The operator for the backward of a call: its gradients."""
    given = (grad_out, grad_lse, query, key, value, out, lse)
    *found, bias = backward(*given, *_encoded(query, key, call), backend)
    grad_query, grad_key, grad_value = found
    return Gradients(grad_query, grad_key, grad_value, None if call.bias is None else bias)


def _encoded(query: Tensor, key: Tensor, call: Call) -> tuple[Any, ...]:
    seen = visibility(call.mask, sizes_of(query, key), query.device)
    bias, dropout = call.bias, call.dropout
    seed = None
    if dropout is not None:
        seed = dropout.seed
        if not isinstance(seed, Tensor):
            seed = torch.tensor(seed, dtype=torch.int64, device="cpu")
    return (
        seen.intervals,
        seen.dense,
        seen.causal,
        call.scale,
        call.softcap,
        None if bias is None else bias.tensor,
        "" if bias is None else bias.kind,
        None if bias is None else bias.shift,
        0.0 if dropout is None else dropout.p,
        seed,
        None if dropout is None else dropout.sizes,
        (0, 0, 0, 0) if dropout is None else dropout.first,
        call.segment_size,
        call.return_lse,
    )


def _decoded(
    intervals: Tensor | None,
    dense: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
    bias: Tensor | None,
    bias_kind: str,
    bias_shift: int | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    dropout_sizes: list[int] | None,
    dropout_first: list[int],
    segment_size: int | None,
    return_lse: bool,
) -> Call:
    mask: Mask | None = Causal("bottom_right") if causal else None
    if intervals is not None:
        mask = RowIntervals(intervals)
    if dense is not None:
        mask = Dense(dense) if mask is None else Both(mask, Dense(dense))
    dropout = None
    if dropout_seed is not None:
        queries = None if dropout_sizes is None else tuple(dropout_sizes)
        dropout = Dropout(dropout_p, dropout_seed, queries, tuple(dropout_first))  # type: ignore[arg-type]
    added = None
    if bias is not None:
        kind = BIAS_KINDS[BIAS_KINDS.index(bias_kind)]
        added = Bias(kind, bias, bias_shift)  # type: ignore[arg-type]
    return Call(mask, scale, softcap, added, dropout, segment_size, return_lse)


def _compute(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *arguments, backend = rest
    with torch.no_grad():
        out, lse = implementation(backend).forward(query, key, value, _decoded(*arguments))
    return out.contiguous(), lse.contiguous()


def _compute_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *arguments, backend = rest
    with torch.no_grad():
        found = implementation(backend).backward(
            grad_out, grad_lse, query, key, value, out, lse, _decoded(*arguments)
        )
    given = arguments[_BIAS]
    if found.bias is not None:
        bias = found.bias.contiguous()
    else:
        bias = query.new_empty(0) if given is None else torch.zeros_like(given)
    return found.query.contiguous(), found.key.contiguous(), found.value.contiguous(), bias


def _fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = accumulation_dtype(query.dtype)
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty(query.shape[:-1], dtype=lse_dtype)


def _fake_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    bias = rest[_BIAS]
    like = [query.new_empty(tensor.shape) for tensor in (query, key, value)]
    return (*like, query.new_empty(0) if bias is None else bias.new_empty(bias.shape))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *rest = inputs
    tensors = [item if isinstance(item, Tensor) else None for item in rest]
    ctx.save_for_backward(query, key, value, *output, *tensors)
    ctx.rest = [None if isinstance(item, Tensor) else item for item in rest]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
    query, key, value, out, lse, *tensors = ctx.saved_tensors
    rest = [b if a is None else a for a, b in zip(tensors, ctx.rest, strict=True)]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    # Traced code hands in zeros for an output that nobody uses.
    grad_lse = grad_lse if rest[_RETURN_LSE] else None
    *found, bias = backward(grad_out, grad_lse, query, key, value, out, lse, *rest)
    result: list[Any] = [None] * _COUNT
    result[_BIAS] = None if rest[_BIAS] is None else bias
    return (*found, *result)


def _mapped(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    """Of the operator: one call per entry, as `torch.func` has the foldable form (`run`)."""
    return _each(forward, info, in_dims, inputs)


def _mapped_backward(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    return _each(backward, info, in_dims, inputs)


def _each(operator: Any, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    parts = [
        operator(
            *(
                item.select(dim, n) if isinstance(item, Tensor) and dim is not None else item
                for item, dim in zip(inputs, in_dims, strict=True)
            )
        )
        for n in range(info.batch_size)
    ]
    joined = tuple(torch.stack(part) for part in zip(*parts, strict=True))
    return joined, (0,) * len(joined)


def _autocast(kind: str, keys: torch._C.DispatchKeySet) -> Any:
    def cast(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        dtype = torch.get_autocast_dtype(kind)
        inputs = [t if t.dtype == torch.float64 else t.to(dtype) for t in (query, key, value)]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return forward(*inputs, *rest)

    return cast


def _register() -> None:
    _library.impl("segmented_attention", _compute, "CompositeExplicitAutograd")
    _library.impl("segmented_attention_backward", _compute_backward, "CompositeExplicitAutograd")
    name = "accel_kernels::segmented_attention"
    torch.library.register_fake(name, _fake, lib=_library)
    torch.library.register_fake(f"{name}_backward", _fake_backward, lib=_library)
    torch.library.register_autograd(
        name, _differentiate, setup_context=_setup_context, lib=_library
    )
    torch.library.register_vmap(name, _mapped, lib=_library)
    torch.library.register_vmap(f"{name}_backward", _mapped_backward, lib=_library)
    for kind, dispatch in (
        ("cpu", "CPU"),
        ("cuda", "CUDA"),
        ("xpu", "XPU"),
        ("npu", "PrivateUse1"),
    ):
        key = getattr(torch._C.DispatchKey, f"Autocast{dispatch}")
        _library.impl(
            "segmented_attention",
            _autocast(kind, torch._C.DispatchKeySet(key)),
            f"Autocast{dispatch}",
        )


_register()
if "torch.utils.flop_counter" in sys.modules:
    register_flops()
