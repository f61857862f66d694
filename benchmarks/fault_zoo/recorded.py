"""The rules of `accel.numerics` itself: recordings, their replay, their comparison by sketches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple

import accel
from accel.numerics import Judged, Recording, load_recording
from accel.numerics.recorder import Level
from accel.numerics.storage.entries import Key, Operator
from benchmarks.fault_zoo.traces import Place
from benchmarks.fault_zoo.workload import Workload

FULL, SKETCH = "accel.numerics, full", "accel.numerics, sketch"
Under = Callable[[], AbstractContextManager[object]]


class Known(NamedTuple):
    """A kernel that is known to be inaccurate: what was measured of it in this run."""

    operator: str
    dtype: str
    rms: float
    worst: float


class Replayed(NamedTuple):
    """What the replay of one recording says.

    Attributes:
        out: Operators out of their limits, in execution order.
        judged: The verdict on each operator.
        known: Kernels on the list of inaccurate ones that are within what is listed.
        unchecked: How many operators were not checked, by name.
    """

    out: list[Place]
    judged: dict[Place, Judged]
    known: list[Known]
    unchecked: dict[str, int]


def record(
    workload: Workload, path: Path, level: Level, under: AbstractContextManager[object]
) -> None:
    """Record one step within `under`, which is entered before the recorder and so lies below it."""
    with ExitStack() as stack:
        stack.enter_context(under)
        stack.enter_context(accel.numerics.record(workload.model, path, level=level))
        workload.step()


def operators(recording: Recording) -> tuple[Operator, ...]:
    """The operators of the only step of the first rank."""
    (step,) = recording.ranks[min(recording.ranks)].steps.values()
    return step.operators


def places(recording: Recording) -> dict[int, Place]:
    """Each operator by its name and a counter, as other rules name it; by operator id."""
    seen: Counter[str] = Counter()
    found = {}
    for operator in operators(recording):
        found[operator.id] = Place(operator.name, seen[operator.name])
        seen[operator.name] += 1
    return found


def keys(recording: Recording) -> dict[Key, Place]:
    """The same by the operators' keys."""
    by_id = places(recording)
    return {operator.key: by_id[operator.id] for operator in operators(recording)}


def replayed(path: Path) -> Replayed:
    """Replay a recording in float64: the rule at level `full`."""
    recording = load_recording(path)
    by_id = places(recording)
    found = accel.numerics.replay(recording, ranks=[min(recording.ranks)])
    judged = {by_id[one.id]: one.judged for one in found.operators}
    known = [
        Known(one.name, one.dtype or "", one.R, one.M)
        for one in judged.values()
        if one.verdict == "known"
    ]
    unchecked = Counter(one.name for one in judged.values() if one.verdict == "unchecked")
    out = [place for place, one in judged.items() if one.verdict == "out"]
    return Replayed(out, judged, known, dict(unchecked))


def named_by_compare(reference: Path, candidate: Path) -> tuple[str, Place | None]:
    """The kind of the verdict on two recordings, and the operator that it names."""
    found = accel.numerics.compare(reference, candidate)
    operator = found.verdict.operator
    known = {**keys(load_recording(reference)), **keys(load_recording(candidate))}
    return found.verdict.kind, known[operator] if operator is not None else None
