"""RMSNorm and its relatives.

Statistics are float32 (float64 for float64). Source: op-plugin's pages of the operators; for
`npu_deep_norm`, which has none, the formula in the operator's tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_kernels.vendor.npu.values import require_floats, require_shape, wide_dtype


def _axes(operator: str, tensor: Tensor, gamma: Tensor) -> tuple[int, ...]:
    """The last axes of `tensor`, which `gamma` must have."""
    count = gamma.ndim
    if not 1 <= count <= tensor.ndim or tensor.shape[tensor.ndim - count :] != gamma.shape:
        raise ValueError(
            f"{operator}: gamma has shape {list(gamma.shape)}; give the last sizes of "
            f"{list(tensor.shape)}"
        )
    return tuple(range(-count, 0))


def _check_gamma_dtype(operator: str, tensor: Tensor, gamma: Tensor) -> None:
    allowed = {tensor.dtype}
    if tensor.dtype in (torch.float16, torch.bfloat16):
        allowed.add(torch.float32)
    if gamma.dtype not in allowed:
        raise TypeError(
            f"{operator}: gamma is {gamma.dtype}; give one of {sorted(map(str, allowed))}"
        )


def _rms(x: Tensor, gamma: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor]:
    rstd = (x.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return x * rstd * gamma, rstd


def npu_rms_norm(
    input: Tensor,  # noqa: A002 - the schema's name
    gamma: Tensor,
    epsilon: float = 1e-06,
) -> tuple[Tensor, Tensor]:
    """`x / sqrt(mean(x^2) + epsilon) * gamma` over the axes that `gamma` has.

    Args:
        input: `[..., *gamma.shape]`.
        gamma: Of the input's dtype, or float32 for float16 and bfloat16.
        epsilon: Added to the mean of squares.

    Returns:
        The result in the input's dtype, and the reciprocal root mean square, float32, with size 1
        in the axes that `gamma` has.
    """
    name = "npu_rms_norm"
    require_floats(name, input=input, gamma=gamma)
    axes = _axes(name, input, gamma)
    _check_gamma_dtype(name, input, gamma)
    wide = wide_dtype(input, gamma)
    out, rstd = _rms(input.to(wide), gamma.to(wide), axes, epsilon)
    return out.to(input.dtype), rstd


def npu_rms_norm_backward(
    dy: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
    gamma: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the input, in its dtype, and of `gamma`, float32 (float64 for float64)."""
    name = "npu_rms_norm_backward"
    require_floats(name, dy=dy, input=input, gamma=gamma, rstd=rstd)
    axes = _axes(name, input, gamma)
    require_shape(name, "dy", dy, tuple(input.shape))
    require_shape(name, "rstd", rstd, (*input.shape[: -gamma.ndim], *(1 for _ in axes)))
    wide = wide_dtype(input, gamma)
    normal = input.to(wide) * rstd.to(wide)
    wide_dy = dy.to(wide)
    d_normal = wide_dy * gamma.to(wide)
    d_input = rstd.to(wide) * (d_normal - normal * (d_normal * normal).mean(axes, keepdim=True))
    d_gamma = (wide_dy * normal).sum_to_size(gamma.shape)
    return d_input.to(input.dtype), d_gamma


def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06
) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm of `x1 + x2`.

    Args:
        x1: `[..., *gamma.shape]`, not empty.
        x2: Like `x1`.
        gamma: Of the dtype of `x1`.
        epsilon: Added to the mean of squares.

    Returns:
        The normalized sum, the reciprocal root mean square (float32) and the sum.
    """
    name = "npu_add_rms_norm"
    require_floats(name, x1=x1, x2=x2, gamma=gamma)
    require_shape(name, "x2", x2, tuple(x1.shape))
    if x2.dtype != x1.dtype or gamma.dtype != x1.dtype:
        raise TypeError(f"{name}: {x1.dtype}, {x2.dtype}, {gamma.dtype}; give one dtype")
    if not x1.numel():
        raise ValueError(f"{name}: x1 is empty, which the operator does not support")
    axes = _axes(name, x1, gamma)
    wide = wide_dtype(x1)
    total = x1.to(wide) + x2.to(wide)
    out, rstd = _rms(total, gamma.to(wide), axes, epsilon)
    return out.to(x1.dtype), rstd, total.to(x1.dtype)


def npu_deep_norm(
    x: Tensor, gx: Tensor, beta: Tensor, gamma: Tensor, alpha: float = 0.3, epsilon: float = 1e-06
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of `alpha * x + gx`: the mean and reciprocal deviation (float32), the result."""
    name = "npu_deep_norm"
    require_floats(name, x=x, gx=gx, beta=beta, gamma=gamma)
    require_shape(name, "gx", gx, tuple(x.shape))
    require_shape(name, "beta", beta, tuple(gamma.shape))
    axes = _axes(name, x, gamma)
    wide = wide_dtype(x, gx, gamma)
    total = alpha * x.to(wide) + gx.to(wide)
    mean = total.mean(axes, keepdim=True)
    rstd = ((total - mean).square().mean(axes, keepdim=True) + epsilon).rsqrt()
    out = (total - mean) * rstd * gamma.to(wide) + beta.to(wide)
    return mean, rstd, out.to(x.dtype)


def npu_deep_norm_backward(
    dy: Tensor, x: Tensor, gx: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, alpha: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `x`, `gx`, `beta` and `gamma`; the last two in float32."""
    name = "npu_deep_norm_backward"
    require_floats(name, dy=dy, x=x, gx=gx, gamma=gamma, mean=mean, rstd=rstd)
    axes = _axes(name, x, gamma)
    require_shape(name, "dy", dy, tuple(x.shape))
    wide = wide_dtype(x, gx, gamma)
    wide_rstd, wide_dy = rstd.to(wide), dy.to(wide)
    normal = (alpha * x.to(wide) + gx.to(wide) - mean.to(wide)) * wide_rstd
    d_normal = wide_dy * gamma.to(wide)
    centred = d_normal - d_normal.mean(axes, keepdim=True)
    d_total = wide_rstd * (centred - normal * (d_normal * normal).mean(axes, keepdim=True))
    d_gamma = (wide_dy * normal).sum_to_size(gamma.shape)
    d_beta = wide_dy.sum_to_size(gamma.shape)
    return (alpha * d_total).to(x.dtype), d_total.to(gx.dtype), d_beta, d_gamma


def npu_layer_norm_eval(
    input: Tensor,  # noqa: A002 - the schema's name
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-05,
) -> Tensor:
    """`torch.nn.functional.layer_norm`."""
    require_floats("npu_layer_norm_eval", input=input, weight=weight, bias=bias)
    shape = list(normalized_shape)
    for label, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            require_shape("npu_layer_norm_eval", label, tensor, tuple(shape))
    wide = wide_dtype(input)
    scale = None if weight is None else weight.to(wide)
    shift = None if bias is None else bias.to(wide)
    return F.layer_norm(input.to(wide), shape, scale, shift, eps).to(input.dtype)


def npu_group_norm_silu(
    input: Tensor,  # noqa: A002 - the schema's name
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    eps: float = 0.00001,
) -> tuple[Tensor, Tensor, Tensor]:
    """GroupNorm, then SiLU.

    Args:
        input: `[N, C, ...]`, 2 to 8 dimensions, no size 0.
        weight: `[C]`, or None for ones.
        bias: `[C]`, or None for zeros.
        group: A divisor of C.
        eps: Added to the variance; above 0.

    Returns:
        The result, and per group the mean and the reciprocal deviation, `[N, group]`, all in the
        input's dtype.
    """
    name = "npu_group_norm_silu"
    require_floats(name, input=input, weight=weight, bias=bias)
    if not 2 <= input.ndim <= 8 or not input.numel():
        raise ValueError(f"{name}: input {list(input.shape)}; give 2 to 8 dimensions, none of 0")
    channels = input.shape[1]
    if group < 1 or channels % group or eps <= 0:
        raise ValueError(f"{name}: group={group} of {channels} channels, eps={eps}")
    for label, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            require_shape(name, label, tensor, (channels,))
    wide = wide_dtype(input)
    grouped = input.to(wide).reshape(input.shape[0], group, -1)
    mean = grouped.mean(-1, keepdim=True)
    rstd = ((grouped - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    normal = ((grouped - mean) * rstd).reshape(input.shape)
    per_channel = (1, channels, *(1 for _ in range(input.ndim - 2)))
    if weight is not None:
        normal = normal * weight.to(wide).view(per_channel)
    if bias is not None:
        normal = normal + bias.to(wide).view(per_channel)
    out = normal * torch.sigmoid(normal)
    stats = (tensor.squeeze(-1).to(input.dtype) for tensor in (mean, rstd))
    mean_out, rstd_out = stats
    return out.to(input.dtype), mean_out, rstd_out
