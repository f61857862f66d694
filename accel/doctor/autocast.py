"""Which operators this machine's own autocast treats otherwise than Accel's table.

torch is asked in a process of its own, as everywhere in the doctor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from accel._version import __version__
from accel.doctor.machine import LocalMachine, Machine
from accel.doctor.process import Completed

SCHEMA = "accel.autocast"
MODULE = "accel.precision.autocast.census"
_COLUMNS = ("operator", "operands", "natively", "by the table")


@dataclass(frozen=True)
class AutocastReport:
    """What was found, or why nothing was.

    Attributes:
        document: What the census printed; empty if it brought nothing back.
        problem: Why not; empty if it did.
    """

    document: Mapping[str, Any]
    problem: str = ""

    @property
    def status(self) -> int:
        """Exit status: 0 where it was measured and `portable_autocast` keeps to the table."""
        kept = not any(device["not_portable"] for device in self.document.get("devices", ()))
        return int(bool(self.problem) or not kept)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON document."""
        found = dict(self.document) or {"schema": SCHEMA, "devices": []}
        return {**found, "accel_version": __version__, "problem": self.problem}


def survey_autocast(machine: Machine | None = None, timeout: float = 60.0) -> AutocastReport:
    """Call every operator of the table under the machine's own autocast.

    Args:
        machine: Where; this machine if None.
        timeout: Seconds.

    Returns:
        The report. A broken machine is its content and never an exception.
    """
    machine = machine if machine is not None else LocalMachine()
    completed = machine.run([*machine.python_command(), "-m", MODULE], timeout, {})
    for line in reversed(completed.stdout.splitlines()):
        if line.startswith('{"schema"'):
            return _read(line)
    return AutocastReport({}, _reason(completed, timeout))


def _read(line: str) -> AutocastReport:
    try:
        document = json.loads(line)
    except ValueError as error:
        return AutocastReport({}, f"the census printed no JSON: {error}")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return AutocastReport({}, "the census printed another document than its own")
    return AutocastReport(document)


def _reason(completed: Completed, timeout: float) -> str:
    if completed.refused:
        return f"the census could not be started: {completed.refused}"
    if completed.timed_out:
        return (
            f"the census did not finish in {timeout:g} s: a chip that compiles operators at "
            "their first call needs longer, so pass --timeout"
        )
    how = completed.crashed_by or f"status {completed.returncode}"
    return (
        f"the census ended with {how}: {completed.last_line or 'it printed nothing'}. Plain "
        "`accel doctor` says what is wrong with torch"
    )


def render_autocast(report: AutocastReport) -> str:
    """Lay the report out as text.

    Args:
        report: What to say.

    Returns:
        Lines: for each device the default dtypes and a table.
    """
    if report.problem:
        return f"accel doctor: autocast was not measured: {report.problem}\n"
    default = report.document["default_dtype"]
    lines = [f"accel doctor: autocast, torch {report.document['torch']}"]
    for device in report.document["devices"]:
        lines += ["", *_device(device, default)]
    left_out = ", ".join(report.document["not_called"])
    lines += ["", f"Not called, being inner operators: {left_out}"]
    return "\n".join(lines) + "\n"


def _device(device: Mapping[str, Any], default: str) -> Iterator[str]:
    yield f"{device['device']}  {device['name']}"
    same = "the same" if device["default_dtype"] == default else "another"
    yield (
        f"  default dtype: torch.autocast {device['default_dtype']}, portable_autocast {default}: "
        f"{same}"
    )
    rows = device["differs"]
    operators = len({row["operator"] for row in rows})
    yield (
        f"  {operators} of {device['called']} operators differ from the table under "
        f"torch.autocast({device['device'].partition(':')[0]!r}, torch.{device['dtype']}):"
    )
    yield from _table([(r["operator"], r["operands"], r["native"], r["table"]) for r in rows])
    for row in device["not_portable"]:
        yield (
            f"  PROBLEM: {row['operator']} of {row['operands']} gives {row['portable']} under "
            f"portable_autocast, by the table {row['table']}"
        )
    if device["absent"]:
        yield f"  not on this device: {', '.join(device['absent'])}"
    if device["unknown"]:
        yield f"  treated natively and not in the table: {', '.join(device['unknown'])}"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    for row in (_COLUMNS, *rows) if rows else ():
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"    {'  '.join(cells)}".rstrip()
