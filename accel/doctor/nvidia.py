"""NVIDIA and AMD hardware and drivers, read without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from accel.doctor.machine import Machine
from accel.doctor.tool import ToolAnswer, ask

QUERY = (
    "nvidia-smi",
    "--query-gpu=index,name,driver_version,memory.total",
    "--format=csv,noheader",
)
_KERNEL_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
_GPU_ROW = re.compile(r"(\d+)\s*,\s*(.+?)\s*,\s*(\d+(?:\.\d+)+)\s*,\s*(.+?)\s*$")
PCI_NVIDIA, PCI_AMD, PCI_HUAWEI = "0x10de", "0x1002", "0x19e5"
# PCI base classes: 03 display controller, 12 processing accelerator. Huawei's display controllers
# are those of its servers' management boards.
_DISPLAY, _ACCELERATOR = "0x03", "0x12"
_CHIP_CLASSES = {
    PCI_NVIDIA: (_DISPLAY, _ACCELERATOR),
    PCI_AMD: (_DISPLAY, _ACCELERATOR),
    PCI_HUAWEI: (_ACCELERATOR,),
}


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi: its index, name and memory as printed (`81559 MiB`)."""

    index: int
    name: str
    memory: str


@dataclass(frozen=True)
class NvidiaFacts:
    """NVIDIA hardware and driver.

    Attributes:
        tool: What nvidia-smi answered.
        gpus: The GPUs it lists.
        driver: Driver version, from nvidia-smi or from the kernel; empty if no driver is loaded.
        nodes: `/dev/nvidia0`, …
        pci: GPUs on the PCI bus, driver or not.
        readable: False where nvidia-smi ended well but printed nothing that could be understood.
    """

    tool: ToolAnswer
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    nodes: tuple[str, ...] = ()
    pci: int = 0
    readable: bool = True

    @property
    def count(self) -> int:
        """GPUs seen by any means."""
        return max(len(self.gpus), len(self.nodes), self.pci)


@dataclass(frozen=True)
class AmdFacts:
    """AMD hardware: compute nodes of the kernel driver, and GPUs on the PCI bus."""

    kfd_gpus: int = 0
    pci: int = 0


def pci_chips(machine: Machine, vendor: str) -> int:
    """Graphics and accelerator chips of a vendor on the PCI bus.

    Args:
        machine: Where.
        vendor: One of `PCI_NVIDIA`, `PCI_AMD`, `PCI_HUAWEI`.

    Returns:
        How many; 0 also where the bus cannot be seen (not Linux, some containers).
    """
    count = 0
    for path in machine.glob("/sys/bus/pci/devices/*/vendor"):
        if (machine.read(path) or "").strip() == vendor:
            kind = machine.read(path.removesuffix("vendor") + "class") or ""
            count += kind.startswith(_CHIP_CLASSES[vendor])
    return count


def survey_nvidia(machine: Machine, timeout: float) -> NvidiaFacts:
    """Look for NVIDIA hardware, its driver and its tool.

    Args:
        machine: Where.
        timeout: Seconds nvidia-smi may take.

    Returns:
        What was found.
    """
    tool = ask(machine, QUERY, timeout)
    rows = [match for line in tool.stdout.splitlines() if (match := _GPU_ROW.match(line.strip()))]
    loaded = _KERNEL_MODULE.search(machine.read("/proc/driver/nvidia/version") or "")
    driver = rows[0].group(3) if rows else (loaded.group(1) if loaded else "")
    return NvidiaFacts(
        tool=tool,
        gpus=tuple(Gpu(int(row.group(1)), row.group(2), row.group(4)) for row in rows),
        driver=driver,
        nodes=tuple(machine.glob("/dev/nvidia[0-9]*")),
        pci=pci_chips(machine, PCI_NVIDIA),
        readable=bool(rows) or not tool.stdout.strip() or "No devices" in tool.stdout,
    )


def survey_amd(machine: Machine) -> AmdFacts:
    """Look for AMD GPUs.

    Args:
        machine: Where.

    Returns:
        What was found.
    """
    kfd = 0
    for path in machine.glob("/sys/class/kfd/kfd/topology/nodes/*/properties"):
        # CPUs are nodes of the topology too; they have no SIMD units.
        units = re.search(r"^simd_count (\d+)", machine.read(path) or "", re.MULTILINE)
        kfd += units is not None and int(units.group(1)) > 0
    return AmdFacts(kfd, pci_chips(machine, PCI_AMD))
