"""Runs of several processes: rank by rank, or put together from their parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from accel.numerics.comparing import stages
from accel.numerics.comparing.averages import averaged
from accel.numerics.comparing.collectives import checked
from accel.numerics.comparing.comparison import Kind, Precondition, RankCell, Verdict
from accel.numerics.comparing.contents import Contents, distance
from accel.numerics.comparing.environment import differences
from accel.numerics.comparing.interface import RecordedRun, RecordedStep
from accel.numerics.comparing.precondition_findings import of_swapped
from accel.numerics.comparing.shards import has_other_parts, merged
from accel.numerics.comparing.stages import Options, Outcome

_ORDER: tuple[Kind, ...] = (
    "different weight/input", "different switch", "different program", "faulty operator",
    "cannot decide", "rounding only", "same",
)  # fmt: skip


def compared(a: RecordedRun, b: RecordedRun, step: int, options: Options) -> Outcome:
    """Compare one step of all ranks.

    Runs of equally many ranks that hold the same parts are compared rank by rank; any others are
    put together first.
    """
    ours, theirs = _of_step(a, step), _of_step(b, step)
    first = min(a.ranks), min(b.ranks)
    changed = differences(a.ranks[first[0]].manifest, b.ranks[first[1]].manifest)
    wrong = tuple(
        verdict
        for run, steps in (("reference", ours), ("candidate", theirs))
        if len(steps) > 1
        for verdict in checked(steps, "reference" if run == "reference" else "candidate")
    )
    options = replace(options, environment=changed, collectives=wrong)
    if len(ours) == len(theirs) == 1:
        return stages.compared(ours[min(ours)], theirs[min(theirs)], options)
    if set(ours) != set(theirs) or has_other_parts(ours, theirs):
        return _together(ours, theirs, options)
    return _rank_by_rank(ours, theirs, options)


def _of_step(run: RecordedRun, step: int) -> dict[int, RecordedStep]:
    return {number: rank.steps[step] for number, rank in sorted(run.ranks.items())
            if step in rank.steps}  # fmt: skip


def _rank_by_rank(
    ours: Mapping[int, RecordedStep], theirs: Mapping[int, RecordedStep], options: Options
) -> Outcome:
    outcomes = {rank: stages.compared(ours[rank], theirs[rank], options) for rank in ours}
    swapped = _swapped(ours, theirs)
    deciding = min(outcomes, key=lambda rank: _ORDER.index(outcomes[rank].findings[0].kind))
    found = outcomes[deciding]
    if swapped:
        found.findings.insert(0, of_swapped(swapped))
        found.preconditions = [*swapped, *found.preconditions]
    elif len(outcomes) > 1 and not found.ok:
        others = [rank for rank in outcomes if rank != deciding and not outcomes[rank].ok]
        found.findings[0] = _located(found.findings[0], deciding, others)
    found.ranks = _cells(ours, theirs, outcomes)
    return found


def _located(verdict: Verdict, rank: int, others: list[int]) -> Verdict:
    also = f"; ranks {', '.join(map(str, others))} differ too" if others else ""
    return replace(verdict, sentence=f"on rank {rank}, {verdict.sentence}{also}")


def _swapped(
    ours: Mapping[int, RecordedStep], theirs: Mapping[int, RecordedStep]
) -> list[Precondition]:
    """Ranks whose inputs are those of another rank in the other run."""
    found = []
    for rank in theirs:
        apart = _inputs_apart(ours[rank], theirs[rank])
        if apart in (0.0, None):
            continue
        for other in ours:
            if other != rank and _inputs_apart(ours[other], theirs[rank]) == 0.0:
                has = f"what rank {other} of the reference has"
                places = f"on rank {other}", f"on rank {rank}"
                name = f"inputs of rank {rank}"
                found.append(Precondition("ranks", name, *places, has, apart))
    return found


def _inputs_apart(a: RecordedStep, b: RecordedStep) -> float | None:
    """Largest distance between the named inputs of two ranks; None if they cannot be compared."""
    left, right = Contents(a), Contents(b)
    theirs = {s.name: value for value, s in b.sources.items() if s.kind == "input"}
    known = []
    for value, source in a.sources.items():
        if source.kind == "input" and source.name in theirs:
            apart = distance(left.sketch(value), right.sketch(theirs[source.name]))
            known.append(math.inf if apart is None else apart)
    return max(known, default=None)


def _cells(
    ours: Mapping[int, RecordedStep],
    theirs: Mapping[int, RecordedStep],
    outcomes: Mapping[int, Outcome],
) -> list[RankCell]:
    cells = []
    for left in ours:
        for right in theirs:
            inputs = _inputs_apart(ours[left], theirs[right])
            if left != right:
                cells.append(RankCell(left, right, inputs, None, "unknown", None))
                continue
            rows = outcomes[left].rows
            known = [row.distance for row in rows if row.distance is not None]
            first = next((row.name for row in rows if row.status == "diverges"), None)
            status = stages.worst(rows)
            cells.append(RankCell(left, right, inputs, max(known, default=None), status, first))
    return cells


def _together(
    ours: Mapping[int, RecordedStep],
    theirs: Mapping[int, RecordedStep],
    options: Options,
) -> Outcome:
    left, right = merged(ours), merged(theirs)
    divisors, said = averaged(left, right, len(ours), len(theirs))
    found = stages.compared(left.step, right.step, replace(options, merged=True, divisors=divisors))
    found.notes = [*left.notes, *right.notes, *said, *found.notes]
    broken = [*left.broken("reference"), *right.broken("candidate")]
    if broken:
        if found.ok:
            found.findings = []
        found.findings = [*broken, *found.findings]
    found.ranks = [
        RankCell(x, y, None, None, "unknown", None) for x in sorted(ours) for y in sorted(theirs)
    ]
    return found
