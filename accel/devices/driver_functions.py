"""Flat functions about what a device is and how its runtime does, as its driver tells."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch

from accel.devices.choice import acting_device, current_family
from accel.devices.device_functions import is_available
from accel.devices.resolution import DeviceLike, ask, module_of, resolve


class HostProperties(NamedTuple):
    """What `get_device_properties` tells of a CPU: the fields that programs read most.

    Attributes:
        name: The processor's model.
        total_memory: Bytes of main memory.
        multi_processor_count: Threads that torch computes with.
        major: 0: it has no CUDA compute capability.
        minor: 0.
    """

    name: str
    total_memory: int
    multi_processor_count: int
    major: int = 0
    minor: int = 0


def get_device_name(device: DeviceLike = None) -> str:
    """The chip's name by its driver; on a CPU the processor's model."""
    return resolve(device).name


def get_device_properties(device: DeviceLike = None) -> Any:
    """What the vendor's runtime tells of a device: its own object; `HostProperties` on a CPU.

    Ascend's has `name`, `total_memory` and its cores; `major`, `minor` and what else is CUDA's are
    None there: ask `get_device_capability`, which answers everywhere.
    """
    chosen = resolve(device)
    if chosen.family == "cpu":
        return HostProperties(chosen.name, chosen.total_memory, torch.get_num_threads())
    return ask(chosen, "get_device_properties", chosen.index)


def get_device_capability(device: DeviceLike = None) -> tuple[int, int]:
    """CUDA's compute capability; (0, 0) where there is none, as on Ascend and a CPU.

    So a guard such as `>= (8, 0)` before code for one generation of GPUs is False elsewhere.
    """
    chosen = resolve(device)
    if chosen.torch_type != "cuda":
        return (0, 0)
    capability: tuple[int, int] = ask(chosen, "get_device_capability", chosen.index)
    return capability


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the current device computes in bfloat16; False on a CPU, as `torch.cuda` says there.

    Args:
        including_emulation: Also where it is emulated, as on GPUs before Ampere.
    """
    chosen = acting_device()
    if chosen.family == "cpu":
        return False
    function = getattr(module_of(chosen), "is_bf16_supported", None)
    if function is None:
        return torch.bfloat16 in chosen.dtypes.compute
    if "including_emulation" in inspect.signature(function).parameters:
        return bool(function(including_emulation=including_emulation))
    return bool(function())


def init() -> None:
    """Start the device's runtime now and not at its first use; on a CPU nothing."""
    if is_available():
        ask(acting_device(), "init")


def is_initialized() -> bool:
    """Whether the device's runtime has started; False on a CPU."""
    return is_available() and bool(ask(current_family()(), "is_initialized"))


def can_device_access_peer(device: DeviceLike, peer_device: DeviceLike) -> bool:
    """Whether one device reaches the other's memory; False on a CPU."""
    if not is_available():
        return False
    one, other = resolve(device), resolve(peer_device)
    return bool(ask(one, "can_device_access_peer", one.index, other.index))


def utilization(device: DeviceLike = None) -> int:
    """How busy the device was, in percent; 0 on a CPU.

    Raises:
        ImportError: On CUDA, the package nvidia-ml-py is missing.
    """
    chosen = resolve(device)
    return 0 if chosen.family == "cpu" else int(ask(chosen, "utilization", chosen.index))


def get_sync_debug_mode() -> int:
    """What synchronising operations do: 0 nothing, 1 warn, 2 raise; 0 on a CPU."""
    return int(ask(current_family()(), "get_sync_debug_mode")) if is_available() else 0


def set_sync_debug_mode(debug_mode: int | str) -> None:
    """Set it: `default`, `warn`, `error` or 0, 1, 2; on a CPU nothing."""
    if is_available():
        ask(current_family()(), "set_sync_debug_mode", debug_mode)
