"""The hooks of the porting report, and `--strict`. Nothing is installed unless one is asked for.

Every operator that runs on the device keeps the kernel it has and gets a second one before it,
which looks at the call and hands it on. Operators that torch_npu has no kernel for reach its
fallback to the CPU in the same way, so its own warning and `TORCH_NPU_FALLBACK_CPU_DISABLE` stay as
they are.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch

from accel._version import __version__
from accel.simulate.library import current_runtime
from accel.simulate.machine import Machine
from accel.simulate.operators import memory
from accel.simulate.porting import parts
from accel.simulate.porting.collector import Collector, Environment
from accel.simulate.porting.findings import DeviceMemory
from accel.simulate.porting.watcher import Kernel, Watcher


def begin(machine: Machine, kernels: Mapping[str, Kernel]) -> None:
    """Observe this process, after all kernels are registered.

    Args:
        machine: The simulated machine, whose `report` or `strict` is set.
        kernels: Those registered for the device, by operator.
    """
    collector = _start_collector(machine) if machine.report else None
    watcher = Watcher(machine, collector)
    for name, kernel in kernels.items():
        watcher.watch(name, kernel)
    if collector is not None:
        watcher.watch_control()
        watcher.watch_fallbacks()
        _watch_libraries(watcher)
        _watch_explicit(watcher)


def _start_collector(machine: Machine) -> Collector:
    stem = os.environ.get(parts.VARIABLE)
    if not stem:
        # Nobody above merges: this process does, after its own part is written.
        stem = os.environ[parts.VARIABLE] = parts.new_stem(machine.report)
        report = os.path.abspath(machine.report)
        atexit.register(_merge, machine, stem, report, os.getpid())
    versions = {
        "accel": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_npu": importlib.metadata.version("torch-npu"),
    }
    return Collector(stem, Environment(current_runtime().counters, _memory, versions))


def _merge(machine: Machine, stem: str, report: str, pid: int) -> None:
    if os.getpid() == pid:
        found, notes = parts.take_parts(stem)
        parts.write_report(report, parts.merge(machine, found, notes))


def _memory() -> tuple[DeviceMemory, ...]:
    npu = memory.npu()
    if not npu.is_initialized():
        return ()
    runtime = current_runtime()
    all_devices = (
        DeviceMemory(index, runtime.peak_bytes(index), npu.max_memory_allocated(index))
        for index in range(npu.device_count())
    )
    return tuple(one for one in all_devices if one.peak_bytes)


def _watch_libraries(watcher: Watcher) -> None:
    """Look at operators that an extension (torchvision's, say) brings in later."""
    load = torch.ops.load_library

    @functools.wraps(load)
    def load_library(path: Any) -> None:
        load(path)
        watcher.watch_fallbacks()

    torch.ops.load_library = load_library  # type: ignore[method-assign]


def _watch_explicit(watcher: Watcher) -> None:
    """Look at the calls with which a program waits on purpose; they pass no dispatcher."""
    npu = memory.npu()
    owners: tuple[tuple[Any, str], ...] = (
        (npu, "torch.npu.synchronize()"),
        (npu.Stream, "Stream.synchronize()"),
        (npu.Event, "Event.synchronize()"),
        (torch.accelerator, "torch.accelerator.synchronize()"),
    )
    for owner, label in owners:
        owner.synchronize = _noted(watcher, owner.synchronize, label)


def _noted(watcher: Watcher, function: Callable[..., Any], label: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def synchronize(*args: Any, **kwargs: Any) -> Any:
        watcher.note("explicit_synchronization", label)
        return function(*args, **kwargs)

    return synchronize
