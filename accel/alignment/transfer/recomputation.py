"""A sum over chunks whose backward computes each chunk once more, instead of keeping it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.alignment.first_derivative import first_derivatives


def sum_of_chunks(
    function: Callable[..., Tensor], chunks: Sequence[slice], *tensors: Tensor
) -> Tensor:
    """`sum(function(chunk, *tensors) for chunk in chunks)`, keeping nothing but the tensors.

    Args:
        function: Differentiable in the tensors, deterministic, and without any state; called with
            autocast off. Returns `[]`.
        chunks: What one call computes.
        *tensors: At least one; those that need a gradient get one.

    Returns:
        `[]`, of the first tensor's dtype; differentiable once.
    """
    return _SumOfChunks.apply(function, chunks, *tensors)  # type: ignore[no-any-return]


class _SumOfChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], chunks: Sequence[slice], *tensors: Tensor
    ) -> Tensor:
        ctx.function, ctx.chunks = function, chunks
        ctx.save_for_backward(*tensors)
        total = tensors[0].new_zeros(())
        with torch.autocast(total.device.type, enabled=False):
            for chunk in chunks:
                total += function(chunk, *tensors)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = ctx.needs_input_grad[2:]
        leaves = [
            tensor.detach().requires_grad_(wanted)
            for tensor, wanted in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
            for chunk in ctx.chunks:  # into the leaves' .grad, chunk after chunk
                torch.autograd.backward(ctx.function(chunk, *leaves), grad.detach())
        found = [leaf.grad for leaf in leaves]
        return None, None, *first_derivatives(found, (grad, *ctx.saved_tensors))
