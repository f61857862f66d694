"""The operators of a replay beside what was recorded of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from accel.numerics.comparing.contents import rounding
from accel.numerics.comparing.given import shape_of
from accel.numerics.replaying.judged import Judged, Verdict
from accel.numerics.replaying.walk import JudgedOperator, Replay
from accel.numerics.storage.entries import Operator
from accel.numerics.storage.reader import load_recording
from accel.numerics.storage.steps import Step
from accel.report.html import Tone

TONES: dict[Verdict, Tone] = {
    "within": "good",
    "exact": "good",
    "known": "warn",
    "out": "bad",
    "unchecked": "neutral",
}


@dataclass(frozen=True)
class Entry:
    """One replayed operator.

    Attributes:
        position: Its place among all entries.
        rank: Which process.
        step: Which step.
        one: The verdict.
        recorded: The step it is of; None where the recording cannot be read any more.
        operator: What was recorded of it; None likewise.
        accumulated: Distance of its outputs from the chained float64 run, in units of the unit
            roundoff of their dtype; None without it.
    """

    position: int
    rank: int
    step: int
    one: JudgedOperator
    recorded: Step | None
    operator: Operator | None
    accumulated: float | None

    @property
    def judged(self) -> Judged:
        """The verdict."""
        return self.one.judged

    @property
    def label(self) -> tuple[str, Tone]:
        """The verdict's name and colour; views compute nothing, so there is none on them."""
        if self.judged.kind == "view":
            return "view", "neutral"
        return self.judged.verdict, TONES[self.judged.verdict]

    @property
    def name(self) -> str:
        """Its key."""
        return str(self.one.key)

    @property
    def is_measured(self) -> bool:
        """Whether it has R and M: what is exact or unchecked has none."""
        return self.judged.dtype is not None and self.judged.verdict in ("within", "out", "known")

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """What R and M were held to; None where they were not."""
        return self.judged.limit_R, self.judged.limit_M

    @property
    def share(self) -> float | None:
        """How near it is to its limits: 1 is at one."""
        return self.judged.share if self.is_measured else None

    @property
    def outputs(self) -> str:
        """Dtype and shape of what it produced."""
        if self.operator is None or self.recorded is None:
            return "not known"
        return ", ".join(shape_of(self.recorded.values[v]) for v in self.operator.produced)


def entries_of(replay: Replay) -> tuple[list[Entry], list[str]]:
    """Every operator of a replay, and notes on what could not be found of them."""
    notes: list[str] = []
    try:
        recording = load_recording(replay.path)
    except (ValueError, OSError) as error:
        recording = None
        notes.append(f"source lines, arguments and elements are missing: {error}")
    found: list[Entry] = []
    for step in replay.steps:
        recorded = None if recording is None else recording.ranks[step.rank].steps[step.index]
        for one, operator in _paired(step.operators, recorded):
            accumulated = _accumulated(step.errors, operator, recorded)
            found.append(
                Entry(len(found), step.rank, step.index, one, recorded, operator, accumulated)
            )
    return found, notes


def _paired(
    operators: tuple[JudgedOperator, ...], recorded: Step | None
) -> Iterator[tuple[JudgedOperator, Operator | None]]:
    known = {} if recorded is None else {operator.id: operator for operator in recorded.operators}
    for one in operators:
        yield one, known.get(one.id)


def _accumulated(
    errors: dict[int, float], operator: Operator | None, recorded: Step | None
) -> float | None:
    if operator is None or recorded is None:
        return None
    known = [
        errors[value] / rounding(recorded.values[value].dtype)
        for value in operator.produced
        if value in errors
    ]
    return max(known, default=None)
