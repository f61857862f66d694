"""Each process writes its part of the report beside it; one process merges them. No torch.

The name of the parts travels in `ACCEL_SIMULATE_PARTS`. `accel simulate` sets it and merges at the
end; a program that activates the simulator by itself does both for its children.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel._version import __version__
from accel.report import write_atomically
from accel.simulate.machine import Machine
from accel.simulate.porting.findings import (
    SCHEMA,
    SCHEMA_VERSION,
    DeviceMemory,
    Finding,
    Operator,
    Process,
    Report,
    Totals,
)

VARIABLE = "ACCEL_SIMULATE_PARTS"
_ENDING = ".part.json"


@dataclass(frozen=True)
class Part:
    """What one process did."""

    process: Process
    findings: tuple[Finding, ...]
    operators: tuple[Operator, ...]
    versions: Mapping[str, str]


def new_stem(report: str) -> str:
    """A name for the parts of one run, beside its report."""
    target = Path(os.path.abspath(report))
    return str(target.parent / f".{target.name}.{secrets.token_hex(4)}")


def part_name(stem: str) -> str:
    """A file name of its own for the calling process's part."""
    return f"{stem}.{os.getpid()}-{secrets.token_hex(4)}{_ENDING}"


def write_part(name: str, part: Part) -> None:
    """Write or replace a part.

    Raises:
        OSError: It cannot be written.
    """
    document = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **dataclasses.asdict(part)}
    write_atomically(name, json.dumps(document))


def take_parts(stem: str) -> tuple[list[Part], list[str]]:
    """Read and remove the parts of a run.

    Returns:
        The parts in order of pid, and a note about each that could not be read.
    """
    home = Path(stem).parent
    start = Path(stem).name + "."
    names = sorted(name for name in os.listdir(home) if name.startswith(start))
    parts, notes = [], []
    for path in (home / name for name in names if name.endswith(_ENDING)):
        try:
            parts.append(_read(path))
        except (OSError, ValueError, TypeError, KeyError) as error:
            notes.append(f"{path.name} could not be read ({error}): one process is missing here")
        path.unlink(missing_ok=True)
    return sorted(parts, key=lambda part: part.process.pid), notes


def merge(
    machine: Machine,
    parts: Sequence[Part],
    notes: Sequence[str] = (),
    *,
    command: Sequence[str] = (),
    exit_status: int | None = None,
) -> Report:
    """The report of a run."""
    totals = Totals()
    said = list(notes)
    for part in parts:
        totals.add(part.findings, part.operators)
        if not part.process.ended:
            said.append(
                f"process {part.process.pid} was killed or left Python at once: it is reported "
                f"up to {part.process.seconds:.1f} s after its start"
            )
    if not parts:
        said.append("no process used a simulated NPU: does the program move anything to `npu`?")
    profile = machine.profile
    return Report(
        machine=machine.to_text(),
        chip=profile.soc_name,
        generation=profile.generation,
        versions=parts[0].versions if parts else {"accel": __version__},
        processes=tuple(part.process for part in parts),
        findings=totals.ordered_findings(),
        operators=totals.ordered_operators(),
        notes=tuple(said),
        command=tuple(command),
        exit_status=exit_status,
    )


def write_report(path: str, report: Report) -> None:
    """Write a report as JSON.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(path, json.dumps(report.to_json(), indent=1) + "\n")


def _read(path: Path) -> Part:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if (document["schema"], document["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
        raise ValueError("another version of accel wrote it")
    process = dict(document["process"])
    process["devices"] = tuple(DeviceMemory(**one) for one in process["devices"])
    return Part(
        process=Process(**process),
        findings=tuple(Finding(**one) for one in document["findings"]),
        operators=tuple(Operator(**one) for one in document["operators"]),
        versions=document["versions"],
    )
