"""Products of matrices. Source: op-plugin's pages of `npu_linear` and `npu_bmmV2`, its adapters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accel_kernels.vendor.npu.values import require_floats, require_shape, wide_dtype


def npu_linear(
    input: Tensor,  # noqa: A002 - the schema's name
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """`input @ weight.T + bias` of `[M, K]` and `[N, K]`, in the input's dtype."""
    name = "npu_linear"
    require_floats(name, input=input, weight=weight, bias=bias)
    if input.ndim != 2 or weight.ndim != 2 or input.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name}: {list(input.shape)} and {list(weight.shape)}; give [M, K], [N, K]"
        )
    wide = wide_dtype(input)
    out = input.to(wide) @ weight.to(wide).t()
    if bias is not None:
        require_shape(name, "bias", bias, (weight.shape[0],))
        out = out + bias.to(wide)
    return out.to(input.dtype)


def npu_linear_backward(
    grad: Tensor,
    input: Tensor,  # noqa: A002 - the schema's name
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight, in the dtype of `grad`."""
    name = "npu_linear_backward"
    require_floats(name, grad=grad, input=input, weight=weight)
    require_shape(name, "grad", grad, (input.shape[0], weight.shape[0]))
    wide = wide_dtype(grad)
    wide_grad = grad.to(wide)
    d_input = (wide_grad @ weight.to(wide)).to(grad.dtype)
    return d_input, (wide_grad.t() @ input.to(wide)).to(grad.dtype)


def _multiplied(name: str, first: Tensor, second: Tensor, sizes: Sequence[int]) -> Tensor:
    """The product; summed over broadcast axes where `sizes` says so."""
    wide = wide_dtype(first)
    if first.ndim < 2 or second.ndim < 2 or first.shape[-1] != second.shape[-2]:
        raise ValueError(f"{name}: {list(first.shape)} @ {list(second.shape)}; give matrices")
    product = first.to(wide) @ second.to(wide)
    if len(sizes) and list(sizes) != list(product.shape):
        product = product.sum_to_size([int(size) for size in sizes])
    return product.to(first.dtype)


def npu_bmmV2(  # noqa: N802 - the operator's name
    input: Tensor,  # noqa: A002 - the schema's name
    mat2: Tensor,
    output_sizes: Sequence[int],
) -> Tensor:
    """`input @ mat2`, broadcast; summed to `output_sizes` unless that is empty."""
    require_floats("npu_bmmV2", input=input, mat2=mat2)
    return _multiplied("npu_bmmV2", input, mat2, output_sizes)


def npu_bmm_v2_mat1_backward(
    grad: Tensor, mat1: Tensor, mat2: Tensor, size: Sequence[int]
) -> Tensor:
    """The gradient of the first matrix, of shape `size`."""
    name = "npu_bmm_v2_mat1_backward"
    require_floats(name, grad=grad, mat1=mat1, mat2=mat2)
    return _multiplied(name, grad, mat2.transpose(-1, -2), size)


def npu_bmm_v2_mat2_backward(
    grad: Tensor, mat1: Tensor, mat2: Tensor, size: Sequence[int]
) -> Tensor:
    """The gradient of the second matrix, of shape `size`."""
    name = "npu_bmm_v2_mat2_backward"
    require_floats(name, grad=grad, mat1=mat1, mat2=mat2)
    return _multiplied(name, mat1.transpose(-1, -2).to(grad.dtype), grad, size)
