"""Replaying the operators of each rank of a run that is otherwise put together from its ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accel.numerics.comparing import isolated, narrowing
from accel.numerics.comparing.comparison import Accuracy, Coverage, Row, Run, Verdict
from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.comparing.replay_findings import numbers
from accel.numerics.comparing.replayer import Replayer
from accel.numerics.comparing.wording import number_of
from accel.numerics.storage.entries import Key, Operator


@dataclass
class RankReplays:
    """What replay found of the ranks of a run.

    Attributes:
        run: Which run.
        faults: Faulty operators by name, each with its ranks.
        switches: Of which it is known what makes them right.
        coverage: How much was checked, all ranks together; None if nothing was.
    """

    run: Run
    faults: dict[Key, list[tuple[int, Operator, Accuracy]]] = field(default_factory=dict)
    switches: dict[Key, str] = field(default_factory=dict)
    coverage: Coverage | None = None


def replayed(
    steps: Mapping[int, RecordedStep], run: Run, kernels: str | None = None
) -> RankReplays:
    """Replay what each rank kept."""
    found = RankReplays(run)
    covered = []
    for rank, step in steps.items():
        contents = Contents(step)
        replayer = Replayer(contents, kernels)
        known = isolated.accuracies(contents, replayer)
        if known:
            covered.append(isolated.covered(run, contents, known))
        for operator in step.operators:
            accuracy = known.get(operator.id)
            if accuracy is None or not accuracy.is_own_fault:
                continue
            found.faults.setdefault(operator.key, []).append((rank, operator, accuracy))
            if operator.key not in found.switches and replayer.can(operator):
                explanation = narrowing.explanation(replayer, operator)
                if explanation is not None:
                    found.switches[operator.key] = explanation
    found.coverage = _added(run, covered)
    return found


def _added(run: Run, covered: Sequence[Coverage]) -> Coverage | None:
    if not covered:
        return None
    checked: Counter[str] = Counter()
    unchecked: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    by_signature: Counter[str] = Counter()
    nothing: Counter[str] = Counter()
    for one in covered:
        by_signature.update(one.by_signature)
        nothing.update(one.nothing)
        checked.update(one.checked)
        unchecked.update(one.unchecked)
        reasons.update(one.reasons)
    unneeded = sum(one.unneeded for one in covered)
    return Coverage(
        run, dict(checked), dict(unchecked), reasons, unneeded, dict(by_signature), dict(nothing)
    )


def findings(replays: RankReplays, rows: Sequence[Row]) -> list[Verdict]:
    """The first operator that replays as faulty on any rank, and the first that is a switch.

    Those that the other run has as wrong make no difference between the runs and are left out.
    """
    shared = {row.key for row in rows if _is_faulty(row, replays.run)}
    own = [key for key in replays.faults if key not in shared]
    own.sort(key=lambda key: replays.faults[key][0][1].id)
    plain = [key for key in own if key not in replays.switches]
    switched = [key for key in own if key in replays.switches]
    return [
        *(_verdict(replays, plain, "faulty operator") for _ in plain[:1]),
        *(_verdict(replays, switched, "different switch") for _ in switched[:1]),
    ]


def _is_faulty(row: Row, run: Run) -> bool:
    other = row.reference if run == "candidate" else row.candidate
    return other is not None and other.verdict == "faulty"


def _verdict(replays: RankReplays, keys: Sequence[Key], kind: str) -> Verdict:
    key = keys[0]
    members = replays.faults[key]
    _, operator, accuracy = members[0]
    ranks = ", ".join(str(rank) for rank, _, _ in members)
    where = f"on rank{'s' if len(members) > 1 else ''} {ranks} of the {replays.run}"
    facts = [f"rank {rank}: {numbers(one)}" for rank, _, one in members]
    if len(keys) > 1:
        more = number_of(len(keys) - 1, "more operator")
        are = "is" if len(keys) == 2 else "are"
        facts.append(f"{more} {are}: {', '.join(map(str, keys[1:5]))}")
    if kind == "different switch":
        sentence = f"{key} {where} {replays.switches[key]}"
        return Verdict("different switch", sentence, tuple(facts), key, operator.place, replays.run)
    why = accuracy.reason or numbers(accuracy)
    sentence = f"{key} {where} is not what float64 makes of its own inputs: {why}"
    return Verdict("faulty operator", sentence, tuple(facts), key, operator.place, replays.run)
