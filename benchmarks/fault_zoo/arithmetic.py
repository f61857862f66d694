"""Arithmetic that kernels are made of here: rounding, partial sums, wide operands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks.fault_zoo.faults import Call
from benchmarks.fault_zoo.roundings import Round, exact


def wide(call: Call, dtype: torch.dtype = torch.float64) -> Any:
    """What the operator gives in `dtype` from the same operands."""
    return Call(call.func, *widened((call.args, call.kwargs), dtype)).right()


def widened(tree: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The same with every floating tensor in `dtype`."""

    def widen(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return tree_map_only(Tensor, widen, tree)


def pieces(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `length`, the last one shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def matmul(a: Tensor, b: Tensor, size: int, rounded: Round = exact) -> Tensor:
    """The product [..., M, K] @ [..., K, N], in pieces of K; the sum is rounded at each."""
    total = torch.zeros((), dtype=a.dtype, device=a.device)
    for piece in pieces(a.shape[-1], size):
        total = rounded(total + a[..., piece] @ b[..., piece, :])
    return total


def summed(x: Tensor, dim: int, size: int, rounded: Round = exact) -> Tensor:
    """The sum over `dim`, kept as 1, from pieces; the running sum is rounded at each."""
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for piece in pieces(x.shape[dim], size):
        part = x.narrow(dim, piece.start, piece.stop - piece.start)
        total = rounded(total + part.sum(dim, keepdim=True))
    return total


def first_share(count: int, share: float) -> int:
    """How many of `count` a share is, at least one."""
    return max(1, round(count * share))
