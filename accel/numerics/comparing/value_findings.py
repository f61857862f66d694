"""Findings about values that differ although nothing before explains it."""

from __future__ import annotations

from accel.numerics.comparing.comparison import Row, Verdict
from accel.numerics.comparing.environment import explaining
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.wording import ending, number_of, row_in_words

_NARROW = 2.0**-7  # more than rounding to any narrower mantissa of float32 changes a tensor


def first(evidence: Evidence) -> Row | None:
    """The first value that diverges, but for those where replay shows that both runs are right."""
    diverging = (row for row in evidence.rows if row.status == "diverges")
    return next((row for row in diverging if not _is_right(row)), None)


def finding(evidence: Evidence, row: Row) -> Verdict:
    """What can be said of the first value that diverges."""
    count = sum(one.status == "diverges" for one in evidence.rows)
    return _switch(evidence, row) or _undecided(evidence, row, count)


def _is_right(row: Row) -> bool:
    """Whether both runs' operators replay as right: then it is badly conditioned."""
    both = row.reference, row.candidate
    return all(one is not None and one.verdict == "right" and not one.instance for one in both)


def _switch(evidence: Evidence, row: Row) -> Verdict | None:
    """The finding that a numeric switch explains it, if one differs that could."""
    known = explaining(evidence.environment, row.op)
    small = row.distance is not None and row.distance <= _NARROW and row.masks is None
    checked = row.candidate is not None and row.candidate.verdict == "right"
    if not known or not small or checked or row.dtypes != ("float32", "float32"):
        return None
    name, (left, right) = next(iter(known.items()))
    return Verdict(
        "different switch",
        f"{row_in_words(row)} differs first, and {name} is {right} where the reference has {left}",
        (numbers(row), "no other difference was found that explains it", *_all(known)),
        row.key,
        row.place,
    )


def _all(known: dict[str, tuple[str, str]]) -> list[str]:
    return [
        f"{name}: {left} in the reference, {right} in the candidate"
        for name, (left, right) in known.items()
    ]


def _undecided(evidence: Evidence, row: Row, count: int) -> Verdict:
    whose = "its" if count == 1 else "their"
    facts = [
        numbers(row),
        f"{number_of(count, 'value')} differ{ending(count)} by more than {whose} inputs and "
        "rounding explain",
    ]
    if row.masks is not None:
        facts.append(f"its non-finite elements: {row.masks[0]}; in the candidate {row.masks[1]}")
    for run, one in (("reference", row.reference), ("candidate", row.candidate)):
        if one is not None:
            facts.append(f"the {run}'s replays as {one.verdict}{_because(one.reason)}")
    facts += _all(explaining(evidence.environment, row.op))
    need = " and ".join(f"the {run}'s" for run in evidence.lacking(row))
    cure = f": {need} elements are needed" if need else ""
    return Verdict(
        "cannot decide",
        f"{row_in_words(row)} is the first value that differs by more than its inputs and rounding "
        f"explain{cure}",
        tuple(facts),
        row.key,
        row.place,
    )


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def numbers(row: Row) -> str:
    """By how much a row differs, in words."""
    expected = "" if row.expected is None else f", expected is at most {row.expected:.3g}"
    return (
        f"{row.name} differs by {_shown(row.distance)}, its inputs by "
        f"{_shown(row.input_distance)}{expected} (relative L2)"
    )


def _shown(number: float | None) -> str:
    return "an unknown amount" if number is None else f"{number:.3g}"
