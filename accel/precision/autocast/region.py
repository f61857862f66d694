"""One module in a dtype of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from accel.precision.autocast.context import portable_autocast
from accel.precision.modules import ModuleMixin

_NARROW = (torch.bfloat16, torch.float16)


class ModuleRegion(ModuleMixin):
    """Gives a module's forward a compute dtype.

    Under bfloat16 and float16 it runs in `portable_autocast` of that dtype; a module without
    children also takes its floating-point inputs in it and returns its outputs in it (an embedding
    looks up in its parameters' dtype, a norm computes in float32 by the table). A module with
    children keeps the dtypes of masks and losses. Under float32 autocast is off, and inputs of 16
    bits are widened. float64 is never changed. An inner region goes before an outer one.

    Attributes:
        region_dtype: float32, bfloat16 or float16.
    """

    swapped_state = ("region_dtype",)
    region_dtype: torch.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, in its dtype."""
        dtype = self.region_dtype
        module = cast("nn.Module", self)
        inner = cast("Callable[..., Any]", super().forward)  # type: ignore[misc]
        device_type = _device_type(module, (args, kwargs))
        if dtype is torch.float32:
            args, kwargs = _converted((args, kwargs), dtype)
            with torch.autocast(device_type, enabled=False):
                return inner(*args, **kwargs)
        whole = next(module.children(), None) is None
        if whole:
            args, kwargs = _converted((args, kwargs), dtype)
        with portable_autocast(device_type, dtype):
            outputs = inner(*args, **kwargs)
        return _converted(outputs, dtype) if whole else outputs


def _device_type(module: nn.Module, arguments: Any) -> str:
    """Where it computes: where its parameters are, or else its inputs."""
    first: Tensor | None = next(module.parameters(), None)
    if first is None:
        first = next((leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)), None)
    return "cpu" if first is None else first.device.type


def _converted(values: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in `values` as `dtype`; float64 stays."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in (*_NARROW, torch.float32):
            return value.to(dtype)
        return value

    return tree_map(convert, values)
