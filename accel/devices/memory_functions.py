"""Flat functions about device memory. A CPU has none: 0, empty, nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from accel.devices.base import Device
from accel.devices.choice import acting_device, current_family
from accel.devices.device_functions import is_available
from accel.devices.resolution import DeviceLike, ask, resolve


def empty_cache() -> None:
    """Give cached device memory back to the driver; on a CPU nothing."""
    acting_device().empty_cache()


def memory_allocated(device: DeviceLike = None) -> int:
    """Bytes of device memory in tensors of this process; 0 on a CPU.

    `Device.memory` tells a CPU's resident set.
    """
    chosen = resolve(device)
    return 0 if chosen.family == "cpu" else chosen.memory().used


def max_memory_allocated(device: DeviceLike = None) -> int:
    """Peak of `memory_allocated` in bytes; 0 on a CPU."""
    chosen = resolve(device)
    return 0 if chosen.family == "cpu" else chosen.memory().peak


def reset_peak_memory_stats(device: DeviceLike = None) -> None:
    """Start `max_memory_allocated` anew; on a CPU nothing."""
    chosen = resolve(device)
    if chosen.family != "cpu":
        chosen.reset_peak_memory()


def memory_reserved(device: DeviceLike = None) -> int:
    """Bytes that the caching allocator holds, used or not; 0 on a CPU."""
    place = _place(device)
    return 0 if place is None else torch.accelerator.memory_reserved(place)


def max_memory_reserved(device: DeviceLike = None) -> int:
    """Peak of `memory_reserved` in bytes; 0 on a CPU."""
    place = _place(device)
    return 0 if place is None else torch.accelerator.max_memory_reserved(place)


def memory_stats(device: DeviceLike = None) -> dict[str, Any]:
    """The caching allocator's counters by dotted names; empty on a CPU."""
    place = _place(device)
    return OrderedDict() if place is None else torch.accelerator.memory_stats(place)


def memory_stats_as_nested_dict(device: DeviceLike = None) -> dict[str, Any]:
    """The same counters, nested; empty on a CPU."""
    chosen = resolve(device)
    answer: dict[str, Any] = _own(chosen, "memory_stats_as_nested_dict", {}, chosen.index)
    return answer


def reset_accumulated_memory_stats(device: DeviceLike = None) -> None:
    """Start the counters of allocations and frees anew; on a CPU nothing."""
    place = _place(device)
    if place is not None:
        torch.accelerator.reset_accumulated_memory_stats(place)


def mem_get_info(device: DeviceLike = None) -> tuple[int, int]:
    """Free and total bytes of the device as its driver tells; (0, 0) on a CPU."""
    chosen = resolve(device)
    if chosen.family == "cpu":
        return (0, 0)
    memory = chosen.memory()
    return memory.free, memory.total


def memory_summary(device: DeviceLike = None, abbreviated: bool = False) -> str:
    """A table of the counters to print; empty on a CPU.

    Args:
        device: Which.
        abbreviated: Leave out the counters by pool.
    """
    chosen = resolve(device)
    return str(_own(chosen, "memory_summary", "", chosen.index, abbreviated))


def memory_snapshot(mempool_id: Any = None, include_traces: bool = True) -> list[dict[str, Any]]:
    """The segments of the caching allocator; empty on a CPU.

    Args:
        mempool_id: Only this pool's.
        include_traces: With the recorded stacks. On CUDA only: Ascend's always have them.
    """
    chosen = current_family()()
    without = not include_traces and chosen.torch_type == "cuda"
    options = [mempool_id, False] if without else [mempool_id]  # an older torch has no second
    segments: list[dict[str, Any]] = _own(chosen, "memory_snapshot", [], *options)
    return segments


def set_per_process_memory_fraction(fraction: float, device: DeviceLike = None) -> None:
    """Let this process allocate at most a share of the device's memory; on a CPU nothing.

    Args:
        fraction: From 0 to 1.
        device: Which.
    """
    chosen = resolve(device)
    _own(chosen, "set_per_process_memory_fraction", None, fraction, chosen.index)


def get_per_process_memory_fraction(device: DeviceLike = None) -> float:
    """That share; 1.0 on a CPU."""
    chosen = resolve(device)
    return float(_own(chosen, "get_per_process_memory_fraction", 1.0, chosen.index))


def ipc_collect() -> None:
    """Free memory that other processes no longer share; on a CPU nothing."""
    if is_available():
        ask(current_family()(), "ipc_collect")


def _place(device: DeviceLike) -> torch.device | None:
    chosen = resolve(device)
    return None if chosen.family == "cpu" else chosen.torch_device


def _own(chosen: Device, name: str, on_cpu: Any, *arguments: Any) -> Any:
    return on_cpu if chosen.family == "cpu" else ask(chosen, name, *arguments)
