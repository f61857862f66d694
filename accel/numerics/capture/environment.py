"""Circumstances of a call that are no tensors."""

from __future__ import annotations

import torch
from torch import nn

from accel.numerics.storage.encoding import dtype_name


def autocast_dtype(device_type: str) -> str | None:
    """The dtype of the autocast in force on a kind of device, None without one."""
    if not torch.amp.is_autocast_available(device_type):
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return dtype_name(torch.get_autocast_dtype(device_type))


def device_type_of(model: nn.Module) -> str:
    """Where a model's first parameter or buffer is; `cpu` without any."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return "cpu" if first is None else first.device.type
