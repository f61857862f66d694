"""What a porting report holds: kinds of findings, findings, processes, the whole. No torch.

The JSON form is that of the dataclasses, field by field, with `schema` and `schema_version`;
`schema_version` rises when a field changes its meaning or goes away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA, SCHEMA_VERSION = "accel.simulate.porting", 1


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        title: As a heading.
        advice: What to do, in one sentence.
        fails: The chip, or torch_npu, refuses such a call.
    """

    title: str
    advice: str
    fails: bool = False


# In the order in which they cost: what stops the program, what runs elsewhere, what waits.
KINDS: Mapping[str, Kind] = {
    "wrong_device": Kind(
        "Operands on different devices",
        "Move the operand with .to(device) where it is made; the call raises on the chip too.",
        fails=True,
    ),
    "refused": Kind(
        "Calls that this chip refuses",
        "Use what the chip has, or another chip; the message names both.",
        fails=True,
    ),
    "missing": Kind(
        "Operators that the simulator cannot run",
        "The real torch_npu has them; only a chip can tell what they give.",
        fails=True,
    ),
    "dtype": Kind(
        "Dtypes that the vendor's tables do not list for the operator",
        "Cast before the call or check on a chip; --strict makes each of them an error.",
    ),
    "cpu_fallback": Kind(
        "Operators without an NPU kernel: torch_npu runs them on the CPU",
        "Each call copies its operands to the host and back and waits; write it with operators "
        "that have a kernel, or do it before the data is moved.",
    ),
    "cpu_remark": Kind(
        "Operators that may run on the CPU, as the vendor's tables remark",
        "Look at the row that is named; measure on a chip.",
    ),
    "synchronization": Kind(
        "Hidden synchronisations: the host waits for the device",
        "Keep the value on the device, or read it once every many steps; replace what selects by a "
        "condition with torch.where.",
    ),
    "copy": Kind(
        "Copies between host and device",
        "Make tensors on the device (device=...), move a batch once, from pinned memory and with "
        "non_blocking=True.",
    ),
    "float64": Kind(
        "Casts to float64 that torch_npu silently makes float32",
        "Ask for float32, or compute on the CPU where float64 is needed.",
    ),
    "explicit_synchronization": Kind(
        "Explicit synchronisations",
        "They are needed for timing and for nothing else in most programs.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Calls of one kind from one line.

    Attributes:
        kind: A key of `KINDS`.
        what: The operator, the direction of the copy, or the call.
        file: The user's file, relative to where the program was started if it is below; empty
            where no line is known.
        line: Counted from 1; 0 where no line is known.
        backward: It happened in the backward pass of that line.
        code: The line's text; empty where the file cannot be read.
        detail: More about the reason, such as the row of the vendor's table.
        count: Calls.
        bytes: Bytes that were copied.
    """

    kind: str
    what: str
    file: str
    line: int
    backward: bool
    code: str
    detail: str
    count: int
    bytes: int = 0

    @property
    def where(self) -> str:
        """`train.py:31`, `train.py:31 (backward)`, or what is known instead."""
        if not self.file:
            return "backward" if self.backward else "no line of Python"
        return f"{self.file}:{self.line}" + (" (backward)" if self.backward else "")


@dataclass(frozen=True)
class Operator:
    """Calls of one operator. `seconds` is the simulator's time, not the chip's."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory in one process.

    Attributes:
        index: The device.
        peak_bytes: Most that torch_npu's allocator held of the device at once.
        peak_tensor_bytes: Most that tensors used at once (`torch.npu.max_memory_allocated`).
    """

    index: int
    peak_bytes: int
    peak_tensor_bytes: int


@dataclass(frozen=True)
class Process:
    """One process of the program.

    Attributes:
        pid: Its number.
        rank: As torchrun names it; empty without.
        program: Its command line from the script's name on.
        ended: It ended by itself; a killed process is reported up to `seconds`.
        seconds: From the start of torch_npu to the end or to the last state that was written.
        operators: Calls of operators on the device.
        copies: Copies by direction, also those that no line is known for.
        copied_bytes: Bytes by direction.
        synchronizations: Times the host waited for the device.
        devices: Memory of the devices that it used.
    """

    pid: int
    rank: str
    program: str
    ended: bool
    seconds: float
    operators: int
    copies: Mapping[str, int]
    copied_bytes: Mapping[str, int]
    synchronizations: int
    devices: tuple[DeviceMemory, ...]


@dataclass(frozen=True)
class Report:
    """What a program did on the simulated Ascend, over all its processes.

    Attributes:
        machine: The simulated machine as `ACCEL_SIMULATE` holds it.
        chip: The chip's name, such as `Ascend910B2`.
        generation: Its generation, such as A2.
        versions: Of accel, python, torch and torch_npu.
        processes: Those in which torch_npu ran operators.
        findings: In order of cost.
        operators: Those that ran, the most time first.
        notes: What is incomplete.
        command: The program; empty where it simulates by itself.
        exit_status: Of the program; None where it is not known.
    """

    machine: str
    chip: str
    generation: str
    versions: Mapping[str, str]
    processes: tuple[Process, ...]
    findings: tuple[Finding, ...]
    operators: tuple[Operator, ...]
    notes: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    exit_status: int | None = None

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind, the most expensive first."""
        return tuple(one for one in self.findings if one.kind == kind)

    def calls(self, kind: str) -> int:
        """How many calls of one kind there were."""
        return sum(one.count for one in self.of_kind(kind))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            **dataclasses.asdict(self),
        }


@dataclass
class Totals:
    """Findings and operators of several processes, added up."""

    findings: dict[Finding, list[int]] = field(default_factory=dict)
    operators: dict[str, list[float]] = field(default_factory=dict)

    def add(self, findings: Sequence[Finding], operators: Sequence[Operator]) -> None:
        """Add those of one process."""
        for one in findings:
            same = dataclasses.replace(one, count=0, bytes=0)
            cell = self.findings.setdefault(same, [0, 0])
            cell[0] += one.count
            cell[1] += one.bytes
        for each in operators:
            total = self.operators.setdefault(each.name, [0, 0.0])
            total[0] += each.count
            total[1] += each.seconds

    def ordered_findings(self) -> tuple[Finding, ...]:
        """By kind in the order of `KINDS`, then by bytes, then by calls."""
        order = {name: i for i, name in enumerate(KINDS)}
        made = [
            dataclasses.replace(one, count=count, bytes=size)
            for one, (count, size) in self.findings.items()
        ]
        made.sort(key=lambda one: (order[one.kind], -one.bytes, -one.count, one.file, one.line))
        return tuple(made)

    def ordered_operators(self) -> tuple[Operator, ...]:
        """The most time first."""
        made = [
            Operator(name, int(count), seconds) for name, (count, seconds) in self.operators.items()
        ]
        return tuple(sorted(made, key=lambda one: (-one.seconds, one.name)))
