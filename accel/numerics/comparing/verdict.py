"""From what was found to findings in words, in the order of what explains what."""

from __future__ import annotations

from collections.abc import Iterator

from accel.numerics.comparing import (
    one_sided,
    program_findings,
    program_values,
    replay_findings,
    value_findings,
)
from accel.numerics.comparing.comparison import Row, Verdict
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.gradient_scale import of_gradient_scale
from accel.numerics.comparing.precondition_findings import of_preconditions
from accel.numerics.comparing.wording import ending, number_of


def findings(evidence: Evidence) -> list[Verdict]:
    """Everything that is wrong, what explains the rest first; one finding if nothing is.

    The order is that of the stages: what the runs begin with; programs that differ; collectives
    whose result is not the sum of their inputs; operators that replay as faulty; values that
    differ without any of these.
    """
    found = list(_wrong(evidence))
    return found or [*of_gradient_scale(evidence)] or [agreement(evidence)]


def _wrong(evidence: Evidence) -> Iterator[Verdict]:
    found = [
        *of_preconditions(evidence),
        *program_findings.of_arguments(evidence),
        *program_values.of_gradients(evidence),
        *evidence.collectives,
        *replay_findings.of_faults(evidence),
    ]
    if evidence.drift is not None and not evidence.drift.explained:
        found.append(evidence.drift.verdict())
    yield from found
    first = value_findings.first(evidence)
    if first is None or any(_explains(evidence, one, first) for one in found):
        return
    structure: list[Verdict] = []
    if evidence.a.step.operators and evidence.b.step.operators:
        structure = [*program_values.finding(evidence, first)] or [
            *program_findings.of_operators(evidence, first)
        ]
    elif evidence.a.step.operators or evidence.b.step.operators:
        structure = list(one_sided.finding(evidence, first))
    yield from structure or [value_findings.finding(evidence, first)]


def _explains(evidence: Evidence, found: Verdict, row: Row) -> bool:
    """Whether a finding comes before a row, so that the row follows from it."""
    if found.operator is None:
        return True
    orders = [one.order for one in evidence.rows if one.key == found.operator]
    return found.run == "candidate" or not orders or min(orders) <= row.order


def agreement(evidence: Evidence) -> Verdict:
    """The verdict if nothing is wrong."""
    rows = evidence.rows
    if not rows:
        return Verdict(
            "cannot decide",
            "no value of the one run could be aligned with a value of the other",
            ("record both with the same module names",),
        )
    unknown = sum(row.status == "unknown" for row in rows)
    if unknown == len(rows):
        return Verdict("cannot decide", "no value that both runs have has a sketch")
    equal = sum(row.status == "equal" for row in rows)
    if equal == len(rows) - unknown:
        return _same(evidence, equal, unknown)
    return _rounding(evidence, equal)


def _same(evidence: Evidence, equal: int, unknown: int) -> Verdict:
    facts = []
    if unknown:
        have = "has" if unknown == 1 else "have"
        facts.append(f"{unknown} more {have} no sketch, or one of an unknown part of a whole")
    unmatched = [len(evidence.unmatched(run)) for run in ("reference", "candidate")]
    if any(unmatched):
        facts.append(
            f"without a counterpart: {number_of(unmatched[0], 'operator')} of the reference, "
            f"{unmatched[1]} of the candidate"
        )
    sentence = f"all {equal} values that both runs have are equal, as far as sketches tell"
    if equal == 1:
        sentence = "the one value that both runs have is equal, as far as sketches tell"
    return Verdict("same", sentence, tuple(facts))


def _rounding(evidence: Evidence, equal: int) -> Verdict:
    rows = [row for row in evidence.rows if row.status not in ("equal", "unknown")]
    farthest = max(rows, key=lambda row: row.distance or 0.0, default=None)
    of = number_of(len(evidence.rows), "value")
    verb = "is" if equal == 1 else "are"
    apart = f"{len(rows)} differ{ending(len(rows))} by rounding"
    facts = [f"{equal} of {of} {verb} equal, {apart}"]
    if farthest is not None and farthest.distance is not None:
        facts.append(
            f"furthest apart is {farthest.name}: {farthest.distance:.3g}, relative to its norm"
        )
    if evidence.drift is not None:
        facts.append(str(evidence.drift))
    if any(evidence.accuracies.values()):
        facts.append(replay_findings.checked(evidence))
        how = "every operator that was replayed is right"
    else:
        how = "no value differs by more than its inputs and rounding explain"
    return Verdict("rounding only", f"the runs differ by rounding: {how}", tuple(facts))
