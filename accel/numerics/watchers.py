"""What the hooks of the float64 shadows do with what they see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accel.numerics.entries import GRADIENT_PHASES, Key
from accel.numerics.observer import Context
from accel.numerics.shadow import float64_of
from accel.numerics.sink import Sink

NOISE = 2.0**-20  # relative; small enough to act linearly, far above what float64 rounds


class Gradients:
    """The float64 gradients of one backward pass, summed over the calls of a step."""

    def __init__(self) -> None:
        self.sums: dict[Key, Tensor] = {}
        self.contexts: dict[Key, Context] = {}

    def add(self, key: Key, gradient: Tensor, context: Context) -> None:
        """Add one that arrived."""
        known = self.sums.get(key)
        self.sums[key] = gradient.detach().clone() if known is None else known + gradient
        self.contexts[key] = context


class Watcher:
    """Records the values that a shadow computes, and collects its gradients.

    Args:
        sink: Where values go.

    Attributes:
        into: Where gradients go.
        noise: What shakes every gradient on its way; None for nothing.
    """

    def __init__(self, sink: Sink) -> None:
        self.into = Gradients()
        self.noise: torch.Generator | None = None
        self._sink = sink

    def root_started(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A shadow's call begins: nothing to do."""

    def root_finished(self, module: nn.Module, output: Any) -> None:
        """A shadow's call ends: nothing to do."""

    def seen(self, key: Key, tensor: Tensor, context: Context) -> bool:
        """A float64 truth exists now."""
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return False
        if key.phase in GRADIENT_PHASES:
            self.into.add(key, tensor, context)
        else:
            self._value_seen(key, tensor, context)
        return True

    def _value_seen(self, key: Key, tensor: Tensor, context: Context) -> None:
        self._sink.put_truth(key, tensor, context)

    def output_for(self, key: Key, tensor: Tensor) -> Tensor | None:
        """The shadow's own values are left alone."""
        return None

    def gradient_for(self, gradient: Tensor) -> Tensor | None:
        """The gradient with a little noise, in the pass that measures what noise does."""
        if self.noise is None or not gradient.is_floating_point():
            return None
        drawn = torch.randn(gradient.shape, generator=self.noise, dtype=gradient.dtype)
        return gradient * (1 + NOISE * drawn)


class ForcingWatcher(Watcher):
    """Puts the run's own value in the place of every module's output."""

    def _value_seen(self, key: Key, tensor: Tensor, context: Context) -> None:
        pass  # computed from the run's values, it is no truth of the whole

    def output_for(self, key: Key, tensor: Tensor) -> Tensor | None:
        """The run's value, from which gradients go on into the shadow's graph.

        Raises:
            ValueError: The run's has another shape.
        """
        value = self._sink.recorded(key)
        if value is None:
            return None
        if value.shape != tensor.shape:
            raise ValueError(f"{key} has shape {list(tensor.shape)} in float64")
        replaced: Tensor = _Replaced.apply(tensor, float64_of(value))
        return replaced


class _Replaced(torch.autograd.Function):
    """Another value, the same gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
