"""From the arguments of a call to the kernel that serves it, in a few microseconds.

Whether arguments fit, and which kernel takes them, depends on shapes, dtypes and options, and not
on values. So the answer is remembered for each combination, and a layer that asks again gets it
back without any check being made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel import dispatch
from accel.dispatch import choice_in_force, kernel_for
from accel_kernels.masks import Mask
from accel_kernels.segmented_attention.arguments import (
    bias_of,
    mask_of,
    request,
    under_autocast,
)
from accel_kernels.segmented_attention.call import Bias


class Chosen(NamedTuple):
    """The kernel for a call, and its mask and bias in the form that kernels take."""

    kernel: Callable[..., Any]
    mask: Mask | None
    bias: Bias | None


def kernel_of_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
    dropout_seed: int | Tensor | None,
    softcap: float | None,
    bias: Any,
    segment_size: int | None,
    return_lse: bool,
    backend: str | None,
) -> Chosen:
    """Check a call of `segmented_attention` and choose its kernel.

    Raises:
        TypeError: As `accel.segmented_attention`.
        ValueError: As `accel.segmented_attention`.
        accel.BackendError: The named backend, or every backend, cannot serve the call.
    """
    place = None
    if not torch.compiler.is_compiling():
        options = (
            is_causal, scale, dropout_p, dropout_seed, softcap, segment_size, return_lse, backend,
        )  # fmt: skip
        place = _place(query, key, value, mask, bias, options)
        if place is not None:
            found: Chosen | None = dispatch.remembered(place)
            if found is not None:
                if mask is None:
                    return found
                # Not the mask that was remembered: its owner may have changed it since.
                return Chosen(found.kernel, mask_of(mask, is_causal), None)
    asked = request(
        query,
        key,
        value,
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        softcap=softcap,
        bias=bias,
        segment_size=segment_size,
        return_lse=return_lse,
    )
    found = Chosen(kernel_for(asked, backend), mask_of(mask, is_causal), bias_of(bias))
    if place is not None:
        dispatch.remember(place, found)
    return found


def _place(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, bias: Any, options: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """All that an answer depends on; None where that is not a few hashable things.

    Asks each tensor as little as possible: of a few microseconds most are attributes of tensors.
    What makes a call an error need not be told apart, since only answers are remembered.
    """
    mask_key = None
    if bias is not None or (
        mask is not None and (not isinstance(mask, Mask) or (mask_key := mask.key()) is None)
    ):
        return None
    # A class of its own may mean anything; a parameter is a tensor.
    if not (type(query) in _PLAIN and type(key) in _PLAIN and type(value) in _PLAIN):
        return None
    # True equals 1 and 1.0, in a dictionary too, but is refused where they are not.
    for option, types in zip(options, _OPTION_TYPES, strict=True):
        if type(option) not in types:
            return None
    dtype, device, layout = query.dtype, query.device, torch.strided
    if not (
        key.dtype is dtype
        and value.dtype is dtype
        and query.layout is layout
        and key.layout is layout
        and value.layout is layout
        and key.device == device
        and value.device == device
    ):
        return None
    strides = query.stride(), key.stride(), value.stride()
    if not len(strides[0]) == len(strides[1]) == len(strides[2]) == 4:
        return None
    needs_grad = torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    )
    # Of a call whose tensors have not been cast yet, as decoding asks.
    cast = torch._C._is_any_autocast_enabled() and (
        under_autocast(device.type) and torch.get_autocast_dtype(device.type)
    )
    return (
        query.shape, key.shape, value.shape, strides[0][3], strides[1][3], strides[2][3],
        dtype, device, cast, needs_grad, torch.are_deterministic_algorithms_enabled(),
        options, mask_key, choice_in_force("segmented_attention"),
    )  # fmt: skip


_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_NUMBER = frozenset({type(None), int, float})
_WHOLE = frozenset({type(None), int})
_BOOL = frozenset({bool})
# Of is_causal, scale, dropout_p, dropout_seed, softcap, segment_size, return_lse, backend.
_OPTION_TYPES = (
    _BOOL, _NUMBER, _NUMBER, _WHOLE, _NUMBER, _WHOLE, _BOOL, frozenset({type(None), str}),
)  # fmt: skip
