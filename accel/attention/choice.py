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
from accel_kernels.segmented_attention.arguments import bias_of, mask_of, request
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
    if torch.compiler.is_compiling():
        place = None
    else:
        place = _place(
            (query, key, value), mask, bias,
            (is_causal, scale, dropout_p, dropout_seed, softcap, segment_size, return_lse, backend),
        )  # fmt: skip
    found: Chosen | None = dispatch.remembered(place) if place is not None else None
    if found is not None:
        # Not the mask of the call that was remembered: its owner may have changed it since.
        return found._replace(mask=mask_of(mask, is_causal))
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
    tensors: tuple[Tensor, Tensor, Tensor], mask: Any, bias: Any, options: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """All that an answer depends on; None where that is not a few hashable things."""
    if bias is not None:
        return None
    mask_key = None
    if mask is not None and (not isinstance(mask, Mask) or (mask_key := mask.key()) is None):
        return None
    query, key, value = tensors
    # A class of its own may mean anything; a parameter is a tensor.
    if not (type(query) in _PLAIN and type(key) in _PLAIN and type(value) in _PLAIN):
        return None
    if not (query.dim() == key.dim() == value.dim() == 4 and type(options[3]) in _SEEDS):
        return None
    return (
        # True equals 1 and 1.0, in a dictionary too, but is refused where they are not.
        options, *map(type, options), mask_key, *choice_in_force("segmented_attention"),
        query.shape, query.dtype, query.device, query.layout, query.requires_grad,
        key.shape, key.dtype, key.device, key.layout, key.requires_grad,
        value.shape, value.dtype, value.device, value.layout, value.requires_grad,
        query.stride(3), key.stride(3), value.stride(3),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


_SEEDS = (type(None), int)
_PLAIN = (Tensor, torch.nn.Parameter)
