"""The log: each process writes its part beside it, the command merges them. No torch.

The schema is documented in docs/trace.md; `accel.convert.traced` reads it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel._version import __version__
from accel.report import write_atomically

SCHEMA = "accel.trace"
SCHEMA_VERSION = 1
_ENDING = ".part.json"


@dataclass(frozen=True, order=True)
class Call:
    """Redirected calls of one kind from one place.

    Attributes:
        path: Relative to where the program was started if it is below, absolute otherwise; a name
            such as `<string>` where Python has no file; "" where no line is known.
        line: Of the call, from 1; 0 where no line is known.
        end_line: Its last line.
        api: What was called, such as `torch.Tensor.cuda`.
        given: The device that was asked for, as text; "" where none was named.
        redirected_to: A device, or a function of accel; "" where there is no equivalent.
        package: Of third parties: the name under site-packages; "" for the program's own files.
        note: What else is to know.
        count: How often.
    """

    path: str
    line: int
    end_line: int
    api: str
    given: str
    redirected_to: str
    package: str = ""
    note: str = ""
    count: int = 1


@dataclass(frozen=True)
class Process:
    """A process of the program that imported torch.

    Attributes:
        pid: Its number.
        rank: Of a distributed program; "" otherwise.
        program: Its arguments.
        device: Where its calls went; "" if there were none.
        torch: The version.
        ended: False for one that was killed: its last calls are missing.
        dropped: Calls from more places than a process keeps.
    """

    pid: int
    rank: str
    program: str
    device: str
    torch: str
    ended: bool
    dropped: int = 0


@dataclass(frozen=True)
class Part:
    """What one process did."""

    process: Process
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Log:
    """What a program did.

    Attributes:
        command: As it was started.
        directory: Where.
        exit_status: Its own; None if it did not start.
        processes: In order of pid.
        calls: Of all processes together, in order of their place.
        notes: What is missing from it.
    """

    command: tuple[str, ...]
    directory: str
    exit_status: int | None
    processes: tuple[Process, ...]
    calls: tuple[Call, ...]
    notes: tuple[str, ...]

    def to_text(self) -> str:
        """As JSON."""
        head = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "accel": __version__}
        return json.dumps({**head, **dataclasses.asdict(self)}, indent=1) + "\n"


def new_stem(directory: str) -> str:
    """Start of the names of the parts of one run, in a directory."""
    return os.path.join(directory, f".accel-trace-{secrets.token_hex(4)}")


def part_name(stem: str) -> str:
    """A file name of its own for the calling process's part."""
    return f"{stem}.{os.getpid()}-{secrets.token_hex(4)}{_ENDING}"


def write_part(name: str, part: Part) -> None:
    """Write or replace a part.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(name, json.dumps(dataclasses.asdict(part)))


def take_parts(stem: str) -> tuple[list[Part], list[str]]:
    """Read and remove the parts of a run.

    Returns:
        The parts in order of pid, and a note about each that could not be read.
    """
    home = Path(stem).parent
    start = Path(stem).name + "."
    parts, notes = [], []
    for name in sorted(name for name in os.listdir(home) if name.startswith(start)):
        path = home / name
        try:
            parts.append(_read(path))
        except (OSError, ValueError, TypeError, KeyError) as error:
            notes.append(f"{name} could not be read ({error}): one process is missing here")
        path.unlink(missing_ok=True)
    return sorted(parts, key=lambda part: part.process.pid), notes


def merge(
    parts: Sequence[Part],
    notes: Sequence[str],
    *,
    command: Sequence[str],
    directory: str,
    exit_status: int | None,
) -> Log:
    """The log of a run."""
    counts: dict[Call, int] = {}
    said = list(notes)
    for part in parts:
        for call in part.calls:
            key = dataclasses.replace(call, count=0)
            counts[key] = counts.get(key, 0) + call.count
        said += _notes_of(part.process)
    if not parts:
        said.append("no process of the program imported torch, so that nothing was redirected")
    return Log(
        command=tuple(command),
        directory=directory,
        exit_status=exit_status,
        processes=tuple(part.process for part in parts),
        calls=tuple(sorted(dataclasses.replace(key, count=n) for key, n in counts.items())),
        notes=tuple(said),
    )


def _notes_of(process: Process) -> list[str]:
    notes = []
    if not process.ended:
        notes.append(f"process {process.pid} was killed or left Python at once: its end is missing")
    if process.dropped:
        notes.append(
            f"process {process.pid} made {process.dropped} calls from more places than are kept"
        )
    return notes


def _read(path: Path) -> Part:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return Part(
        process=Process(**document["process"]),
        calls=tuple(Call(**one) for one in document["calls"]),
    )
