"""Which device this process computes on.

The choice: `ACCEL_DEVICE`, else the only accelerator, else the CPU. Two different accelerators and
none named is an error. Which of the family's devices: see `accel.devices.current`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from accel.devices.base import Device
from accel.devices.cpu import CpuDevice
from accel.devices.current import follow, index_of, index_without_binding, settled_by_program
from accel.devices.registry import (
    _registry,
    accelerator_counts,
    constant_in_graphs,
    failure_of,
    log_once,
)
from accel.errors import DeviceError

# What decides which devices there are, as long as a vendor's runtime has not started: a choice is
# remembered for their values, so that one changed later is not passed over.
_DECIDING = (
    "ACCEL_DEVICE",
    "LOCAL_RANK",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "MLU_VISIBLE_DEVICES",
    "MUSA_VISIBLE_DEVICES",
)
# `os.environ` without its conversions, which would take longer than all else.
_variables: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_encoded: tuple[Any, ...] = (
    tuple(os.environ.encodekey(name) for name in _DECIDING)
    if _variables is not os.environ
    else _DECIDING
)
_Key = tuple[Any, ...]


@dataclass(frozen=True)
class _Choice:
    """What the environment chooses.

    Attributes:
        family: The class of the device.
        index: The index that `ACCEL_DEVICE` gives, or `LOCAL_RANK`; None where neither does.
        named: Whether it is `ACCEL_DEVICE`'s.
        complaint: Why `LOCAL_RANK` cannot be followed; empty where it can.
    """

    family: type[Device]
    index: int | None = None
    named: bool = False
    complaint: str = ""


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
    `cuda:1`, `cpu`, …); the only accelerator; the CPU.

    Which one of its family: each thread begins at the index in `ACCEL_DEVICE`, else, until
    `accel.set_device` is called, at `LOCAL_RANK` (set by torchrun), and the first choice makes it
    torch's current device there, since collectives and Triton launch there and not where the
    tensors are. From then on, and without either, it is torch's current device of this thread,
    whether `accel.set_device`, `torch.cuda.set_device` or a block of torch's made it so. A runtime
    that has not started yet is not started by the question.

    Raises:
        DeviceError: Two different accelerators are here and none is named; the named one is not
            here; or `LOCAL_RANK` exceeds the devices that this process sees, unless it sees one
            only: then it is that one, which is logged once.
    """
    return _current(strict=True)


def acting_device() -> Device:
    """`current_device` for the flat functions, which never raise for `LOCAL_RANK`.

    Where it exceeds the devices they act as `torch.cuda`'s, on torch's current one, and log it.
    """
    return _current(strict=False)


def current_family() -> type[Device]:
    """The class of the current device. No index is chosen, and no runtime started."""
    stack: list[Device] = getattr(_registry.local, "stack", [])
    return type(stack[-1]) if stack else _family(_key())


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
    """Make a device this thread's current one, as `torch.cuda.set_device` does.

    As in torch, another thread begins at device 0, and torch's own functions and blocks change it.
    `LOCAL_RANK` is not followed any more, in no thread.

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
    family = current_family()
    if isinstance(name, int):
        name = "cpu" if family.family == "cpu" else f"{family.family}:{name}"
    device = find_device(name)
    if device.torch_type != family.torch_type:
        raise DeviceError(
            f"set_device chooses among the {family.family} devices, not {device}: name another "
            "family with ACCEL_DEVICE or `with accel.use_device(...)`"
        )
    if device.family != "cpu":
        _registry.follows_rank = False
        settled_by_program(family, device.index, wish_of(family))
    device.activate()


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
    family = _registry.families[_find(name)]
    index = _index_in(name)
    if index is None:
        rank, complaint = _local_rank(family)
        if complaint and _registry.follows_rank:
            raise DeviceError(complaint)
        index = index_without_binding(family, rank)
    return family(index)


def _index_in(name: str) -> int | None:
    _, separator, number = name.partition(":")
    return int(number) if separator else None


@constant_in_graphs
def _find(name: str) -> str:
    """The family that a name means, if its index is one of a device here."""
    family, separator, number = name.partition(":")
    if separator and not number.isdecimal():
        raise DeviceError(f"{name!r} names no device: write it as in 'cuda' or 'cuda:1'")
    if family == "cpu":
        return family
    counts = accelerator_counts()
    # On an AMD machine `cuda`, torch's name for the type, means the family that is there.
    same_type = [f for f in counts if _registry.families[f].torch_type == family]
    if family not in counts and same_type:
        family = same_type[0]
    if family not in counts:
        raise DeviceError(_not_here(family, name, counts))
    if separator and int(number) >= counts[family]:
        raise DeviceError(
            f"{name!r} is not here: this process sees {counts[family]} {family} device(s), "
            "numbered from 0"
        )
    return family


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


def _current(strict: bool) -> Device:
    stack: list[Device] = getattr(_registry.local, "stack", [])
    if stack:
        # The block made it torch's current device; a block of torch's inside may have changed it.
        return follow(stack[-1])
    key = _key()
    family = _family(key)
    if family is CpuDevice:
        return CpuDevice()
    complaint = _complaint(key) if _registry.follows_rank else ""
    if complaint and strict:
        raise DeviceError(complaint)
    if complaint:
        log_once(f"{complaint}; until then torch's current device is used")
    return family(index_of(family, _wish(key, _registry.follows_rank), _is_named(key)))


def wish_of(family: type[Device]) -> int | None:
    """The index that the environment asks for now, if this is the family that it chooses."""
    key = _key()
    return _wish(key, _registry.follows_rank) if _family(key) is family else None


def _key() -> _Key:
    """What the choice depends on."""
    # A plugin that takes torch's spare type makes itself known by this name.
    spare = torch._C._get_privateuse1_backend_name()
    return (*[_variables.get(name) for name in _encoded], spare)


def _chosen(key: _Key) -> _Choice:
    found: _Choice | None = _registry.selected.get(key)
    if found is None:
        found = _registry.selected[key] = _select(os.environ.get("ACCEL_DEVICE") or None)
    return found


def _family(key: _Key) -> type[Device]:
    return _registry.families[_family_name(key)]


@constant_in_graphs
def _family_name(key: _Key) -> str:
    return _chosen(key).family.family


@constant_in_graphs
def _wish(key: _Key, follows_rank: bool) -> int | None:
    """The index that the environment asks for."""
    chosen = _chosen(key)
    return chosen.index if chosen.named or follows_rank else None


@constant_in_graphs
def _is_named(key: _Key) -> bool:
    return _chosen(key).named


@constant_in_graphs
def _complaint(key: _Key) -> str:
    return _chosen(key).complaint


def _select(named: str | None) -> _Choice:
    if named is not None:
        family, index = _registry.families[_find(named)], _index_in(named)
        if index is not None and family is not CpuDevice:
            return _Choice(family, index, named=True)
    else:
        families = list(accelerator_counts())
        if len(families) > 1:
            raise DeviceError(
                f"two different accelerators are here, {' and '.join(families)}: say which one to "
                f"use with ACCEL_DEVICE={families[0]} or `with accel.use_device({families[0]!r})`"
            )
        family = _registry.families[families[0]] if families else CpuDevice
    if family is CpuDevice:
        return _Choice(CpuDevice)
    rank, complaint = _local_rank(family)
    return _Choice(family, rank, complaint=complaint)


def _local_rank(family: type[Device]) -> tuple[int | None, str]:
    """`LOCAL_RANK` as an index of the family, and else why it is none, if that matters."""
    text = os.environ.get("LOCAL_RANK")
    if not text:
        return None, ""
    count = family.count()
    if text.isdecimal() and int(text) < count:
        return int(text), ""
    seen = f"LOCAL_RANK={text}, but this process sees {count} {family.family} device(s)"
    if count == 1:  # a launcher shows each process its own; there is nothing to mistake
        log_once(f"{seen}, which is used")
        return None, ""
    return None, (
        f"{seen}: start at most {count} processes, or set ACCEL_DEVICE={family.family}:0 if the "
        "launcher shows each process one device only"
    )
