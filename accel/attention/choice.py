"""From the arguments of a call to the kernel that serves it, in a few microseconds.

Whether arguments fit, and which kernel takes them, depends on shapes, dtypes and options, and not
on values. So the answer is remembered for each combination, and a layer that asks again gets it
back without any check being made twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel import dispatch
from accel.dispatch import choice_in_force, kernel_for
from accel_kernels.masks import Mask
from accel_kernels.segmented_attention.arguments import (
    NAME,
    bias_of,
    mask_of,
    request,
    under_autocast,
)
from accel_kernels.segmented_attention.call import Bias, Call

_Guards: Any
try:
    from torch._C._dynamo.guards import TensorGuards as _Guards
except ImportError:  # a torch that compares otherwise: every call goes the way of the first
    _Guards = None


class Chosen(NamedTuple):
    """The kernel for a call, and its mask and bias in the form that kernels take.

    `quick`, if there is one, computes all calls of this kind from their three tensors, or returns
    None where their values ask for the kernel.
    """

    kernel: Callable[..., Any]
    mask: Mask | None
    bias: Bias | None
    quick: Callable[[Tensor, Tensor, Tensor], Tensor | None] | None = None


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
                _keep(query, key, value, mask, options, found)
                # Not the mask that was remembered: its owner may have changed it since.
                return found if mask is None else found._replace(mask=mask_of(mask, is_causal))
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
        if not _is_watched():
            found = found._replace(quick=_quick_way(query, key, value, options, found))
        dispatch.remember(place, found)
        _keep(query, key, value, mask, options, found)
    return found


def quick_answer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    is_causal: bool,
    scale: float | None,
    backend: str | None,
) -> Tensor | None:
    """The output of a call whose kind was asked for lately, every other option being its default.

    None where it was not, or no kernel has a way for calls of the kind, or values forbid it: then
    `kernel_of_call` answers. Code that other work has driven from the caches costs a microsecond a
    step, so there are few: the comparison by which torch's compiler recognises tensors, in C, is
    one for types, dtypes, devices, shapes, wanted gradients, autocast, modes and `torch.func`.
    """
    if torch.compiler.is_compiling():
        return None
    for fits, causal, factor, named, mask_key, state, quick in dispatch.remembered(_LATEST) or ():
        if (
            is_causal is causal
            and scale is factor
            and backend is named
            and fits(query, key, value)
            and _state() == state
            and (() if mask is None else _key_of(mask)) == mask_key
        ):
            found: Tensor | None = quick(query, key, value)
            return found
    return None


def _quick_way(
    query: Tensor, key: Tensor, value: Tensor, options: tuple[Any, ...], chosen: Chosen
) -> Any:
    """What the kernel's own `prepare`, if it has one, says of calls with no option set."""
    prepare = getattr(chosen.kernel, "prepare", None)
    _, scale, *others, _ = options
    if prepare is None or _Guards is None or others != _DEFAULTS:
        return None
    factor = 1.0 / math.sqrt(query.shape[3]) if scale is None else scale
    return prepare(query, key, value, Call(chosen.mask, factor))


def _keep(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, options: tuple[Any, ...], chosen: Chosen
) -> None:
    """Let `quick_answer` know of a kind of call, if there is a quick way for it."""
    if chosen.quick is None or _is_watched():
        return  # nor would such calls be recognised
    given = (query, key, value)
    fits = _Guards(
        *given,
        dynamic_dims_sizes=[list(tensor.shape) for tensor in given],
        dynamic_dims_strides=[[None, None, None, tensor.stride(3)] for tensor in given],
    ).check
    mask_key = () if mask is None else _key_of(mask)
    known = (fits, options[0], options[1], options[-1], mask_key, _state(), chosen.quick)
    others = [one for one in dispatch.remembered(_LATEST) or () if one[-1] is not chosen.quick]
    dispatch.remember(_LATEST, (known, *others[: _MOST - 1]))


def _state() -> tuple[Any, ...]:
    """What an answer depends on besides the arguments."""
    return (
        torch.is_grad_enabled(),
        torch._C._get_deterministic_algorithms(),
        # Of the CPU, whose kernels alone have a quick way.
        torch._C._is_any_autocast_enabled()
        and (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        choice_in_force(NAME),
    )


def _is_watched() -> bool:
    """Whether a mode or `torch.func` sees what is called, and decides what is done."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()


def _key_of(mask: Any) -> tuple[Any, ...] | None:
    """What a mask is, hashable; None if that cannot be told."""
    return mask.key() if isinstance(mask, Mask) else None


def _place(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, bias: Any, options: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """All that an answer depends on; None where that is not a few hashable things.

    Asks each tensor as little as possible: of a few microseconds most are attributes of tensors.
    What makes a call an error need not be told apart, since only answers are remembered.
    """
    # True equals 1 and 1.0, in a dictionary too, but is refused where they are not.
    if bias is not None or tuple(map(type, options)) not in _OPTION_TYPES:
        return None
    mask_key = () if mask is None else _key_of(mask)
    if mask_key is None:
        return None
    # A class of its own may mean anything; a parameter is a tensor.
    if not (type(query) in _PLAIN and type(key) in _PLAIN and type(value) in _PLAIN):
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
    shapes = query.shape, key.shape, value.shape
    if not len(shapes[0]) == len(shapes[1]) == len(shapes[2]) == 4:
        return None
    needs_grad = torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    )
    # Of a call whose tensors have not been cast yet, as decoding asks.
    cast = torch._C._is_any_autocast_enabled() and (
        under_autocast(device.type) and torch.get_autocast_dtype(device.type)
    )
    return (
        shapes, query.stride(3), key.stride(3), value.stride(3),
        dtype, device, cast, needs_grad, torch.are_deterministic_algorithms_enabled(),
        options, mask_key, choice_in_force(NAME), _is_watched(),
    )  # fmt: skip


# Where the latest kinds are remembered, and how many.
_LATEST = ("latest calls of segmented_attention",)
_MOST = 8
# Of dropout_p, dropout_seed, softcap, segment_size and return_lse.
_DEFAULTS = [0.0, None, None, None, False]
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_NUMBER = frozenset({type(None), int, float})
_WHOLE = frozenset({type(None), int})
_BOOL = frozenset({bool})
# Of is_causal, scale, dropout_p, dropout_seed, softcap, segment_size, return_lse, backend.
_OPTION_TYPES = frozenset(
    itertools.product(
        _BOOL, _NUMBER, _NUMBER, _WHOLE, _NUMBER, _WHOLE, _BOOL, frozenset({type(None), str})
    )
)
