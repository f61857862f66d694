"""Findings from replay: operators that are not what float64 makes of their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from accel.numerics.comparing.comparison import Accuracy, Run, Verdict
from accel.numerics.comparing.environment import explaining
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.wording import ending, listed, number_of, operator_in_words
from accel.numerics.storage.entries import Operator

_RUNS: tuple[Run, ...] = ("candidate", "reference")
_ALIKE = 3.0  # two runs whose errors are within this factor have the same inaccurate kernel


class Fault(NamedTuple):
    """A faulty operator of one run."""

    run: Run
    operator: Operator
    accuracy: Accuracy


def of_faults(evidence: Evidence) -> Iterator[Verdict]:
    """For each run the first faulty operator in execution order; switches apart.

    An operator that is as inaccurate in the other run makes no difference between them: it comes
    last if the runs differ in it, and is only noted if they do not.
    """
    shared: list[Fault] = []
    for run in _RUNS:
        own: list[Fault] = []
        for fault in _faults(evidence, run):
            (shared if _is_shared(evidence, fault) else own).append(fault)
        yield from _of_run(evidence, own)
    differing = [fault for fault in shared if _differs(evidence, fault)]
    alike = [fault for fault in differing if fault.run == "candidate"]
    if alike:
        evidence.notes.append(f"{_inaccurate(len(alike))} in both runs, first {_words(alike[0])}")
    equal = [f for f in shared if f not in differing and f.run == "candidate"]
    if equal:
        evidence.notes.append(
            f"{_inaccurate(len(equal))} in both runs, which agree there; first {_words(equal[0])}"
        )


def _faults(evidence: Evidence, run: Run) -> list[Fault]:
    known = evidence.accuracies.get(run, {})
    return [
        Fault(run, one, known[one.id])
        for one in evidence.contents(run).step.operators
        if one.id in known and known[one.id].is_own_fault
    ]


def _is_shared(evidence: Evidence, fault: Fault) -> bool:
    """Whether the other run's operator is about as wrong."""
    other = evidence.counterpart(fault.run, fault.operator.id)
    if other is None:
        return False
    if not _differs(evidence, fault):
        return True
    against: Run = "reference" if fault.run == "candidate" else "candidate"
    known = evidence.accuracies.get(against, {}).get(other.id)
    if known is None or known.verdict != "faulty":
        return False
    pairs = ((fault.accuracy.rms, known.rms), (fault.accuracy.worst, known.worst))
    return all(x is not None and y is not None and x <= _ALIKE * y for x, y in pairs)


def _differs(evidence: Evidence, fault: Fault) -> bool:
    other = evidence.counterpart(fault.run, fault.operator.id)
    if other is None:
        return True
    ours = fault.operator if fault.run == "reference" else other
    return evidence.has_effect(ours)


def _of_run(evidence: Evidence, faults: list[Fault]) -> Iterator[Verdict]:
    switched = [f for f in faults if (f.run, f.operator.id) in evidence.switches]
    rest = [f for f in faults if (f.run, f.operator.id) not in evidence.switches]
    found = []
    if switched:
        found.append((switched[0].operator.id, _switch(evidence, switched)))
    if rest:
        found.append((rest[0].operator.id, _faulty(evidence, rest)))
    yield from (verdict for _, verdict in sorted(found, key=lambda pair: pair[0]))


def _faulty(evidence: Evidence, faults: list[Fault]) -> Verdict:
    first = faults[0]
    facts = [_words(first), *_rows(evidence, first)]
    if len(faults) > 1:
        facts.append(
            f"{number_of(len(faults) - 1, 'more operator')} of the {first.run} replay"
            f"{ending(len(faults) - 1)} as faulty: "
            + listed([str(fault.operator.key) for fault in faults[1:]])
        )
    sentence = (
        f"{_of(first)} is not what float64 makes of its own inputs: "
        f"{first.accuracy.reason or numbers(first.accuracy)}"
    )
    key, place = first.operator.key, first.operator.place
    return Verdict("faulty operator", sentence, tuple(facts), key, place, first.run)


def _switch(evidence: Evidence, faults: list[Fault]) -> Verdict:
    first = faults[0]
    explanation = evidence.switches[first.run, first.operator.id]
    facts = [_words(first), *_rows(evidence, first)]
    known = explaining(evidence.environment, first.operator.key.op)
    facts += [f"{n}: {a} in the reference, {b} in the candidate" for n, (a, b) in known.items()]
    if len(faults) > 1:
        more = number_of(len(faults) - 1, "more operator")
        facts.append(f"the same explains {more} of the {first.run}")
    sentence = f"{_of(first)} {explanation}"
    key, place = first.operator.key, first.operator.place
    return Verdict("different switch", sentence, tuple(facts), key, place, first.run)


def _rows(evidence: Evidence, fault: Fault) -> Iterator[str]:
    other = evidence.counterpart(fault.run, fault.operator.id)
    key = fault.operator.key
    if other is not None and fault.run == "candidate":
        key = other.key
    for row in evidence.rows_of(key)[:1]:
        if row.distance is not None:
            yield (
                f"the runs differ there by {row.distance:.3g}, in its inputs by "
                f"{row.input_distance or 0.0:.3g} (relative L2)"
            )


def _of(fault: Fault) -> str:
    """The operator of a run, in plain words."""
    name = operator_in_words(fault.operator.key, fault.operator.place)
    bare = name.removeprefix("the ")
    return f"the {fault.run}'s {bare}"


def _inaccurate(count: int) -> str:
    return f"{number_of(count, 'operator')} {'is' if count == 1 else 'are'} inaccurate"


def _words(fault: Fault) -> str:
    return f"{fault.operator.key}: {numbers(fault.accuracy)}"


def numbers(one: Accuracy) -> str:
    """An operator's error in numbers, with the limits in brackets."""
    parts = []
    for name, value, limit in (
        ("R", one.rms, one.limit_rms),
        ("M", one.worst, one.limit_worst),
        ("misrounded", one.misrounding, one.limit_misrounding),
    ):
        if value is not None:
            parts.append(f"{name} {value:.3g}" + ("" if limit is None else f" (limit {limit:.3g})"))
    return ", ".join(parts) or one.reason or one.verdict


def checked(evidence: Evidence) -> str:
    """How many operators of each run were replayed, in words."""
    parts = []
    for run in _RUNS:
        known = evidence.accuracies.get(run, {})
        if known:
            own = [one for one in known.values() if one.instance is None]
            right = sum(one.verdict == "right" for one in own)
            parts.append(f"{right} of {number_of(len(own), 'operator')} of the {run}")
            likely = len(known) - len(own)
            parts += [f"{likely} more judged by another of the same signature"] if likely else []
            inaccurate = sum(one.verdict == "known inaccurate" for one in own)
            parts += [f"{inaccurate} known to be inaccurate"] if inaccurate else []
    return f"replayed in float64 and right: {', '.join(parts)}"
