"""Gradients that a function of our own computes, and that have no derivative themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def first_derivatives(
    gradients: Sequence[Tensor | None], given: Sequence[Tensor]
) -> list[Tensor | None]:
    """What a backward returns, such that differentiating it once more is an error.

    Without this it would silently be 0 under `create_graph=True`.

    Args:
        gradients: Computed without a graph.
        given: What they depend on: the incoming gradient and the inputs.
    """
    if not torch.is_grad_enabled():
        return list(gradients)
    return [None if one is None else _Undifferentiable.apply(one, *given) for one in gradients]


class _Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *given: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            "the losses of knowledge transfer have no second derivative: take a penalty on "
            "gradients of another loss"
        )
