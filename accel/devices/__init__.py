"""Choosing the accelerator at run time, behind one small API."""

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
from accel.devices.mode import NumericsMode as NumericsMode
from accel.devices.registry import FamilyFailure as FamilyFailure
from accel.devices.registry import failures as failures
from accel.devices.registry import register_device as register_device
from accel.devices.setting import numerics_mode as numerics_mode
from accel.devices.setting import use_numerics_mode as use_numerics_mode

__all__ = [
    "AcceleratorDevice",
    "CpuDevice",
    "Device",
    "DeviceInfo",
    "DtypeSupport",
    "FamilyFailure",
    "MemoryInfo",
    "NumericsMode",
    "RngState",
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
