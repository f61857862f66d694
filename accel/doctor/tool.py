"""A vendor's command-line tool: whether it is there, and whether it answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accel.doctor.machine import Machine
from accel.doctor.process import Completed


@dataclass(frozen=True)
class ToolAnswer:
    """What a vendor's tool said.

    Attributes:
        path: Where it is; empty if it is not installed.
        stdout: What it printed, where it ended well.
        error: Why it gave no answer: its own last line, `hung`, a signal. Empty if it ended well.
        output: All it printed when it failed.
    """

    path: str = ""
    stdout: str = ""
    error: str = ""
    output: str = ""


def ask(machine: Machine, command: Sequence[str], timeout: float) -> ToolAnswer:
    """Run a vendor's tool.

    Args:
        machine: Where.
        command: The tool and its arguments.
        timeout: Seconds it may take; a broken driver can make it hang.

    Returns:
        Its answer, or why there is none.
    """
    path = machine.which(command[0])
    if path is None:
        return ToolAnswer()
    completed = machine.run(command, timeout, {})
    if completed.returncode == 0:
        return ToolAnswer(path, completed.stdout)
    output = (completed.stdout + completed.stderr).strip()
    return ToolAnswer(path, error=_reason(completed, output, timeout), output=output)


def _reason(completed: Completed, output: str, timeout: float) -> str:
    if completed.timed_out:
        return f"no answer within {timeout:.0f} s"
    if completed.crashed_by:
        return f"killed by {completed.crashed_by}"
    # Both vendors' tools put the reason first and advice after it.
    said = [line.strip() for line in output.splitlines() if line.strip()]
    return completed.refused or (said[0] if said else f"exit status {completed.returncode}")
