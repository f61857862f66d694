"""Checking a product of two matrices in eight bits, once, and reducing it to a request."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.fp8.formats import Quantized
from accel_kernels.spec import Request

NAME = "scaled_matmul"
MX, MX_WITH_FLOAT32 = "1x32", "1x32 with float32 scales"
OUT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def request(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Request:
    """Check the arguments of `scaled_matmul` and say what a kernel must be able to do.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: Shapes, devices or numbers do not fit.
    """
    for name, item in (("a", a), ("b", b)):
        _check_operand(name, item)
    if a.codes.shape[1] != b.codes.shape[1]:
        raise ValueError(
            f"a [M, K] and b [N, K] must agree in K, but are {tuple(a.codes.shape)} and "
            f"{tuple(b.codes.shape)}; b is multiplied as b.T"
        )
    if a.codes.device != b.codes.device:
        raise ValueError(
            f"a and b must be on one device, but are on {a.codes.device} and {b.codes.device}; "
            "move one"
        )
    if out_dtype not in OUT_DTYPES:
        allowed = ", ".join(_short(dtype) for dtype in OUT_DTYPES)
        raise TypeError(f"out_dtype must be one of {allowed}, not {out_dtype}")
    _check_bias(bias, b.codes)
    _check_promote(promote)
    return Request(
        NAME,
        a.codes.device.type,
        out_dtype,
        _features(a, b, bias, promote),
        (("rows", a.codes.shape[0]), ("columns", b.codes.shape[0]), ("depth", a.codes.shape[1])),
        needs_grad=False,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _features(
    a: Quantized, b: Quantized, bias: Tensor | None, promote: int | None
) -> frozenset[str]:
    left, right = a.scaling, b.scaling
    features = {
        f"{left.format.name} by {right.format.name}",
        f"{left.granularity} by {right.granularity}",
    }
    if any(one.granularity == MX and one.scales == "float32" for one in (left, right)):
        features.add(MX_WITH_FLOAT32)
    if bias is not None:
        features.add("bias")
    if promote is not None:
        features.add("promote")
    if 0 in (*a.codes.shape, b.codes.shape[0]):
        features.add("empty")
    return frozenset(features)


def _check_operand(name: str, item: object) -> None:
    if not isinstance(item, Quantized):
        raise TypeError(
            f"{name} must be a Quantized, not {type(item).__name__}; make one with "
            "accel_kernels.fp8.quantize(values, scaling)"
        )
    codes, scales, scaling = item
    if codes.dtype != torch.uint8 or scales.dtype != torch.float32:
        raise TypeError(
            f"{name} must have codes of uint8 and scales of float32, not of {codes.dtype} and "
            f"{scales.dtype}"
        )
    if codes.dim() != 2:
        raise ValueError(f"the codes of {name} must be [M, K], not {tuple(codes.shape)}")
    high, wide = scaling.block(*codes.shape)
    expected = (-(-codes.shape[0] // high), -(-codes.shape[1] // wide))
    if tuple(scales.shape) != expected:
        raise ValueError(
            f"{name} has codes {tuple(codes.shape)} and granularity {scaling.granularity}, so its "
            f"scales must be {expected}, not {tuple(scales.shape)}"
        )
    if scales.device != codes.device:
        raise ValueError(
            f"codes and scales of {name} must be on one device, but are on {codes.device} and "
            f"{scales.device}"
        )


def _check_bias(bias: Tensor | None, b: Tensor) -> None:
    if bias is None:
        return
    if not isinstance(bias, Tensor) or bias.dtype not in OUT_DTYPES:
        kind = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(f"bias must be a floating tensor [N], not {kind}")
    if tuple(bias.shape) != (b.shape[0],) or bias.device != b.device:
        raise ValueError(
            f"bias must be [N] = [{b.shape[0]}] on {b.device}, not {tuple(bias.shape)} on "
            f"{bias.device}"
        )


def _check_promote(promote: object) -> None:
    if promote is None:
        return
    if not isinstance(promote, int) or isinstance(promote, bool):
        raise TypeError(f"promote must be an integer or None, not {promote!r}")
    if promote < 1:
        raise ValueError(f"promote must be at least 1, not {promote}; None sums in one piece")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
