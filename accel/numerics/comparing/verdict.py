"""From what was found to findings in words, in the order of what explains what."""

from __future__ import annotations

from collections.abc import Iterator

from accel.numerics.comparing import program_findings, replay_findings, value_findings
from accel.numerics.comparing.comparison import Verdict
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.precondition_findings import of_preconditions


def findings(evidence: Evidence) -> list[Verdict]:
    """Everything that is wrong, what explains the rest first; one finding if nothing is.

    The order is that of the stages: what the runs begin with; programs that differ; collectives
    whose result is not the sum of their inputs; operators that replay as faulty; values that
    differ without any of these.
    """
    found = list(_wrong(evidence))
    return found or [agreement(evidence)]


def _wrong(evidence: Evidence) -> Iterator[Verdict]:
    yield from of_preconditions(evidence)
    yield from program_findings.of_arguments(evidence)
    yield from evidence.collectives
    faults = list(replay_findings.of_faults(evidence))
    yield from faults
    structure = list(program_findings.of_operators(evidence))
    yield from structure
    if not faults and not structure:
        yield from value_findings.of_values(evidence)


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
    matched = not evidence.unmatched("reference") and not evidence.unmatched("candidate")
    if equal == len(rows) - unknown and matched:
        left_out = f"; {unknown} have no sketch" if unknown else ""
        return Verdict("same", f"all {equal} values are equal as far as sketches tell{left_out}")
    return _rounding(evidence, equal)


def _rounding(evidence: Evidence, equal: int) -> Verdict:
    rows = [row for row in evidence.rows if row.status not in ("equal", "unknown")]
    farthest = max(rows, key=lambda row: row.distance or 0.0, default=None)
    facts = [f"{equal} of {len(evidence.rows)} values are equal, {len(rows)} differ by rounding"]
    if farthest is not None and farthest.distance is not None:
        facts.append(
            f"furthest apart is {farthest.name}: {farthest.distance:.3g}, relative to its norm"
        )
    if any(evidence.accuracies.values()):
        facts.append(replay_findings.checked(evidence))
        how = "every operator that was replayed is right"
    else:
        how = "no value differs by more than its inputs and rounding explain"
    return Verdict("rounding only", f"the runs differ by rounding: {how}", tuple(facts))
