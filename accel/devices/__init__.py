"""Choosing the accelerator at run time, behind one small API.

Names are fetched from their modules on first use (PEP 562), so that `accel.devices.chips` can be
imported where torch cannot.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.devices.accelerator import AcceleratorDevice as AcceleratorDevice
    from accel.devices.base import Device as Device
    from accel.devices.base import DeviceInfo as DeviceInfo
    from accel.devices.base import MemoryInfo as MemoryInfo
    from accel.devices.base import RngState as RngState
    from accel.devices.checkpoint import load as load
    from accel.devices.choice import available_devices as available_devices
    from accel.devices.choice import current_device as current_device
    from accel.devices.choice import find_device as find_device
    from accel.devices.choice import use_device as use_device
    from accel.devices.cpu import CpuDevice as CpuDevice
    from accel.devices.dtypes import DtypeSupport as DtypeSupport
    from accel.devices.formats import ScaledProduct as ScaledProduct
    from accel.devices.mode import NumericsMode as NumericsMode
    from accel.devices.registry import FamilyFailure as FamilyFailure
    from accel.devices.registry import failures as failures
    from accel.devices.registry import register_device as register_device
    from accel.devices.setting import numerics_mode as numerics_mode
    from accel.devices.setting import use_numerics_mode as use_numerics_mode
    from accel.devices.streams import Event as Event
    from accel.devices.streams import Stream as Stream

# In which module each public name lives.
_HOMES = {
    "AcceleratorDevice": "accelerator",
    "CpuDevice": "cpu",
    "Device": "base",
    "DeviceInfo": "base",
    "DtypeSupport": "dtypes",
    "Event": "streams",
    "FamilyFailure": "registry",
    "MemoryInfo": "base",
    "NumericsMode": "mode",
    "RngState": "base",
    "ScaledProduct": "formats",
    "Stream": "streams",
    "available_devices": "choice",
    "current_device": "choice",
    "failures": "registry",
    "find_device": "choice",
    "load": "checkpoint",
    "numerics_mode": "setting",
    "register_device": "registry",
    "use_device": "choice",
    "use_numerics_mode": "setting",
}

__all__ = [
    "AcceleratorDevice",
    "CpuDevice",
    "Device",
    "DeviceInfo",
    "DtypeSupport",
    "Event",
    "FamilyFailure",
    "MemoryInfo",
    "NumericsMode",
    "RngState",
    "ScaledProduct",
    "Stream",
    "available_devices",
    "current_device",
    "failures",
    "find_device",
    "load",
    "numerics_mode",
    "register_device",
    "use_device",
    "use_numerics_mode",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'accel.devices' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"accel.devices.{home}"), name)
    globals()[name] = value  # the next access is a plain attribute look-up
    return value


def __dir__() -> list[str]:
    return list(__all__)
