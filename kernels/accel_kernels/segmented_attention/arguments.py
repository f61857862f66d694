"""Checking a call of segmented attention, once, and reducing it to a request."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

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
    _check_types(is_causal, scale, segment_size)
    _check_tensors(query, key, value)
    _check_shapes(query, key, value)
    _check_numbers(scale, dropout_p, softcap, segment_size)
    features = _features(query, key, value, is_causal=is_causal)
    for name, used in (
        ("mask", mask is not None),
        ("dropout_p", dropout_p > 0.0),
        ("softcap", softcap is not None),
        ("bias", bias is not None),
        ("segment_size", segment_size is not None),
        ("scale not positive", scale is not None and scale <= 0.0),
        ("return_lse", return_lse),
    ):
        if used:
            features.append(name)
    needs_grad = torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    )
    sizes = (
        ("head_size", query.shape[3]),
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


def cast_for_autocast(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """The three in autocast's dtype, if it is on where the query is; else as they are.

    Like torch's own operators, it leaves float64, and what is no floating tensor, alone.
    """
    if not isinstance(query, Tensor):
        return query, key, value
    kind = query.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)

    def cast(item: Any) -> Any:
        is_cast = isinstance(item, Tensor) and item.is_floating_point()
        return item.to(dtype) if is_cast and item.dtype != torch.float64 else item

    return cast(query), cast(key), cast(value)


def _check_types(is_causal: object, scale: object, segment_size: object) -> None:
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


def _features(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> list[str]:
    features = []
    if is_causal:
        features.append("is_causal")
        if query.shape[2] != key.shape[2]:
            features.append("unequal lengths with is_causal")
    if query.shape[1] != key.shape[1]:
        features.append("grouped heads")
    if query.shape[3] != value.shape[3]:
        features.append("value head size")
    if query.stride(3) != 1 or key.stride(3) != 1 or value.stride(3) != 1:
        features.append("head size not contiguous")
    if query.numel() == 0 or key.numel() == 0 or value.numel() == 0:
        features.append("empty tensors")
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
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, not {scale}; None means 1/sqrt(head size)")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be at least 0 and below 1, not {dropout_p}")
    if softcap is not None and not (softcap > 0.0 and math.isfinite(softcap)):
        raise ValueError(f"softcap must be positive and finite, not {softcap}; None turns it off")
    if segment_size is not None and segment_size < 1:
        raise ValueError(f"segment_size must be at least 1, not {segment_size}")
