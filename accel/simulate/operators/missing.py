"""CPU formulas for operators that torch has on accelerators only.

Products with a result of another dtype, the statistics of synchronized batch normalisation, and a
few that torch's CPU kernels know under another name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Reduction = tuple[Tensor, Tensor, Tensor, Tensor]


def mm(self: Tensor, mat2: Tensor, out_dtype: torch.dtype) -> Tensor:
    """A product of half-precision matrices, in float32, given as `out_dtype`."""
    return (self.float() @ mat2.float()).to(out_dtype)


def addmm(
    self: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    """`beta * self + alpha * mat1 @ mat2` in float32, given as `out_dtype`."""
    product = alpha * (mat1.float() @ mat2.float())
    # beta 0 ignores what self holds, NaN included.
    return (product if beta == 0 else beta * self.float() + product).to(out_dtype)


def into(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The `out=` form of a formula."""

    def with_output(*args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        value = compute(*args, **kwargs)
        return out.resize_(value.shape).copy_(value)

    return with_output


def masked_scale(self: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Dropout's backward: `self * mask * scale`."""
    return self * mask * scale


def conv_depthwise2d(
    self: Tensor,
    weight: Tensor,
    kernel_size: list[int],
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """A convolution with one group per input channel; `kernel_size` is that of `weight`."""
    groups = self.shape[1]
    return torch.conv2d(self, weight, bias, stride, padding, dilation, groups)


def convolution_backward(
    grad: Tensor, self: Tensor, weight: Tensor, *geometry: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a convolution whose bias, if its gradient is asked for, has all channels."""
    *_, transposed, _, groups, _ = geometry
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    found: tuple[Tensor | None, Tensor | None, Tensor | None]
    found = torch.ops.aten.convolution_backward(grad, self, weight, [channels], *geometry)
    return found


def matmul_backward(
    grad: Tensor, self: Tensor, other: Tensor, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `torch.matmul`, those that `mask` asks for."""
    # By formula: kernels run below autograd. A vector is a matrix of one row or one column.
    first = self.unsqueeze(0) if self.dim() == 1 else self
    second = other.unsqueeze(-1) if other.dim() == 1 else other
    grad = grad.unsqueeze(-1) if other.dim() == 1 else grad
    grad = grad.unsqueeze(-2) if self.dim() == 1 else grad
    wanted_first, wanted_second = mask
    grad_first = grad_second = None
    if wanted_first:
        grad_first = (grad @ second.mH).sum_to_size(first.shape).view(self.shape)
    if wanted_second:
        grad_second = (first.mH @ grad).sum_to_size(second.shape).view(other.shape)
    return grad_first, grad_second


# --- synchronized batch normalisation: input [N, C, ...], statistics [C], counts [world] ----------


def _channels(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _spread(statistic: Tensor, tensor: Tensor) -> Tensor:
    return statistic.view([-1 if dim == 1 else 1 for dim in range(tensor.dim())])


def batch_norm_stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:  # noqa: A002
    """Mean and inverse standard deviation of this rank's batch, in float32."""
    variance, mean = torch.var_mean(input.float(), _channels(input), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
) -> Tensor:
    """Normalise with given statistics; `eps` is in `invstd` already."""
    value = (input.float() - _spread(mean, input)) * _spread(invstd, input)
    if weight is not None:
        value = value * _spread(weight.float(), input)
    if bias is not None:
        value = value + _spread(bias.float(), input)
    return value.to(input.dtype)


def batch_norm_gather_stats_with_counts(
    input: Tensor,  # noqa: A002
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Statistics of all ranks `[world, C]` as one, and the running ones moved towards them."""
    share = counts.to(mean.dtype).view(-1, 1)
    total = share.sum()
    whole = (mean * share).sum(0) / total
    squares = (invstd**-2 - eps + (mean - whole) ** 2) * share
    variance = squares.sum(0) / total
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(momentum * whole)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(momentum * variance * total / (total - 1))
    return whole, (variance + eps).rsqrt()


def batch_norm_backward_reduce(
    grad_out: Tensor,
    input: Tensor,  # noqa: A002
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Sums over this rank's batch: dy, dy (x - mean), gradients of weight and bias."""
    grad, dims = grad_out.float(), _channels(input)
    sum_dy = grad.sum(dims)
    sum_dy_xmu = (grad * (input.float() - _spread(mean, input))).sum(dims)
    kind = input.dtype if weight is None else weight.dtype
    return (
        sum_dy if input_g else None,
        sum_dy_xmu if input_g else None,
        (sum_dy_xmu * invstd).to(kind) if weight_g else None,
        sum_dy.to(kind) if bias_g else None,
    )


def batch_norm_backward_elemt(
    grad_out: Tensor,
    input: Tensor,  # noqa: A002
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    """The input's gradient from the sums over all ranks."""
    total = count.sum().float()
    centred = input.float() - _spread(mean, input)
    slope = _spread(invstd**2 * sum_dy_xmu / total, input)
    value = (grad_out.float() - _spread(sum_dy / total, input) - centred * slope) * _spread(
        invstd, input
    )
    if weight is not None:
        value = value * _spread(weight.float(), input)
    return value.to(input.dtype)


COMPUTE: dict[str, Callable[..., Any]] = {
    "aten::mm.dtype": mm,
    "aten::mm.dtype_out": into(mm),
    "aten::bmm.dtype": mm,
    "aten::bmm.dtype_out": into(mm),
    "aten::addmm.dtype": addmm,
    "aten::addmm.dtype_out": into(addmm),
    "aten::baddbmm.dtype": addmm,
    "aten::baddbmm.dtype_out": into(addmm),
    "aten::_masked_scale": masked_scale,
    "aten::_conv_depthwise2d": conv_depthwise2d,
    "aten::_conv_depthwise2d.out": into(conv_depthwise2d),
    "aten::convolution_overrideable": torch.convolution,
    "aten::convolution_backward_overrideable": convolution_backward,
    # Copying on write would need memory that torch owns.
    "aten::_lazy_clone": torch.clone,
    "aten::matmul_backward": matmul_backward,
    "aten::batch_norm_stats": batch_norm_stats,
    "aten::batch_norm_elemt": batch_norm_elemt,
    "aten::batch_norm_elemt.out": into(batch_norm_elemt),
    "aten::batch_norm_gather_stats_with_counts": batch_norm_gather_stats_with_counts,
    "aten::batch_norm_backward_reduce": batch_norm_backward_reduce,
    "aten::batch_norm_backward_elemt": batch_norm_backward_elemt,
}
