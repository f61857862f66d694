"""Flat functions about devices: which there are, and which is current."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from accel.devices.base import Device
from accel.devices.blocks import Block
from accel.devices.choice import acting_device, current_family, use_device
from accel.devices.choice import set_device as _set_device
from accel.devices.resolution import DeviceLike, is_accelerator_name, resolve, say_once


def is_available() -> bool:
    """Whether the current device is an accelerator; False on a CPU.

    It starts no runtime, so that `CUDA_VISIBLE_DEVICES` may still be set and processes forked.
    """
    return current_family().family != "cpu"


def device_count() -> int:
    """Devices of the current accelerator family; 0 on a CPU. It starts no runtime."""
    family = current_family()
    return 0 if family.family == "cpu" else family.count()


def device(name: DeviceLike = None, index: int | None = None) -> torch.device:
    """The torch device that an index or a name means on this machine.

    `.to(3)`, `"cuda:3"` and `torch.device("cuda", 3)` become `accel.device(3)`: `cuda:3` on CUDA,
    `npu:3` on Ascend, `cpu` on a CPU.

    Args:
        name: An index, a name, a torch device or a `Device`; None is the current one. A name of an
            accelerator that is not here means the one that is, and on a CPU (also by
            `ACCEL_DEVICE=cpu`) every accelerator's name means the CPU; both are logged once.
        index: As the second argument of `torch.device`.

    Raises:
        ValueError: An index is negative, or given twice.
        DeviceError: The accelerator here has no such index, or the name is unknown.
    """
    if name is None and index is None:
        return acting_device().torch_device
    if index is not None:
        if not isinstance(name, str) or ":" in name:
            raise ValueError(f"an index besides {name!r}: give it once, as in device('cuda', 1)")
        name = f"{name}:{index}"
    if isinstance(name, int) and name < 0:
        raise ValueError(f"a device index is 0 or more, not {name}")
    if str(name) == "meta":
        return torch.device("meta")
    on_cpu = current_family().family == "cpu"
    if on_cpu and not isinstance(name, Device) and is_accelerator_name(name):
        say_once(str(name), "cpu")
        return torch.device("cpu")
    return resolve(name).torch_device


def device_str(name: DeviceLike = None, index: int | None = None) -> str:
    """`device` as a string, for what takes no `torch.device`; `"cpu"` on a CPU.

    `f"cuda:{i}"` becomes `accel.device_str(i)`.
    """
    return str(device(name, index))


def default_device_type() -> str:
    """`cuda`, `npu`, …, or `cpu`: for `"cuda" if torch.cuda.is_available() else "cpu"`.

    It starts no runtime and chooses no index.
    """
    return current_family().torch_type


def current_device_index() -> int:
    """Index of the current device, as `torch.cuda.current_device()`; 0 on a CPU.

    `accel.current_device()` is the device itself.
    """
    return acting_device().index


def set_device(device: DeviceLike) -> None:
    """Make a device of the current family this thread's current one; on a CPU nothing.

    Args:
        device: An index, a name (`npu:1`), a torch device, or a `Device`; as with torch, None and
            a negative index change nothing.

    Raises:
        DeviceError: No such device is here.
    """
    if device is None or (isinstance(device, int) and device < 0):
        return
    if is_available():
        _set_device(resolve(device))


def device_index(device: DeviceLike) -> Block:
    """A block with another current device, for `with torch.cuda.device(1):`.

    Args:
        device: As in `set_device`; None and a negative index change nothing. On a CPU nothing does.

    Raises:
        DeviceError: On entering: no such device is here.
    """
    return Block(functools.partial(_using, device))


def device_of(obj: Any) -> Block:
    """A block whose current device is that of a tensor or storage; on a CPU nothing.

    As with `torch.cuda.device_of`, an object that is not on an accelerator changes nothing.
    """
    place = torch.device(obj.device)
    return device_index(place if is_accelerator_name(place) else None)


def synchronize(device: DeviceLike = None) -> None:
    """Wait until the device's submitted work is done; on a CPU nothing."""
    resolve(device).synchronize()


@contextlib.contextmanager
def _using(device: DeviceLike) -> Iterator[None]:
    if device is None or (isinstance(device, int) and device < 0) or not is_available():
        yield
        return
    with use_device(resolve(device)):
        yield
