"""Checking a call of segmented attention, once, and reducing it to a request."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel_kernels.masks import Mask, as_mask, causal, visibility
from accel_kernels.segmented_attention.call import Bias, sizes_of
from accel_kernels.spec import Request

NAME = "segmented_attention"


def request(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    softcap: float | None = None,
    bias: Any = None,
    segment_size: int | None = None,
    return_lse: bool = False,
) -> Request:
    """Check the arguments of `accel.segmented_attention` and say what a kernel must be able to do.

    Raises:
        TypeError: A tensor is none, or not dense, or not of a floating dtype; the dtypes differ; or
            another argument is of the wrong type.
        ValueError: Shapes, devices or numbers do not fit.
    """
    query, key, value = cast_for_autocast(query, key, value)
    _check_types(is_causal, scale, segment_size, dropout_seed)
    _check_more_types(dropout_p, softcap, return_lse)
    _check_tensors(query, key, value)
    _check_shapes(query, key, value)
    _check_numbers(scale, dropout_p, softcap, segment_size)
    seen, added = mask_of(mask, is_causal), bias_of(bias)
    _check_bias(added, query, key)
    if seen is not None:
        visibility(seen, sizes_of(query, key), query.device)
    features = {
        *_tensor_features(query, key, value),
        *_mask_features(seen, added, query, key),
        *(name for name, used in (
            ("dropout_p", dropout_p > 0.0),
            ("softcap", softcap is not None),
            ("segment_size", segment_size is not None),
            ("scale not positive", scale is not None and scale <= 0.0),
            ("return_lse", return_lse),
        ) if used),
    }  # fmt: skip
    grad = torch.is_grad_enabled()
    if added is not None:
        features.add(f"bias: {added.kind}")
        if grad and added.tensor.requires_grad:
            features.add("gradient of bias")
    needs_grad = grad and (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (added is not None and added.tensor.requires_grad)
    )
    sizes = (
        ("head_size", query.shape[3]),
        ("value_head_size", value.shape[3]),
        ("query_length", query.shape[2]),
        ("key_length", key.shape[2]),
    )
    return Request(
        NAME,
        query.device.type,
        query.dtype,
        frozenset(features),
        sizes,
        needs_grad,
        torch.are_deterministic_algorithms_enabled(),
    )


def mask_of(mask: Any, is_causal: bool) -> Mask | None:
    """The call's mask: what was given, and causal besides if `is_causal`.

    Raises:
        TypeError: It is neither a mask nor a bool tensor.
        ValueError: A mask tensor has another number of dimensions than two to four.
    """
    if mask is None:
        return causal() if is_causal else None
    found = as_mask(mask)
    return found & causal() if is_causal else found


def bias_of(bias: Any) -> Bias | None:
    """The call's bias: `alibi` or `relative_bias` as they are, a floating tensor as a dense one.

    Raises:
        TypeError: It is neither.
        ValueError: A tensor has another number of dimensions than two to four.
    """
    if bias is None or isinstance(bias, Bias):
        return bias
    if not isinstance(bias, Tensor) or not bias.dtype.is_floating_point:
        kind = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(
            f"bias must be alibi(...), relative_bias(...) or a floating tensor, not {kind}; what a "
            "query may see goes into mask="
        )
    if not 2 <= bias.dim() <= 4:
        raise ValueError(
            f"a bias tensor is [T, S] to [B, H, T, S], not {tuple(bias.shape)}; slopes go into "
            "alibi(...), a table of distances into relative_bias(...)"
        )
    return Bias("dense", bias.view((1,) * (4 - bias.dim()) + tuple(bias.shape)))


def _check_bias(bias: Bias | None, query: Tensor, key: Tensor) -> None:
    if bias is None:
        return
    shape, (batch, heads, queries, keys) = tuple(bias.tensor.shape), sizes_of(query, key)
    if bias.tensor.device != query.device:
        raise ValueError(
            f"bias must be on the query's device {query.device}, not on {bias.tensor.device}; "
            "move it"
        )
    if bias.kind == "dense":
        wanted: tuple[tuple[int, ...], ...] = tuple((1, n) for n in (batch, heads, queries, keys))
        form = f"broadcast to [B, H, T, S] = {[batch, heads, queries, keys]}"
    elif bias.kind == "alibi":
        wanted = ((heads,),) if len(shape) == 1 else ((batch,), (heads,))
        form = f"have slopes [H] = [{heads}] or [B, H] = [{batch}, {heads}]"
    else:
        wanted = ((1, heads), shape[1:])
        form = f"have a table for 1 or {heads} heads"
    # Not `in`: Dynamo compares a number and a symbol there by identity.
    fits = (any(n == one for one in some) for n, some in zip(shape, wanted, strict=True))
    if not all(fits):
        raise ValueError(f"bias must {form}, but has shape {shape}")


def cast_for_autocast(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """The three in autocast's dtype, if it is on where the query is; else as they are.

    Like torch's own operators, it leaves float64, and what is no floating tensor, alone.
    """
    if not isinstance(query, Tensor) or not under_autocast(kind := query.device.type):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)

    def cast(item: Any) -> Any:
        is_cast = isinstance(item, Tensor) and item.is_floating_point()
        return item.to(dtype) if is_cast and item.dtype != torch.float64 else item

    return cast(query), cast(key), cast(value)


def under_autocast(kind: str) -> bool:
    """Whether autocast is on for a device type; in a fraction of a microsecond where it is off."""
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return False
    return _has_autocast(kind) and torch.is_autocast_enabled(kind)


def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


# What `torch.compiler.assume_constant_result` sets, without importing the compiler: torch 2.11 does
# not trace the question.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_types(
    is_causal: object, scale: object, segment_size: object, dropout_seed: object
) -> None:
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal must be True or False, not {is_causal!r}")
    # A tensor would lose its gradient in silence: the kernels take a number.
    if scale is not None and not isinstance(scale, (int, float, torch.SymFloat)):
        raise TypeError(
            f"scale must be a number, not {type(scale).__name__}; multiply the query by a scale "
            "that is learned"
        )
    is_size = isinstance(segment_size, (int, torch.SymInt)) and not isinstance(segment_size, bool)
    if segment_size is not None and not is_size:
        raise TypeError(f"segment_size must be an integer, not {segment_size!r}")
    if isinstance(dropout_seed, Tensor):
        is_seed = dropout_seed.dtype == torch.int64 and dropout_seed.dim() == 0
    else:
        is_seed = isinstance(dropout_seed, int) and not isinstance(dropout_seed, bool)
    if dropout_seed is not None and not is_seed:
        raise TypeError(
            f"dropout_seed must be an integer or an int64 tensor without dimensions, not "
            f"{dropout_seed!r}"
        )
    if isinstance(dropout_seed, int) and not -(1 << 63) <= dropout_seed < 1 << 63:
        raise ValueError(f"dropout_seed must be a signed number of 64 bits, not {dropout_seed}")


def _check_more_types(dropout_p: object, softcap: object, return_lse: object) -> None:
    for name, number in (("dropout_p", dropout_p), ("softcap", softcap)):
        is_number = isinstance(number, (int, float, torch.SymFloat))
        if number is not None and (not is_number or isinstance(number, bool)):
            raise TypeError(f"{name} must be a number, not {number!r}")
    if dropout_p is None:
        raise TypeError("dropout_p must be a number, not None; 0.0 turns dropout off")
    if not isinstance(return_lse, bool):
        raise TypeError(f"return_lse must be True or False, not {return_lse!r}")


def _tensor_features(query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    features = []
    if query.shape[1] != key.shape[1]:
        features.append("grouped heads")
    if query.shape[3] != value.shape[3]:
        features.append("value head size")
    if query.stride(3) != 1 or key.stride(3) != 1 or value.stride(3) != 1:
        features.append("head size not contiguous")
    if query.numel() == 0 or key.numel() == 0 or value.numel() == 0:
        features.append("empty tensors")
    return features


def _mask_features(mask: Mask | None, bias: Bias | None, query: Tensor, key: Tensor) -> list[str]:
    if mask is None:
        return []
    kinds = mask.kinds()
    features = [f"mask: {kind}" for kind in kinds]
    if "causal" in kinds and query.shape[2] != key.shape[2]:
        features.append("causal of unequal lengths")
    dense = "dense" in kinds or (bias is not None and bias.kind == "dense")
    if dense and kinds != {"dense"}:
        # For a kernel that takes one tensor: together they would be a new one of all pairs.
        features.append("structure with a tensor")
    return features


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise TypeError(f"{name} must be a dense tensor, not nested or {tensor.layout}")
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must be [B, H, T, D], but has shape {tuple(tensor.shape)}; add the "
                "missing dimensions with unsqueeze"
            )
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be of a floating dtype, not {tensor.dtype}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"query, key and value must have one dtype, but have {query.dtype}, {key.dtype}, "
            f"{value.dtype}; cast them with .to(query.dtype)"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"query, key and value must be on one device, but are on {query.device}, "
            f"{key.device}, {value.device}; move them with accel.current_device().move"
        )


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    q, k, v = tuple(query.shape), tuple(key.shape), tuple(value.shape)
    if k[:3] != v[:3]:
        raise ValueError(
            f"key and value must agree in batch, heads and length, but are {k} and {v}"
        )
    if q[0] != k[0]:
        raise ValueError(f"query and key must have one batch size, but are {q} and {k}")
    if q[3] != k[3]:
        raise ValueError(f"query and key must have one head size, but are {q} and {k}")
    if q[3] == 0 or v[3] == 0:
        raise ValueError(f"the head size must be at least 1, but query is {q} and value {v}")
    if q[1] == k[1]:
        return
    if k[1] == 0 or q[1] % k[1] != 0:
        raise ValueError(
            f"the query's {q[1]} heads must be a multiple of the key's {k[1]} heads (grouped-query "
            "attention)"
        )


def _check_numbers(
    scale: float | None, dropout_p: float, softcap: float | None, segment_size: int | None
) -> None:
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, not {scale}; None means 1/sqrt(head size)")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be at least 0 and below 1, not {dropout_p}")
    if softcap is not None and not (0.0 < softcap < math.inf):
        raise ValueError(f"softcap must be positive and finite, not {softcap}; None turns it off")
    if segment_size is not None and segment_size < 1:
        raise ValueError(f"segment_size must be at least 1, not {segment_size}")
