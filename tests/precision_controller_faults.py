"""Faults that break tensorwise FP8 and leave bfloat16 as it is, to the bit of a dead channel.

Both are put into a model by hooks, act while `active` is true, and change nothing that a wider
format computes: the outlier meets weights that are zero, the huge gradient an input row of zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Outlier:
    """A channel of a layer's input that is huge, as massive activations are, and has no weight.

    Channel 0 is given up in every run, active or not: its weights are zero and stay it.

    Args:
        layer: A linear layer.
        size: Of the channel's values, where the others are near 1.
    """

    def __init__(self, layer: nn.Linear, size: float = 1e6) -> None:
        self.active = False
        self.size = size
        with torch.no_grad():
            layer.weight[:, 0] = 0.0
        layer.weight.register_hook(self._masked)
        layer.register_forward_pre_hook(self._spoilt)

    def _masked(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, 0] = 0.0
        return gradient

    def _spoilt(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        first = torch.full_like(x[..., :1], self.size if self.active else 0.0)
        return (torch.cat([first, x[..., 1:]], -1),)


class Underflow:
    """One more row in a layer's batch: its input is zero, and its gradient is huge.

    What it adds to every gradient is zero times a finite number; what it does to a scale for the
    whole gradient makes all other rows vanish.

    Args:
        layer: A linear layer without bias.
        factor: How many times the largest gradient of the other rows it has.
    """

    def __init__(self, layer: nn.Linear, factor: float = 2.0**40) -> None:
        assert layer.bias is None, "a bias would get the gradient of the row"
        self.active = False
        self.factor = factor
        layer.register_forward_pre_hook(self._longer)
        layer.register_forward_hook(self._shorter)

    def _longer(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        rows = inputs[0].flatten(0, -2)
        self.shape = inputs[0].shape
        return (torch.cat([torch.zeros_like(rows[:1]), rows]),)

    def _shorter(self, layer: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        kept: Tensor = _WithoutFirst.apply(out, self.factor if self.active else 0.0)
        return kept.view(*self.shape[:-1], out.shape[-1])


class _WithoutFirst(torch.autograd.Function):
    """Drops the first row; its gradient is the others' largest times a factor."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return out[1:].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        row = torch.zeros_like(gradient[:1]) + gradient.abs().amax() * ctx.factor
        return torch.cat([row, gradient]), None
