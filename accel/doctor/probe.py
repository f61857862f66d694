"""Run the probe script in a process of its own and understand what came back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, Literal

from accel.doctor.machine import Machine
from accel.doctor.process import Completed

MARK = "accel-doctor-probe:"
AUTOLOAD_OFF = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}

Outcome = Literal["done", "raised", "crashed", "exited", "hung", "garbled", "refused"]
Progress = Callable[[str], None]
Event = dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """What one probe brought back.

    Attributes:
        label: Its arguments, as in `smoke cuda:0`.
        outcome: `done`; `raised` an exception; `crashed` by a signal; `exited` early with a
            status; `hung` past its time limit; `garbled`, ended well with no result;
            `refused`, could not be started.
        detail: One line on what went wrong.
        stage: The step it was in when it ended.
        events: The lines it printed for the doctor, in order.
        overrides: Environment variables that were set on top.
        traceback: Its traceback, or the end of its output.
        seconds: Wall-clock time.
    """

    label: str
    outcome: Outcome
    detail: str = ""
    stage: str = ""
    events: tuple[Event, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    traceback: str = ""
    seconds: float = 0.0

    def event(self, name: str) -> Event:
        """The last event of that name, empty if there is none."""
        return next((e for e in reversed(self.events) if e.get("event") == name), {})

    @property
    def ended(self) -> str:
        """How it went, as a predicate: `failed`, `was killed by SIGSEGV`."""
        return {
            "done": "finished",
            "raised": "failed",
            "crashed": f"was killed by {self.detail}",
            "exited": "left the process",
            "hung": f"did not finish in {self.seconds:.0f} s",
            "garbled": "ended without a result",
            "refused": "could not be started",
        }[self.outcome]

    @property
    def setting(self) -> str:
        """The variables set on top, as they are typed before a command; empty if none."""
        return " ".join(f"{name}={value}" for name, value in self.overrides.items())

    def to_json(self) -> dict[str, Any]:
        """The probe as JSON types."""
        return {
            "label": self.label,
            "outcome": self.outcome,
            "detail": self.detail,
            "stage": self.stage,
            "overrides": dict(self.overrides),
            "traceback": self.traceback,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Prober:
    """Runs probes on one machine.

    Args:
        machine: Where.
        timeout: Seconds each probe may take.
        progress: Called with a probe's label when it starts.
    """

    machine: Machine
    timeout: float
    progress: Progress

    def run(self, *arguments: str, overrides: Mapping[str, str] | None = None) -> Probe:
        """Run the probe script with some arguments.

        Args:
            *arguments: See `probe_script`.
            overrides: Environment variables to set on top.

        Returns:
            What came back; a broken machine is a result, never an exception.
        """
        label = " ".join(arguments)
        self.progress(label)
        source = files("accel.doctor").joinpath("probe_script.py").read_text("utf-8")
        command = [*self.machine.python_command(), "-c", source, *arguments]
        completed = self.machine.run(command, self.timeout, overrides or {})
        return understand(label, completed, overrides or {})


def understand(label: str, completed: Completed, overrides: Mapping[str, str]) -> Probe:
    """Tell from a process's end and output how its probe went.

    Args:
        label: The probe's arguments.
        completed: The process.
        overrides: The variables it was given.

    Returns:
        The probe.
    """
    events = parse_events(completed.stdout)
    outcome, detail = _judge(completed, events)
    raised = next((e for e in events if e["event"] == "error"), {})
    stages = [str(e.get("name")) for e in events if e["event"] == "stage"]
    return Probe(
        label=label,
        outcome=outcome,
        detail=detail,
        stage=stages[-1] if stages else "starting Python",
        events=events,
        overrides=dict(overrides),
        traceback=str(raised.get("traceback") or completed.stderr[-20_000:]),
        seconds=completed.seconds,
    )


def _judge(completed: Completed, events: tuple[Event, ...]) -> tuple[Outcome, str]:
    names = {event["event"] for event in events}
    completed = replace(completed, stdout=_chatter(completed.stdout))
    if completed.refused:
        return "refused", completed.refused
    if "done" in names:  # whatever happens while the interpreter shuts down, the results are in
        return "done", completed.crashed_by
    if completed.timed_out:
        return "hung", completed.last_line
    if completed.crashed_by:
        return "crashed", completed.crashed_by
    if "error" in names:
        raised = next(event for event in events if event["event"] == "error")
        return "raised", _first_line(str(raised.get("cause")))
    if completed.returncode:
        return "exited", completed.last_line or f"exit status {completed.returncode}"
    return "garbled", completed.last_line


def _chatter(stdout: str) -> str:
    """What torch and the plugins printed, without the lines for the doctor."""
    return "\n".join(line for line in stdout.splitlines() if not line.startswith(MARK))


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:400]


def parse_events(stdout: str) -> tuple[Event, ...]:
    """The marked lines of a probe's output; lines that are not a JSON object are left out.

    Args:
        stdout: All that the probe, torch and the plugins printed.

    Returns:
        The events, each with a string under `event`.
    """
    events = []
    for line in stdout.splitlines():
        if not line.startswith(MARK):
            continue
        try:
            event = json.loads(line[len(MARK) :])
        except ValueError:
            continue  # cut off by a crash, or not ours: its absence is the finding
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return tuple(events)
