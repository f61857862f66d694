"""Which device this process computes on.

The choice: `ACCEL_DEVICE`, else the only accelerator, else the CPU. Two different accelerators and
none named is an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from accel.devices.accelerator import AcceleratorDevice
from accel.devices.base import Device
from accel.devices.cpu import CpuDevice
from accel.devices.registry import _registry, accelerator_counts, failure_of
from accel.errors import DeviceError


def available_devices() -> list[Device]:
    """Every usable device: accelerators in the order of their families, then the CPU."""
    counts = accelerator_counts()
    devices = [
        _registry.families[family](index) for family, n in counts.items() for index in range(n)
    ]
    return [*devices, CpuDevice()]


def current_device() -> Device:
    """The device this process computes on.

    In this order: the innermost `use_device` block of this thread; `ACCEL_DEVICE` (`npu`,
    `cuda:1`, `cpu`, …); the only accelerator; the CPU. Without an index in a name, here as in
    `use_device`, it is that of `accel.set_device`, else `LOCAL_RANK` (set by torchrun), else
    torch's current one. The first choice that takes its index from `LOCAL_RANK` also makes it
    torch's current device, since collectives and Triton launch there and not where the tensors are.

    Raises:
        DeviceError: Two different accelerators are here and none is named; the named one is not
            here; or `LOCAL_RANK` exceeds the devices that this process sees.
    """
    stack: list[Device] = getattr(_registry.local, "stack", [])
    if stack:
        return stack[-1]
    key = (os.environ.get("ACCEL_DEVICE") or None, os.environ.get("LOCAL_RANK") or None)
    device = _registry.selected.get(key)
    if device is None:
        device = _select(key[0])
        _registry.selected[key] = device
    if isinstance(device, AcceleratorDevice) and not _index_is_fixed(key):
        return type(device)(torch.accelerator.current_device_index())
    return device


@contextlib.contextmanager
def use_device(name: str | torch.device | Device) -> Iterator[Device]:
    """Compute on the named device inside the block, in this thread.

    Args:
        name: `cpu`, `npu`, `cuda:1`, a torch device, or a `Device`.

    Yields:
        The device; it is also torch's current device inside the block.

    Raises:
        DeviceError: No such device is here.
    """
    device = find_device(name)
    stack: list[Device] = getattr(_registry.local, "stack", [])
    _registry.local.stack = [*stack, device]
    try:
        with device.activated():
            yield device
    finally:
        _registry.local.stack = stack


def set_device(name: int | str | torch.device | Device) -> None:
    """Fix the device of this process, as `torch.cuda.set_device` does.

    Args:
        name: An index of the current family, or anything that `use_device` takes.

    Raises:
        ValueError: Called inside a `use_device` block, which would undo it.
        DeviceError: No such device is here.
    """
    if getattr(_registry.local, "stack", []):
        raise ValueError(
            "set_device inside a use_device block has no lasting effect: leave it first"
        )
    current = current_device()
    if isinstance(name, int):
        name = "cpu" if current.family == "cpu" else f"{current.family}:{name}"
    device = find_device(name)
    if device.torch_type != current.torch_type:
        raise DeviceError(
            f"set_device chooses among the {current.family} devices, not {device}: name another "
            "family with ACCEL_DEVICE or `with accel.use_device(...)`"
        )
    device.activate()
    if device.family != "cpu":
        _registry.pinned_index = device.index
        _registry.selected.clear()


def find_device(name: str | torch.device | Device) -> Device:
    """The device with this name.

    Raises:
        TypeError: `name` is none of a string, a torch device and a `Device`.
        DeviceError: It is unknown, not here, or its index too high.
    """
    if isinstance(name, Device):
        if not 0 <= name.index < name.count():
            raise DeviceError(f"{name} is not here: this process sees {name.count()} of its family")
        return name
    if isinstance(name, torch.device):
        name = str(name)
    if not isinstance(name, str):
        raise TypeError(f"a device is named by a string or a torch.device, not {name!r}")
    family, separator, index = name.partition(":")
    if separator and not index.isdecimal():
        raise DeviceError(f"{name!r} names no device: write it as in 'cuda' or 'cuda:1'")
    return _device(family, int(index) if separator else None, name)


def _device(family: str, index: int | None, name: str) -> Device:
    if family == "cpu":
        return CpuDevice()
    counts = accelerator_counts()
    # On an AMD machine `cuda`, torch's name for the type, means the family that is there.
    same_type = [f for f in counts if _registry.families[f].torch_type == family]
    if family not in counts and same_type:
        family = same_type[0]
    if family not in counts:
        raise DeviceError(_not_here(family, name, counts))
    if index is None:
        return _families_default(family, counts[family])
    if index >= counts[family]:
        raise DeviceError(
            f"{name!r} is not here: this process sees {counts[family]} {family} device(s), "
            "numbered from 0"
        )
    return _registry.families[family](index)


def _families_default(family: str, count: int) -> Device:
    """The device of a family that was named without an index; see `current_device`."""
    device_class = _registry.families[family]
    local_rank = os.environ.get("LOCAL_RANK")
    if _registry.pinned_index is not None:
        index = _registry.pinned_index
    elif local_rank:
        if not local_rank.isdecimal() or int(local_rank) >= count:
            raise DeviceError(
                f"LOCAL_RANK={local_rank}, but this process sees {count} {family} device(s): start "
                f"at most {count} processes, or set ACCEL_DEVICE={family}:0 if the launcher shows "
                "each process one device only"
            )
        index = int(local_rank)
    elif issubclass(device_class, AcceleratorDevice):
        index = torch.accelerator.current_device_index()
    else:
        index = 0
    return device_class(index)


def _not_here(family: str, name: str, counts: dict[str, int]) -> str:
    here = ", ".join([*counts, "cpu"])
    failure = failure_of(family)
    if failure is not None:
        return f"{name!r} cannot be used: {failure.error}; `accel doctor` says how to mend it"
    known = ", ".join(sorted(_registry.families))
    reason = "is not on this machine" if family in _registry.families else "is unknown"
    return (
        f"device {name!r} {reason}: usable here: {here}; known families: {known}; "
        "`accel doctor` says what is missing"
    )


def _select(named: str | None) -> Device:
    if named is not None:
        device = find_device(named)
    else:
        families = list(accelerator_counts())
        if len(families) > 1:
            raise DeviceError(
                f"two different accelerators are here, {' and '.join(families)}: say which one to "
                f"use with ACCEL_DEVICE={families[0]} or `with accel.use_device({families[0]!r})`"
            )
        device = find_device(families[0] if families else "cpu")
    if ":" in (named or "") or os.environ.get("LOCAL_RANK"):
        device.activate()
    return device


def _index_is_fixed(key: tuple[str | None, str | None]) -> bool:
    named, local_rank = key
    return _registry.pinned_index is not None or bool(local_rank) or ":" in (named or "")
