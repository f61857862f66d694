"""Copies between host and device and within the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.simulate.operators import generic, memory

_FROM_DEVICE = 2  # a direction is 2 if the source is on the device, plus 1 if the target is


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`aten::copy_` in every direction; a copy to the host waits, as it does here anyway."""
    to_device, from_device = memory.is_device(target), memory.is_device(source)
    if target.dtype != source.dtype:
        _check_cast(target.dtype, source.dtype)
    into = memory.host_view(target) if to_device else target
    into.copy_(memory.host_view(source) if from_device else source)
    if to_device != from_device:
        direction = _FROM_DEVICE * from_device + to_device
        memory.runtime().note_copy(direction, source.numel() * source.element_size())
        if from_device and not non_blocking:
            memory.runtime().note_synchronization()
    return target


def _check_cast(*dtypes: torch.dtype) -> None:
    for dtype in dtypes:
        if dtype in generic.unsupported_dtypes:
            raise RuntimeError(
                f"a cast to or from {dtype} is not supported on the simulated "
                f"{memory.npu().get_device_name()}: this chip does not compute in it"
            )


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return copy_(target, source, non_blocking)


def _copy_from_and_resize(source: Tensor, target: Tensor) -> Tensor:
    if target.size() != source.size():
        target.resize_(source.size())
    return copy_(target, source)


KERNELS: dict[str, Callable[..., Any]] = {
    "aten::copy_": copy_,
    "aten::_copy_from": _copy_from,
    "aten::_copy_from_and_resize": _copy_from_and_resize,
}
