"""Ascend hardware, driver and CANN, read without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from accel.doctor.machine import Machine
from accel.doctor.nvidia import PCI_HUAWEI, pci_chips
from accel.doctor.tool import ToolAnswer, ask

QUERY = ("npu-smi", "info")
_BUS_ID = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_MEMORY = re.compile(r"(\d+)\s*/\s*(\d+)")
_TOOL_VERSION = re.compile(r"Version:\s*(\S+)")
# CANN 8.5 and newer install as `cann`, older ones as `ascend-toolkit`, the runtime alone as `nnae`.
_PACKAGES = ("cann", "ascend-toolkit", "nnae")
_INSTALL_RECORD = "/etc/Ascend/ascend_cann_install.info"


@dataclass(frozen=True)
class Npu:
    """One chip of npu-smi's table; memory in MB as printed, health in its own word."""

    card: int
    chip: int
    name: str
    health: str
    memory: str


@dataclass(frozen=True)
class CannFacts:
    """The CANN toolkit.

    Attributes:
        home: `ASCEND_HOME_PATH`, empty if unset: whether set_env.sh was sourced.
        home_exists: Whether that is a directory.
        opp: `ASCEND_OPP_PATH`, empty if unset.
        opp_exists: Whether that is a directory.
        scripts: set_env.sh of every toolkit on this disk, newest layout first.
        version: Of the toolkit at `home`, or else of the first one found.
    """

    home: str = ""
    home_exists: bool = False
    opp: str = ""
    opp_exists: bool = False
    scripts: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True)
class AscendFacts:
    """Ascend hardware and software.

    Attributes:
        tool: What npu-smi answered.
        npus: The chips it lists.
        driver: Driver version, empty if none is installed.
        nodes: `/dev/davinci0`, …
        pci: Huawei accelerators on the PCI bus, driver or not.
        readable: False where npu-smi ended well but printed no table.
        cann: The toolkit.
    """

    tool: ToolAnswer
    npus: tuple[Npu, ...] = ()
    driver: str = ""
    nodes: tuple[str, ...] = ()
    pci: int = 0
    readable: bool = True
    cann: CannFacts = CannFacts()

    @property
    def count(self) -> int:
        """NPUs seen by any means."""
        return max(len(self.npus), len(self.nodes), self.pci)


def survey_ascend(machine: Machine, timeout: float) -> AscendFacts:
    """Look for Ascend hardware, its driver, its tool and CANN.

    Args:
        machine: Where.
        timeout: Seconds npu-smi may take.

    Returns:
        What was found.
    """
    tool = ask(machine, QUERY, timeout)
    npus = tuple(parse_table(tool.stdout))
    said = _TOOL_VERSION.search(tool.stdout)
    recorded = _field(machine.read("/usr/local/Ascend/driver/version.info"), "Version")
    return AscendFacts(
        tool=tool,
        npus=npus,
        driver=recorded or (said.group(1) if said else ""),
        nodes=tuple(machine.glob("/dev/davinci[0-9]*")),
        pci=pci_chips(machine, PCI_HUAWEI),
        readable=bool(npus) or not tool.path or bool(tool.error),
        cann=_survey_cann(machine),
    )


def parse_table(text: str) -> Iterator[Npu]:
    """The chips in the table that `npu-smi info` prints.

    Each chip is two rows: card, name and health; then chip, bus id and memory. The second table,
    of processes, has no bus ids and so yields nothing.

    Args:
        text: What npu-smi printed.

    Yields:
        One `Npu` per chip.
    """
    above: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and len(above) == 3 and _BUS_ID.search(cells[1]):
            card, chip = above[0].split(), cells[0].split()
            if len(card) >= 2 and card[0].isdigit() and chip and chip[0].isdigit():
                yield Npu(int(card[0]), int(chip[0]), card[1], above[1], _memory(cells[2]))
        above = cells


def _memory(cell: str) -> str:
    """Total of the last `used / total` pair: HBM where the chip has it, else its memory."""
    pairs = _MEMORY.findall(cell)
    return f"{pairs[-1][1]} MB" if pairs else ""


def _survey_cann(machine: Machine) -> CannFacts:
    home = machine.environment.get("ASCEND_HOME_PATH", "")
    opp = machine.environment.get("ASCEND_OPP_PATH", "")
    scripts = tuple(_set_env_scripts(machine))
    places = [home] if home else [script.removesuffix("/set_env.sh") for script in scripts]
    return CannFacts(
        home=home,
        home_exists=bool(home) and machine.exists(home),
        opp=opp,
        opp_exists=bool(opp) and machine.exists(opp),
        scripts=scripts,
        version=next((v for place in places if (v := _cann_version(machine, place))), ""),
    )


def _set_env_scripts(machine: Machine) -> Iterator[str]:
    recorded = _field(machine.read(_INSTALL_RECORD), "Install_Path")
    home = machine.environment.get("HOME", "")
    roots = [recorded, "/usr/local/Ascend", f"{home}/Ascend" if home else ""]
    for root in dict.fromkeys(root.rstrip("/") for root in roots if root):
        for package in _PACKAGES:
            script = f"{root}/{package}/set_env.sh"
            if machine.exists(script):
                yield script


def _cann_version(machine: Machine, place: str) -> str:
    """Version in the install record of a toolkit: `<place>[/latest]/<arch>-linux/*.info`."""
    for pattern in (
        f"{place}/*-linux/ascend_*_install.info",
        f"{place}/latest/*-linux/ascend_*_install.info",
    ):
        for path in machine.glob(pattern):
            if version := _field(machine.read(path), "version"):
                return version
    return ""


def _field(text: str | None, name: str) -> str:
    match = re.search(rf"^{name}\s*=\s*(\S+)", text or "", re.MULTILINE)
    return match.group(1) if match else ""
