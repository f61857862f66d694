"""The CPU as a device."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

import torch

from accel.devices.base import Device, MemoryInfo
from accel.devices.streams import HostEvent, HostStream
from accel.errors import DeviceError


class CpuDevice(Device):
    """The host's processor: always there, and the yardstick for every other chip."""

    family = "cpu"
    torch_type = "cpu"

    @classmethod
    def count(cls) -> int:
        """Always 1: torch sees all cores as one device."""
        return 1

    @property
    def torch_device(self) -> torch.device:
        """`torch.device("cpu")`, without an index, as torch itself writes it."""
        return torch.device("cpu")

    @property
    def name(self) -> str:
        """The processor's model name and the vector instructions torch uses on it."""
        return f"{_model_name()} ({torch.backends.cpu.get_cpu_capability()})"

    @property
    def total_memory(self) -> int:
        """Bytes of main memory."""
        if not hasattr(os, "sysconf"):
            return self.memory().total
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def synchronize(self) -> None:
        """Nothing to wait for: operators on the CPU have finished when they return."""

    def memory(self) -> MemoryInfo:
        """Resident set of this process, its peak, and the machine's available and total memory."""
        if sys.platform != "linux":
            raise DeviceError(
                f"process memory is read from /proc, which {sys.platform} does not have; use "
                "psutil.Process().memory_info() there"
            )
        status = _read_kib("/proc/self/status", ("VmRSS", "VmHWM"))
        machine = _read_kib("/proc/meminfo", ("MemAvailable", "MemTotal"))
        return MemoryInfo(
            status["VmRSS"], status["VmHWM"], machine["MemAvailable"], machine["MemTotal"]
        )

    def reset_peak_memory(self) -> None:
        """Reset the kernel's high-water mark of the resident set (Linux's clear_refs, 5)."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError as error:
            raise DeviceError(
                f"this system does not let a process reset its peak memory ({error}); measure in "
                "a fresh process instead"
            ) from error

    def empty_cache(self) -> None:
        """Nothing to do: torch keeps no cache of host memory."""

    def activate(self) -> None:
        """Nothing to do: torch has no current device while none is an accelerator."""

    def activated(self) -> contextlib.AbstractContextManager[None]:
        """A block that changes nothing."""
        return contextlib.nullcontext()

    def stream(self) -> HostStream:
        """A stream whose waits do nothing."""
        return HostStream()

    def current_stream(self) -> HostStream:
        """A stream whose waits do nothing."""
        return HostStream()

    def event(self, *, timing: bool = False) -> HostEvent:
        """An event that notes the time when it is recorded."""
        return HostEvent(timing)

    def own_rng_state(self) -> None:
        """None: a CPU has no generator besides torch's default one."""

    def set_own_rng_state(self, state: torch.Tensor) -> None:
        """Refused: there is no such generator.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a CPU has no generator of its own: restore with Device.set_rng_state")

    def seed_own_generator(self, seed: int) -> None:
        """Nothing to do."""


def _model_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"} and value.strip():
            return f"{value.strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _read_kib(path: str, keys: tuple[str, ...]) -> dict[str, int]:
    """Values of `Key:   123 kB` lines, in bytes."""
    values = {}
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key in keys:
            values[key] = int(value.split()[0]) * 1024
    return values
