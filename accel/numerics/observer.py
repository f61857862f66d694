"""Who listens to the hooks of a module tree, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accel.numerics import nesting
from accel.numerics.encoding import dtype_name
from accel.numerics.entries import Key, Phase


@dataclass(frozen=True)
class Context:
    """What surrounds a tensor that was seen."""

    module_class: str
    autocast: str | None
    requires_grad: bool


class Observer(Protocol):
    """Who is told what the hooks see."""

    def root_started(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """An outermost call begins."""

    def root_finished(self, module: nn.Module, output: Any) -> None:
        """It is over."""

    def seen(self, key: Key, tensor: Tensor, context: Context) -> bool:
        """A tensor exists now. Returns whether it could be recorded."""

    def output_for(self, key: Key, tensor: Tensor) -> Tensor | None:
        """What the forward goes on with in place of an output; None for itself."""

    def gradient_for(self, gradient: Tensor) -> Tensor | None:
        """What the backward goes on with in place of a gradient; None for itself."""


def tensors_of(phase: Phase, value: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a module's output, or of its arguments."""
    if phase == "forward":
        return list(nesting.tensors(value))
    args, kwargs = value
    return [*nesting.tensors(tuple(args)), *nesting.tensors(dict(kwargs))]


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor has a float64 truth, and may have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def context_of(module: nn.Module, tensor: Tensor) -> Context:
    """What surrounds a tensor now."""
    return Context(type(module).__name__, autocast_dtype(tensor.device), tensor.requires_grad)


def autocast_dtype(device: torch.device) -> str | None:
    """The dtype of the autocast in force on a device, None without one."""
    if not torch.amp.is_autocast_available(device.type):
        return None
    if not torch.is_autocast_enabled(device.type):
        return None
    return dtype_name(torch.get_autocast_dtype(device.type))


def shy_modules(modules: Iterable[nn.Module]) -> frozenset[nn.Module]:
    """Modules that compute otherwise if they see a hook on themselves or below.

    `nn.TransformerEncoderLayer` then leaves its fused inference path. It does not look at global
    hooks, so those are used there; they are not told keyword arguments.
    """
    layers = (module for module in modules if isinstance(module, nn.TransformerEncoderLayer))
    return frozenset(inner for layer in layers for inner in layer.modules())
