"""Activations and gated units, with their gradients.

Each is computed wide and rounded once. Source: op-plugin's pages of the operators; CANN's page of
`aclnnGeGluV3` for the half that `npu_geglu` activates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel_kernels.vendor.npu.values import (
    require_choice,
    require_floats,
    require_shape,
    wide_dtype,
)

TANH_INNER = math.sqrt(2.0 / math.pi)
TANH_CUBIC = 0.044715
FAST_GELU = 1.702


def _halves(operator: str, tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    if not -tensor.ndim <= dim < tensor.ndim or tensor.shape[dim] % 2:
        raise ValueError(
            f"{operator}: dim={dim} of {list(tensor.shape)}; give an axis of an even size"
        )
    first, second = tensor.chunk(2, dim) if tensor.shape[dim] else (tensor, tensor)
    return first, second


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))


def npu_swiglu(
    input: Tensor,  # noqa: A002 - the schema's name
    dim: int = -1,
) -> Tensor:
    """`silu(a) * b`, where `a` and `b` are the first and second half of `input` along `dim`."""
    require_floats("npu_swiglu", input=input)
    wide = input.to(wide_dtype(input))
    first, second = _halves("npu_swiglu", wide, dim)
    return (first * torch.sigmoid(first) * second).to(input.dtype)


def npu_swiglu_backward(
    grad_output: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
    dim: int = -1,
) -> Tensor:
    """The gradient of the input of `npu_swiglu`."""
    name = "npu_swiglu_backward"
    require_floats(name, grad_output=grad_output, input=input)
    wide = wide_dtype(input)
    first, second = _halves(name, input.to(wide), dim)
    require_shape(name, "grad_output", grad_output, tuple(first.shape))
    grad = grad_output.to(wide)
    d_first = grad * second * _silu_slope(first)
    return torch.cat([d_first, grad * first * torch.sigmoid(first)], dim).to(input.dtype)


def gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU of a wide tensor."""
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(TANH_INNER * (x + TANH_CUBIC * x**3)))
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2.0)))


def gelu_slope(x: Tensor, approximate: str) -> Tensor:
    """The derivative of `gelu`."""
    if approximate == "tanh":
        # Far out the slope is 0 or 1, and the square of x would overflow.
        near = x.clamp(-100.0, 100.0)
        inner = torch.tanh(TANH_INNER * (near + TANH_CUBIC * near**3))
        d_inner = (1 - inner.square()) * TANH_INNER * (1 + 3 * TANH_CUBIC * near.square())
        return 0.5 * (1 + inner) + 0.5 * near * d_inner
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2.0))) + x * density


def npu_gelu(
    input: Tensor,  # noqa: A002 - the schema's name
    *,
    approximate: str = "none",
) -> Tensor:
    """GELU by `erf` ("none") or by `tanh`."""
    require_floats("npu_gelu", input=input)
    require_choice("npu_gelu", "approximate", approximate, ("none", "tanh"))
    return gelu(input.to(wide_dtype(input)), approximate).to(input.dtype)


def npu_gelu_backward(
    grad_output: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
    *,
    approximate: str = "none",
) -> Tensor:
    """The gradient of the input of `npu_gelu`."""
    name = "npu_gelu_backward"
    require_floats(name, grad_output=grad_output, input=input)
    require_choice(name, "approximate", approximate, ("none", "tanh"))
    wide = wide_dtype(input)
    return (grad_output.to(wide) * gelu_slope(input.to(wide), approximate)).to(input.dtype)


def npu_fast_gelu(
    input: Tensor,  # noqa: A002 - the schema's name
) -> Tensor:
    """`x / (1 + exp(-1.702 x))`."""
    require_floats("npu_fast_gelu", input=input)
    x = input.to(wide_dtype(input))
    return (x * torch.sigmoid(FAST_GELU * x)).to(input.dtype)


def npu_fast_gelu_backward(
    grad: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
) -> Tensor:
    """The gradient of the input of `npu_fast_gelu` and `fast_gelu`."""
    require_floats("npu_fast_gelu_backward", grad=grad, input=input)
    wide = wide_dtype(input)
    x = input.to(wide)
    # Far out the slope is 0 or 1, and 1.702 x would overflow.
    near = x.clamp(-100.0, 100.0)
    gate = torch.sigmoid(FAST_GELU * near)
    slope = gate * (1 + FAST_GELU * near * (1 - gate))
    return (grad.to(wide) * slope).to(input.dtype)


def npu_silu(
    input: Tensor,  # noqa: A002 - the schema's name
) -> Tensor:
    """`x * sigmoid(x)`."""
    require_floats("npu_silu", input=input)
    x = input.to(wide_dtype(input))
    return (x * torch.sigmoid(x)).to(input.dtype)


def npu_silu_(
    input: Tensor,  # noqa: A002 - the schema's name
) -> Tensor:
    """`npu_silu` written into `input`."""
    return input.copy_(npu_silu(input))


def npu_silu_backward(grad_output: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """The gradient of the input; `x0` is the input and `x1` the result of the forward."""
    require_floats("npu_silu_backward", grad_output=grad_output, x0=x0, x1=x1)
    wide = wide_dtype(x0)
    return (grad_output.to(wide) * _silu_slope(x0.to(wide))).to(grad_output.dtype)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def npu_mish(
    input: Tensor,  # noqa: A002 - the schema's name
) -> Tensor:
    """`x * tanh(ln(1 + exp(x)))`."""
    require_floats("npu_mish", input=input)
    x = input.to(wide_dtype(input))
    return (x * torch.tanh(_softplus(x))).to(input.dtype)


def npu_mish_backward(
    grad: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
) -> Tensor:
    """The gradient of the input of `npu_mish`."""
    require_floats("npu_mish_backward", grad=grad, input=input)
    wide = wide_dtype(input)
    x = input.to(wide)
    bent = torch.tanh(_softplus(x))
    slope = bent + x * (1 - bent.square()) * torch.sigmoid(x)
    return (grad.to(wide) * slope).to(input.dtype)


def npu_geglu(
    input: Tensor,  # noqa: A002 - the schema's name
    dim: int = -1,
    approximate: int = 1,
    activate_left: bool = False,
) -> tuple[Tensor, Tensor]:
    """`a * gelu(b)` of the halves `a`, `b` of `input`, or `gelu(a) * b` with `activate_left`.

    Args:
        input: Of an even size along `dim`.
        dim: The axis that is halved.
        approximate: 1 for the tanh form, 0 for erf.
        activate_left: Which half goes through GELU.

    Returns:
        The product, and the GELU alone.
    """
    name = "npu_geglu"
    require_floats(name, input=input)
    require_choice(name, "approximate", approximate, (0, 1))
    left, right = _halves(name, input.to(wide_dtype(input)), dim)
    active, other = (left, right) if activate_left else (right, left)
    activated = gelu(active, "tanh" if approximate else "none")
    return (other * activated).to(input.dtype), activated.to(input.dtype)


def npu_geglu_grad(
    grad_output: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
    gelu: Tensor,
    dim: int = -1,
    approximate: int = 1,
    activate_left: bool = False,
) -> Tensor:
    """The gradient of the input; `gelu` is the second result of the forward."""
    name = "npu_geglu_grad"
    require_floats(name, grad_output=grad_output, input=input, gelu=gelu)
    require_choice(name, "approximate", approximate, (0, 1))
    wide = wide_dtype(input)
    left, right = _halves(name, input.to(wide), dim)
    require_shape(name, "grad_output", grad_output, tuple(left.shape))
    require_shape(name, "gelu", gelu, tuple(left.shape))
    active, other = (left, right) if activate_left else (right, left)
    grad = grad_output.to(wide)
    d_active = grad * other * gelu_slope(active, "tanh" if approximate else "none")
    parts = [d_active, grad * gelu.to(wide)]
    if not activate_left:
        parts.reverse()
    return torch.cat(parts, dim).to(input.dtype)
