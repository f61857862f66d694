"""What an argument of a flat function names, and asking torch's module of a device."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from accel.devices.base import Device
from accel.devices.choice import acting_device, current_family, find_device
from accel.devices.registry import _registry, accelerator_counts
from accel.errors import DeviceError

_logger = logging.getLogger("accel")

DeviceLike = int | str | torch.device | Device | None

# The types by which torch and its plugins name accelerators, whatever is here.
ACCELERATOR_TYPES = frozenset(
    {"cuda", "npu", "xpu", "mps", "mlu", "musa", "hpu", "mtia", "maia", "xla", "privateuseone"}
)


def resolve(device: DeviceLike) -> Device:
    """The `Device` that an argument of a flat function means.

    An accelerator's name that is not on this machine means the current device's family; where that
    is the CPU's, one whose index is too high means the CPU.
    """
    here = current_family()
    on_cpu = here.family == "cpu"
    if device is None or (isinstance(device, int) and on_cpu):
        return acting_device()
    if isinstance(device, int):
        return find_device(f"{here.family}:{device}")
    if isinstance(device, Device):
        return find_device(device)
    family, _, index = str(device).partition(":")
    if not index and family in (here.family, here.torch_type):
        return acting_device()  # as torch: also in a block that made it current
    if not is_accelerator_name(device) or _is_here(family, index if on_cpu else ""):
        return find_device(device)
    if on_cpu:
        return acting_device()
    found = find_device(f"{here.family}:{index}") if index else acting_device()
    say_once(str(device), str(found))
    return found


def is_accelerator_name(name: object) -> bool:
    """Whether a string, torch device or `Device` names an accelerator, here or not."""
    type_, separator, index = str(name).partition(":")
    if separator and not index.isdecimal():
        return False
    families = _registry.families
    known = {*families, *(family.torch_type for family in families.values())} - {"cpu"}
    # A plugin's name for its chip, which torch knows before the registry has looked.
    renamed = torch._C._get_privateuse1_backend_name()
    return type_ in ACCELERATOR_TYPES or type_ in known or type_ == renamed


def module_of(device: Device) -> Any:
    """The module that torch names after the device, such as `torch.cuda` or `torch.npu`."""
    return torch.get_device_module(device.torch_type)


def ask(device: Device, name: str, *arguments: Any) -> Any:
    """Call a function of the device's module.

    Raises:
        DeviceError: The module does not have it.
    """
    function = getattr(module_of(device), name, None)
    if function is None:
        raise DeviceError(
            f"torch.{device.torch_type} has no {name}(), so accel.{name}() has no answer on "
            f"{device}; leave the call out there"
        )
    return function(*arguments)


def _is_here(family: str, index: str) -> bool:
    """Whether a family, or one that torch gives its name, is here, with so many devices."""
    return any(
        family in (here, _registry.families[here].torch_type) and int(index or 0) < count
        for here, count in accelerator_counts().items()
    )


@functools.cache
def say_once(asked: str, taken: str) -> None:
    """Log that a device was asked for that is not here."""
    _logger.warning("%s was asked for and %s is used, which is what is here", asked, taken)
