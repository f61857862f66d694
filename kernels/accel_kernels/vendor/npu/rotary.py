"""Rotary position embedding. Source: op-plugin's page of `npu_rotary_mul`."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.vendor.npu.values import (
    require_choice,
    require_floats,
    require_shape,
    wide_dtype,
)

NAME = "npu_rotary_mul"


def _check(input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str) -> None:  # noqa: A002
    require_floats(NAME, input=input, r1=r1, r2=r2)
    require_choice(NAME, "rotary_mode", rotary_mode, ("half", "interleave"))
    depth = input.shape[-1] if input.ndim else 0
    if input.ndim not in (3, 4) or depth % 2 or not 0 < depth < 896:
        raise ValueError(
            f"{NAME}: input has shape {list(input.shape)}; give 3 or 4 dimensions, the last even "
            f"and below 896"
        )
    require_shape(NAME, "r2", r2, tuple(r1.shape))
    sizes = zip(r1.shape, input.shape, strict=False)
    if r1.ndim != input.ndim or r1.shape[-1] != depth or any(r not in (1, x) for r, x in sizes):
        raise ValueError(
            f"{NAME}: r1 has shape {list(r1.shape)}; give that of input, {list(input.shape)}, with "
            f"1 where it is repeated"
        )


def _rotated(x: Tensor, rotary_mode: str) -> Tensor:
    if rotary_mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def npu_rotary_mul(
    input: Tensor,  # noqa: A002 - the schema's name
    r1: Tensor,
    r2: Tensor,
    rotary_mode: str = "half",
    rotate: Tensor | None = None,
) -> Tensor:
    """`x * r1 + rotate(x) * r2`.

    Args:
        input: `[B, N, S, D]`, `[B, S, N, D]`, `[S, B, N, D]` or `[T, N, D]`.
        r1: Cosines, of the input's shape or with 1 where they repeat. Cast to the input's dtype.
        r2: Sines, like `r1`.
        rotary_mode: "half" turns `(x1, x2)`, the halves, into `(-x2, x1)`; "interleave" turns
            neighbours.
        rotate: `[D, D]`: the turn as a matrix, `x @ rotate`, in place of the mode.

    Returns:
        Of the input's shape and dtype.
    """
    _check(input, r1, r2, rotary_mode)
    wide = wide_dtype(input)
    x, cosine, sine = input.to(wide), *(r.to(input.dtype).to(wide) for r in (r1, r2))
    if rotate is None:
        turned = _rotated(x, rotary_mode)
    else:
        require_floats(NAME, rotate=rotate)
        require_shape(NAME, "rotate", rotate, (input.shape[-1], input.shape[-1]))
        turned = x @ rotate.to(wide)
    return (x * cosine + turned * sine).to(input.dtype)


def npu_rotary_mul_backward(
    grad: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
    r1: Tensor,
    r2: Tensor,
    rotary_mode: str = "half",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, `r1` and `r2`, all in the input's dtype."""
    _check(input, r1, r2, rotary_mode)
    require_shape(NAME, "grad", grad, tuple(input.shape))
    wide = wide_dtype(input)
    dtype = input.dtype
    x, d_out, cosine, sine = (t.to(dtype).to(wide) for t in (input, grad, r1, r2))
    # The turn is orthogonal and its square is -1, so its transpose is its negative.
    d_input = d_out * cosine - _rotated(d_out * sine, rotary_mode)
    d_cosine = (d_out * x).sum_to_size(r1.shape)
    d_sine = (d_out * _rotated(x, rotary_mode)).sum_to_size(r2.shape)
    return d_input.to(dtype), d_cosine.to(dtype), d_sine.to(dtype)
