"""Which devices are here, and which one this process uses.

The choice: `ACCEL_DEVICE`, else the only accelerator, else the CPU. Two different accelerators and
none named is an error. Families come from this package, from `register_device`, and from the
entry-point group `accel.devices`; one that fails is kept with its traceback (`failures`), shown by
`accel doctor`, and breaks nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from accel.devices.accelerator import AcceleratorDevice, family_of
from accel.devices.base import Device
from accel.devices.cpu import CpuDevice
from accel.devices.cuda import CudaDevice, RocmDevice
from accel.devices.npu import NpuDevice
from accel.errors import DeviceError

ENTRY_POINT_GROUP = "accel.devices"

_logger = logging.getLogger("accel")
_DeviceClass = TypeVar("_DeviceClass", bound=type[Device])


@dataclass(frozen=True)
class FamilyFailure:
    """A chip family that could not be loaded or asked.

    Attributes:
        family: Its name, or its entry point's.
        source: Where it comes from, e.g. `entry point mychip = my_package:MyDevice`.
        error: The exception in one line.
        traceback: The whole of it.
    """

    family: str
    source: str
    error: str
    traceback: str


class _Registry:
    """The families of this process and the choice among them: the library's only global state."""

    def __init__(self) -> None:
        self.families: dict[str, type[Device]] = {}
        self.failures: dict[str, FamilyFailure] = {}
        self.selected: dict[tuple[str | None, str | None], Device] = {}
        self.pinned_index: int | None = None
        self.plugins_loaded = False
        self.local = threading.local()
        for family in (CpuDevice, CudaDevice, RocmDevice, NpuDevice):
            self.families[family.family] = family

    def fail(self, family: str, source: str, error: Exception) -> None:
        if family in self.failures:
            return
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        text = "".join(traceback.format_exception(error))
        self.failures[family] = FamilyFailure(family, source, line, text)
        _logger.warning(
            "the device family %r (%s) failed and is left out: %s; run `accel doctor`",
            family,
            source,
            line,
        )


_registry = _Registry()


def register_device(device_class: _DeviceClass) -> _DeviceClass:
    """Add a chip family; usable as a class decorator.

    Args:
        device_class: A concrete subclass of `Device` with `family` and `torch_type` set.

    Returns:
        `device_class` itself.

    Raises:
        TypeError: It is not a concrete subclass of `Device`.
        ValueError: Another class already has its family name.
    """
    if not (isinstance(device_class, type) and issubclass(device_class, Device)):
        raise TypeError(f"register_device takes a subclass of accel.Device, not {device_class!r}")
    missing = sorted(getattr(device_class, "__abstractmethods__", ()))
    missing += [name for name in ("family", "torch_type") if not hasattr(device_class, name)]
    if missing:
        raise TypeError(f"{device_class.__name__} does not define {', '.join(missing)}")
    present = _registry.families.get(device_class.family)
    if present is not None and present is not device_class:
        raise ValueError(
            f"the device family {device_class.family!r} is already registered by "
            f"{present.__module__}.{present.__qualname__}; choose another name"
        )
    _registry.families[device_class.family] = device_class
    _registry.selected.clear()
    return device_class


def failures() -> list[FamilyFailure]:
    """The families that could not be loaded or asked, with their tracebacks."""
    _load_plugins()
    return list(_registry.failures.values())


def available_devices() -> list[Device]:
    """Every usable device: accelerators in the order of their families, then the CPU."""
    counts = _accelerator_counts()
    devices = [
        _registry.families[family](index) for family, n in counts.items() for index in range(n)
    ]
    return [*devices, CpuDevice()]


def current_device() -> Device:
    """The device this process computes on.

    In this order: the innermost `use_device` block of this thread; `ACCEL_DEVICE` (`npu`,
    `cuda:1`, `cpu`, …); the only accelerator; the CPU. Without an index in the name, it is that of
    `accel.set_device`, else `LOCAL_RANK` (set by torchrun), else torch's current one. The first
    choice that takes its index from `LOCAL_RANK` also makes it torch's current device, since
    collectives and Triton launch there and not where the tensors are.

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
        device = _select(*key)
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
        DeviceError: No such device is here.
    """
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
    _registry.pinned_index = device.index
    _registry.selected.clear()


def find_device(name: str | torch.device | Device) -> Device:
    """The device with this name.

    Raises:
        TypeError: `name` is none of a string, a torch device and a `Device`.
        DeviceError: It is unknown, not here, or its index too high.
    """
    if isinstance(name, Device):
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
    counts = _accelerator_counts()
    # On an AMD machine `cuda`, torch's name for the type, means the family that is there.
    same_type = [f for f in counts if _registry.families[f].torch_type == family]
    if family not in counts and same_type:
        family = same_type[0]
    if family not in counts:
        raise DeviceError(_not_here(family, name, counts))
    if index is None:
        index = _default_index(family)
    if index >= counts[family]:
        raise DeviceError(
            f"{name!r} is not here: this process sees {counts[family]} {family} device(s), "
            f"numbered from 0"
        )
    return _registry.families[family](index)


def _not_here(family: str, name: str, counts: dict[str, int]) -> str:
    here = ", ".join([*counts, "cpu"])
    failure = _registry.failures.get(family)
    if failure is not None:
        return f"{name!r} cannot be used: {failure.error}; `accel doctor` says how to mend it"
    known = ", ".join(sorted(_registry.families))
    reason = "is not on this machine" if family in _registry.families else "is unknown"
    return (
        f"device {name!r} {reason}: usable here: {here}; known families: {known}; "
        "`accel doctor` says what is missing"
    )


def _select(named: str | None, local_rank: str | None) -> Device:
    if named is not None:
        device = find_device(named)
        if ":" in named or device.family == "cpu":
            device.activate()
            return device
        return _with_local_rank(device.family, local_rank)
    families = list(_accelerator_counts())
    if len(families) > 1:
        raise DeviceError(
            f"two different accelerators are here, {' and '.join(families)}: say which one to use "
            f"with ACCEL_DEVICE={families[0]} or `with accel.use_device({families[0]!r})`"
        )
    return _with_local_rank(families[0], local_rank) if families else CpuDevice()


def _with_local_rank(family: str, local_rank: str | None) -> Device:
    if local_rank is None or _registry.pinned_index is not None:
        return _device(family, None, family)
    count = _accelerator_counts()[family]
    if not local_rank.isdecimal() or int(local_rank) >= count:
        raise DeviceError(
            f"LOCAL_RANK={local_rank}, but this process sees {count} {family} device(s): start at "
            f"most {count} processes, or set ACCEL_DEVICE={family}:0 if the launcher shows each "
            "process one device only"
        )
    device = _registry.families[family](int(local_rank))
    device.activate()
    return device


def _index_is_fixed(key: tuple[str | None, str | None]) -> bool:
    named, local_rank = key
    return _registry.pinned_index is not None or bool(local_rank) or ":" in (named or "")


def _default_index(family: str) -> int:
    if _registry.pinned_index is not None:
        return _registry.pinned_index
    if issubclass(_registry.families[family], AcceleratorDevice):
        return torch.accelerator.current_device_index()
    return 0


def _accelerator_counts() -> dict[str, int]:
    """Usable devices per accelerator family, families without any left out."""
    _load_plugins()
    _add_unnamed_accelerator()
    counts = {}
    for family, device_class in list(_registry.families.items()):
        if family == "cpu":
            continue
        try:
            count = device_class.count()
        # A vendor's stack may fail in any way; it is kept, reported once, and shown by the doctor.
        except Exception as error:
            _registry.fail(family, f"{device_class.__module__}.{device_class.__name__}", error)
            continue
        if count:
            counts[family] = count
    return counts


def _add_unnamed_accelerator() -> None:
    """Give torch's accelerator a family if none here is of its type."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return
    if all(family.torch_type != accelerator.type for family in _registry.families.values()):
        _registry.families[accelerator.type] = family_of(accelerator.type)


def _load_plugins() -> None:
    if _registry.plugins_loaded:
        return
    _registry.plugins_loaded = True
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            register_device(entry_point.load())
        # Third-party code: whatever it raises must not break those who do not use that chip.
        except Exception as error:
            source = f"entry point {entry_point.name} = {entry_point.value}"
            _registry.fail(entry_point.name, source, error)
