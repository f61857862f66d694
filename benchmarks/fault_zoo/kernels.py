"""Right kernels that round otherwise than torch's: what another machine may compute.

Each does what the literature does: partial products are summed in float32 (split-K), softmax keeps
a running maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867), the variance comes from
the sums of x and of x squared in one pass, sums run in another order, an exponential is a power of
two. 16-bit operands are computed in float32 and rounded once, as accelerators do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fault_zoo.arithmetic import matmul, pieces, summed, widened
from benchmarks.fault_zoo.faults import Call, tree_like

RightKernel = Callable[[Call], Any]


class Replacer(TorchDispatchMode):
    """Computes some operators by other kernels. Enter it before the recorder, to lie below it."""

    def __init__(self, kernels: Mapping[str, RightKernel]) -> None:
        super().__init__()
        self.kernels = kernels
        self.replaced = 0

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = Call(func, args, kwargs or {})
        kernel = self.kernels.get(func._schema.name)
        if kernel is None or call.is_double:
            return call.right()
        self.replaced += 1
        # A right result too: for its dtypes and strides, and for what the kernel does not give.
        return tree_like(call.copied().right(), kernel(call))


def single(call: Call) -> list[Any]:
    """The arguments with every floating tensor in float32."""
    return list(widened(call.args, torch.float32))


def _split(length: int) -> int:
    return max(1, math.ceil(length / 4))


def split_mm(call: Call) -> Any:
    """A product from four parts of K."""
    a, b = single(call)[:2]
    return matmul(a, b, _split(a.shape[-1]))


def split_addmm(call: Call) -> Any:
    """The same plus a bias."""
    bias, a, b = single(call)[:3]
    return matmul(a, b, _split(a.shape[-1])) + bias


SPLIT_K: dict[str, RightKernel] = {
    "aten::mm": split_mm,
    "aten::bmm": split_mm,
    "aten::addmm": split_addmm,
}


def online_softmax(call: Call) -> Any:
    """Softmax over pieces of 16 with a running maximum and sum."""
    x, dim = single(call)[:2]
    largest, total = _running(x, dim)
    return torch.exp(x - largest) / total


def online_log_softmax(call: Call) -> Any:
    """The logarithm of the same."""
    x, dim = single(call)[:2]
    largest, total = _running(x, dim)
    return x - largest - torch.log(total)


def _running(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    largest = torch.full_like(x.narrow(dim, 0, 1), -math.inf)
    total = torch.zeros_like(largest)
    for piece in pieces(x.shape[dim], 16):
        part = x.narrow(dim, piece.start, piece.stop - piece.start)
        new = torch.maximum(largest, part.amax(dim, keepdim=True))
        # All of it masked so far: nothing to rescale, and inf - inf is not a number.
        floor = torch.where(new == -math.inf, 0, new)
        total = total * torch.exp(largest - floor) + torch.exp(part - floor).sum(dim, keepdim=True)
        largest = new
    return largest, total


ONLINE_SOFTMAX: dict[str, RightKernel] = {
    "aten::_softmax": online_softmax,
    "aten::_log_softmax": online_log_softmax,
}


def one_pass_layer_norm(call: Call) -> Any:
    """Layer norm from the sums of x and of its square."""
    x, shape, weight, bias, eps = single(call)
    dims = tuple(range(-len(shape), 0))
    mean = x.mean(dims, keepdim=True)
    variance = (x.square().mean(dims, keepdim=True) - mean.square()).clamp(min=0)
    scale = torch.rsqrt(variance + eps)
    result = (x - mean) * scale
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias), mean, scale


ONE_PASS_NORM: dict[str, RightKernel] = {"aten::native_layer_norm": one_pass_layer_norm}


def backwards_sum(call: Call) -> Any:
    """A sum over blocks of 32, the last block first."""
    x, dims, keepdim = single(call)[:3] if len(call.args) > 2 else (*single(call)[:2], False)
    for dim in dims:
        x = summed(x.flip(dim), dim, 32)
    return x if keepdim else x.squeeze(tuple(dims))


def backwards_mean(call: Call) -> Any:
    """The mean from the same."""
    x, dims, *rest = single(call)
    count = math.prod(x.shape[dim] for dim in dims)
    for dim in dims:
        x = summed(x.flip(dim), dim, 32)
    return (x if rest and rest[0] else x.squeeze(tuple(dims))) / count


def ordered_embedding_gradient(call: Call) -> Any:
    """Tokens are added to their rows from the last to the first."""
    gradient, indices, rows = single(call)[:3]
    total = torch.zeros(rows, gradient.shape[-1])
    return total.index_add_(
        0, indices.reshape(-1).flip(0), gradient.reshape(-1, gradient.shape[-1]).flip(0)
    )


OTHER_SUMS: dict[str, RightKernel] = {
    "aten::sum": backwards_sum,
    "aten::mean": backwards_mean,
    "aten::embedding_dense_backward": ordered_embedding_gradient,
}


def base_two_softmax(call: Call) -> Any:
    """Softmax by powers of two, as flash attention kernels compute it."""
    x, dim = single(call)[:2]
    powers = torch.exp2((x - x.amax(dim, keepdim=True)) * math.log2(math.e))
    return powers / powers.sum(dim, keepdim=True)


def complementary_gelu(call: Call) -> Any:
    """GELU by the complementary error function."""
    x = single(call)[0]
    return 0.5 * x * torch.special.erfc(-x * math.sqrt(0.5))


OTHER_FORMULAS: dict[str, RightKernel] = {
    "aten::_softmax": base_two_softmax,
    "aten::gelu": complementary_gelu,
}


def composed_layer_norm_backward(call: Call) -> Any:
    """The gradients of layer norm by the textbook's formulas, in float32."""
    gradient, x, shape, mean, scale, weight, _, wanted = single(call)
    dims = tuple(range(-len(shape), 0))
    rows = tuple(range(x.dim() - len(shape)))
    normal = (x - mean) * scale
    weighted = gradient if weight is None else gradient * weight
    mean_of = weighted.mean(dims, keepdim=True)
    slope = (weighted * normal).mean(dims, keepdim=True)
    found = ((weighted - mean_of - normal * slope) * scale, (gradient * normal).sum(rows),
             gradient.sum(rows))  # fmt: skip
    return tuple(
        value.reshape(shape) if index and one else value if one else None
        for index, (value, one) in enumerate(zip(found, wanted, strict=True))
    )


OTHER_BACKWARD: dict[str, RightKernel] = {
    "aten::native_layer_norm_backward": composed_layer_norm_backward,
}

ALL: dict[str, RightKernel] = {
    **SPLIT_K,
    **ONLINE_SOFTMAX,
    **ONE_PASS_NORM,
    **OTHER_SUMS,
    **OTHER_BACKWARD,
    "aten::gelu": complementary_gelu,
}
