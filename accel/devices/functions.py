"""Flat functions in the shape of `torch.cuda`'s, for the current device, whatever it is.

`torch.accelerator` raises on a CPU-only machine in most of its functions, so that programs guard
every call. These do not: on a CPU they return what `torch.cuda` returned there where it was silent
(0, False, nothing), and do nothing or return a neutral value where it raised.
"""

from __future__ import annotations

import torch

from accel.devices.base import Device
from accel.devices.choice import current_device, find_device
from accel.devices.choice import set_device as _set_device
from accel.devices.streams import Stream

_DeviceLike = int | str | torch.device | Device | None


def is_available() -> bool:
    """Whether the current device is an accelerator; False on a CPU."""
    return current_device().family != "cpu"


def device_count() -> int:
    """Devices of the current accelerator family; 0 on a CPU."""
    device = current_device()
    return 0 if device.family == "cpu" else device.count()


def set_device(device: int | str | torch.device | Device) -> None:
    """Fix this process's device among those of its family; on a CPU nothing.

    Args:
        device: An index, a name (`npu:1`), a torch device, or a `Device`.

    Raises:
        DeviceError: No such device is here.
    """
    if is_available():
        _set_device(device)


def synchronize(device: _DeviceLike = None) -> None:
    """Wait until the device's submitted work is done; on a CPU nothing."""
    _resolve(device).synchronize()


def empty_cache() -> None:
    """Give cached device memory back to the driver; on a CPU nothing."""
    current_device().empty_cache()


def memory_allocated(device: _DeviceLike = None) -> int:
    """Bytes of device memory in tensors of this process; 0 on a CPU.

    `Device.memory` tells a CPU's resident set.
    """
    chosen = _resolve(device)
    return 0 if chosen.family == "cpu" else chosen.memory().used


def max_memory_allocated(device: _DeviceLike = None) -> int:
    """Peak of `memory_allocated` in bytes; 0 on a CPU."""
    chosen = _resolve(device)
    return 0 if chosen.family == "cpu" else chosen.memory().peak


def reset_peak_memory_stats(device: _DeviceLike = None) -> None:
    """Start `max_memory_allocated` anew; on a CPU nothing."""
    chosen = _resolve(device)
    if chosen.family != "cpu":
        chosen.reset_peak_memory()


def manual_seed(seed: int) -> None:
    """Seed the current device's generator; on a CPU nothing, as `torch.cuda.manual_seed`.

    `Device.seed` seeds the device and the CPU together.
    """
    current_device().seed_own_generator(seed)


def manual_seed_all(seed: int) -> None:
    """Seed every device of the current family; on a CPU nothing."""
    device = current_device()
    for index in range(device_count()):
        type(device)(index).seed_own_generator(seed)


def current_stream(device: _DeviceLike = None) -> Stream:
    """The current stream of the device; on a CPU one whose waits do nothing."""
    return _resolve(device).current_stream()


def _resolve(device: _DeviceLike) -> Device:
    if device is None:
        return current_device()
    if isinstance(device, int):
        current = current_device()
        return current if current.family == "cpu" else find_device(f"{current.family}:{device}")
    return find_device(device)
