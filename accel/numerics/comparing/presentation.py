"""A comparison as text and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from accel.numerics.comparing.comparison import STATUSES, Accuracy, Row, Status
from accel.numerics.comparing.replay_findings import numbers
from accel.numerics.comparing.wording import number_of
from accel.report import text

if TYPE_CHECKING:
    from accel.numerics.comparing.comparison import Comparison, Coverage

_REASONS = 5  # why operators were not checked
_MOST = 12  # differences of the environment
HEADERS = ("status", "value", "dtype", "distance", "of inputs", "R", "M", "loss")
_URGENT: dict[Status, int] = {"diverges": 0, "unknown": 1, "carried": 2, "rounding": 3, "equal": 4}
_WORDS: dict[Status, tuple[str, str]] = {  # of one value, of several
    "equal": ("is equal", "are equal"),
    "rounding": ("differs by rounding", "differ by rounding"),
    "carried": ("differs as its inputs do", "differ as their inputs do"),
    "diverges": ("differs by more than that", "differ by more than that"),
    "unknown": ("is not known", "are not known"),
}


def as_text(comparison: Comparison, worst: int) -> str:
    """See `Comparison.to_text`."""
    verdict = comparison.verdict
    lines = [f"{verdict.kind.capitalize()}: {verdict.sentence}"]
    if verdict.place is not None:
        lines.append(f"  at {verdict.place}")
    lines += [f"  - {fact}" for fact in verdict.evidence]
    for other in comparison.findings[1:]:
        lines.append(f"also {other.kind}: {other.sentence}")
    lines += ["", f"Step {comparison.step}: {counted(comparison)}.", *_unchecked(comparison)]
    lines += _known(comparison)
    lines += _tables(comparison, worst)
    if comparison.zoom:
        lines += ["", "To see the elements, record the flagged window in full and compare again:"]
        lines += [f"  {command}" for command in comparison.zoom]
    lines += ["", *(f"note: {note}" for note in comparison.notes)] if comparison.notes else []
    return "\n".join(lines)


def counted(comparison: Comparison) -> str:
    """How many values there are of each status, and of operators without a counterpart."""
    counts = {one: comparison.count(one) for one in STATUSES}
    shown = [
        f"{number_of(count, 'value')} {_WORDS[one][count != 1]}"
        for one, count in counts.items()
        if count
    ] or ["no value could be aligned"]
    if comparison.unmatched:
        count = len(comparison.unmatched)
        have = "has" if count == 1 else "have"
        shown.append(f"{number_of(count, 'operator')} {have} no counterpart")
    for found in comparison.coverage:
        shown.append(_covered(found))
    return ", ".join(shown)


def _covered(found: Coverage) -> str:
    """How many operators of a run were replayed, judged by another one, and not checked."""
    replayed = number_of(sum(found.checked.values()), "operator")
    parts = [f"{replayed} of the {found.run} replayed"]
    if found.by_signature:
        parts.append(f"{sum(found.by_signature.values())} judged by another of the same signature")
    parts.append(f"{sum(found.unchecked.values())} not checked")
    return ", ".join(parts)


def _unchecked(comparison: Comparison) -> list[str]:
    """Why operators were not checked, most of them first."""
    lines = []
    for found in comparison.coverage:
        counts: Counter[str] = Counter()
        for op, count in found.unchecked.items():
            counts[found.reasons.get(op, "its elements were not kept")] += count
        said = [f"{count} because {why}" for why, count in counts.most_common(_REASONS)]
        for why, count in found.nothing.items():
            have = "has" if count == 1 else "have"
            said.append(f"{count} {have} nothing to check ({why})")
        if said:
            lines.append(f"not replayed of the {found.run}: {'; '.join(said)}")
    return lines


def _known(comparison: Comparison) -> list[str]:
    """Operators of kernels that are known to be inaccurate, with the bounds they are within."""
    found: dict[tuple[str, str], str] = {}
    for row in comparison.rows:
        for run, one in (("reference", row.reference), ("candidate", row.candidate)):
            if one is not None and one.verdict == "known inaccurate" and one.instance is None:
                found.setdefault((run, str(row.key or row.name)), f"{numbers(one)}: {one.reason}")
    lines = [f"known inaccurate, {run}'s {name}: {said}" for (run, name), said in found.items()]
    more = len(lines) - _REASONS
    return lines[:_REASONS] + ([f"… and {more} more known to be inaccurate"] if more > 0 else [])


def _tables(comparison: Comparison, worst: int) -> list[str]:
    lines: list[str] = []
    if comparison.environment:
        rows = [(name, a, b) for name, (a, b) in comparison.environment.items()]
        lines += ["", text.table(("environment", "reference", "candidate"), rows[:_MOST])]
        lines += [f"… and {len(rows) - _MOST} more"] if len(rows) > _MOST else []
    shown = by_urgency(comparison.rows)[:worst]
    if shown:
        lines += ["", text.table(HEADERS, [_cells(row) for row in shown])]
    found = comparison.attribution
    if found is not None and found.contributions and worst:
        lines += ["", *_attribution(comparison, worst)]
    return lines


def by_urgency(rows: tuple[Row, ...]) -> list[Row]:
    """Rows at fault first, then those that diverge, then the furthest apart."""

    def place(row: Row) -> tuple[int, int, float]:
        faulty = any(one is not None and one.verdict == "faulty" for one in _accuracies(row))
        return (0 if faulty else 1, _URGENT[row.status], -(row.distance or 0.0))

    return sorted(rows, key=place)


def _accuracies(row: Row) -> tuple[Accuracy | None, ...]:
    return row.candidate, row.reference


def _cells(row: Row) -> tuple[object, ...]:
    left, right = row.dtypes
    accuracy = row.candidate or row.reference
    named = accuracy is not None and accuracy.verdict in ("faulty", "known inaccurate")
    return (
        accuracy.verdict if accuracy is not None and named else row.status,
        row.name,
        left if left == right else f"{left} / {right}",
        row.distance,
        row.input_distance,
        None if accuracy is None else accuracy.rms,
        None if accuracy is None else accuracy.worst,
        row.contribution,
    )


def _attribution(comparison: Comparison, worst: int) -> list[str]:
    found = comparison.attribution
    if found is None:
        return []
    actual = "unknown" if found.actual is None else f"{found.actual:.4g}"
    said = f"Loss, {found.of}: {actual} recorded, {found.predicted:.4g} predicted by operators"
    if found.linear is False:
        return [
            f"{said}: operators' own errors do not explain the difference (it has another cause, "
            "or is too large to be linear in them), so it is not attributed."
        ]
    rows = [(str(key), part) for key, part in found.contributions[:worst]]
    return [f"{said}.", text.table(("operator", "adds to the loss"), rows)]


def as_json(comparison: Comparison) -> str:
    """See `Comparison.to_json`."""
    document = {
        "ok": comparison.ok,
        "exit_status": comparison.exit_status,
        "counts": {status: comparison.count(status) for status in STATUSES},
        **asdict(comparison),
    }
    return json.dumps(plain(document), indent=1, allow_nan=False) + "\n"


def plain(value: object) -> object:
    """A value as JSON has it: keys of operators as texts, infinity and NaN as texts."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "_fields"):
        return str(value)  # Key and Place
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
