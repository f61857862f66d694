"""Runs of several processes: rank by rank, or put together from their parts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from accel.numerics.comparing import stages
from accel.numerics.comparing.averages import averaged
from accel.numerics.comparing.collectives import checked
from accel.numerics.comparing.comparison import Kind, Precondition, RankCell, Run, Verdict
from accel.numerics.comparing.contents import Contents, distance
from accel.numerics.comparing.copies import broken
from accel.numerics.comparing.environment import differences
from accel.numerics.comparing.interface import RecordedRun, RecordedStep
from accel.numerics.comparing.precondition_findings import of_swapped
from accel.numerics.comparing.rank_replays import findings as faults
from accel.numerics.comparing.rank_replays import replayed
from accel.numerics.comparing.shards import has_other_parts, merged
from accel.numerics.comparing.stages import Options, Outcome
from accel.numerics.comparing.swaps import exchanged, swapped
from accel.numerics.replaying.known import kernels_of

_BEGINNINGS: tuple[Kind, ...] = ("different weight/input", "different switch", "different program")
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
    options = replace(
        options, environment=changed, collectives=wrong, kernels=(_kernels(a), _kernels(b))
    )
    worlds = _world(a), _world(b)
    if worlds == (1, 1) and len(ours) == len(theirs) == 1:
        return stages.compared(ours[min(ours)], theirs[min(theirs)], options)
    if set(ours) != set(theirs) or worlds[0] != worlds[1] or has_other_parts(ours, theirs):
        found = _together(ours, theirs, worlds, _replicas(a, b), options)
    else:
        found = _rank_by_rank(ours, theirs, options)
    found.notes = [*_absent(ours, worlds[0], "reference"), *_absent(theirs, worlds[1], "candidate"),
                   *found.notes]  # fmt: skip
    return found


def _kernels(run: RecordedRun) -> str:
    """Whose kernels computed a run."""
    manifest = next(rank.manifest for _, rank in sorted(run.ranks.items()))
    return kernels_of(manifest.device, manifest.numerics_mode.get("environment"))


def _world(run: RecordedRun) -> int:
    """How many processes a run had, whether they were recorded or not."""
    return max(rank.manifest.world for rank in run.ranks.values())


def _replicas(a: RecordedRun, b: RecordedRun) -> tuple[int, int]:
    """Over how many parts of the batch each run takes means."""
    counts = []
    for run in (a, b):
        said = [rank.manifest.data_parallel for rank in run.ranks.values()]
        known = [count for _, count in filter(None, said)]
        counts.append(max(known, default=_world(run)))
    return counts[0], counts[1]


def _absent(steps: Mapping[int, RecordedStep], world: int, name: Run) -> list[str]:
    missing = sorted(set(range(world)) - set(steps))
    if not missing:
        return []
    ranks = ", ".join(map(str, missing))
    return [f"the {name} has no recording of this step of rank {ranks}, of {world} ranks"]


def _of_step(run: RecordedRun, step: int) -> dict[int, RecordedStep]:
    return {number: rank.steps[step] for number, rank in sorted(run.ranks.items())
            if step in rank.steps}  # fmt: skip


def _rank_by_rank(
    ours: Mapping[int, RecordedStep], theirs: Mapping[int, RecordedStep], options: Options
) -> Outcome:
    outcomes = {rank: stages.compared(ours[rank], theirs[rank], options) for rank in ours}
    exchanges = swapped(ours, theirs)
    deciding = min(outcomes, key=lambda rank: _ORDER.index(outcomes[rank].findings[0].kind))
    found = outcomes[deciding]
    if exchanges:
        found.preconditions = [*exchanges, *found.preconditions]
        _explain(found, [of_swapped(exchanges)])
    elif len(outcomes) > 1 and not found.ok:
        others = [rank for rank in outcomes if rank != deciding and not outcomes[rank].ok]
        found.findings[0] = _located(found.findings[0], deciding, others)
    found.ranks = _cells(ours, theirs, outcomes)
    return found


def _located(verdict: Verdict, rank: int, others: list[int]) -> Verdict:
    if verdict.operator is not None and verdict.operator.phase == "collective":
        return verdict  # it is about all of them
    also = ""
    if others:
        ranks = ", ".join(map(str, others))
        also = f"; rank {ranks} differs too" if len(others) == 1 else f"; ranks {ranks} differ too"
    return replace(verdict, sentence=f"on rank {rank}, {verdict.sentence}{also}")


def _explain(found: Outcome, more: Sequence[Verdict], after: Collection[Kind] = ()) -> None:
    """Put findings before those that follow from them."""
    if not more:
        return
    rest = [] if found.ok else [one for one in found.findings if one.kind != "cannot decide"]
    place = next((i for i, one in enumerate(rest) if one.kind not in after), len(rest))
    found.findings = [*rest[:place], *more, *rest[place:]]


def _exchanges(
    ours: Mapping[int, RecordedStep], theirs: Mapping[int, RecordedStep], worlds: tuple[int, int]
) -> Iterator[Precondition]:
    """Parts that another rank should have, as far as elements of a whole are there to tell."""
    if worlds[0] == 1:
        yield from exchanged(ours[min(ours)], theirs)
    elif worlds[1] == 1:
        yield from exchanged(theirs[min(theirs)], ours)


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
    worlds: tuple[int, int],
    replicas: tuple[int, int],
    options: Options,
) -> Outcome:
    left, right = merged(ours, worlds[0]), merged(theirs, worlds[1])
    divisors, said = averaged(left, right, *replicas)
    found = stages.compared(left.step, right.step, replace(options, merged=True, divisors=divisors))
    found.notes = [*left.notes, *right.notes, *said, *found.notes]
    if options.replay:
        runs: tuple[tuple[Run, Mapping[int, RecordedStep], int], ...] = (
            ("reference", ours, worlds[0]), ("candidate", theirs, worlds[1]),
        )  # fmt: skip
        for run, steps, world in runs:
            if world > 1:
                replays = replayed(steps, run, options.kernels[run == "candidate"])
                found.coverage += [replays.coverage] if replays.coverage is not None else []
                _explain(found, faults(replays, found.rows), after=_BEGINNINGS)
    exchanges = [*_exchanges(ours, theirs, worlds)]
    unlike = [
        *broken(left.differing, right.named(), "reference"),
        *broken(right.differing, left.named(), "candidate"),
    ]
    _explain(found, [one for one in unlike if one.kind == _BEGINNINGS[0]])
    if not any(one.kind == "faulty operator" for one in found.findings):  # which would explain it
        _explain(found, [one for one in unlike if one.kind != _BEGINNINGS[0]], after=_BEGINNINGS)
    if exchanges:
        found.preconditions = [*exchanges, *found.preconditions]
        _explain(found, [of_swapped(exchanges)])
    found.ranks = [
        RankCell(x, y, None, None, "unknown", None) for x in sorted(ours) for y in sorted(theirs)
    ]
    return found
