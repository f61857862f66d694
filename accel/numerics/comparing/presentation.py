"""A comparison as text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from accel.numerics.comparing.comparison import STATUSES, Accuracy, Row, Status
from accel.report import text

if TYPE_CHECKING:
    from accel.numerics.comparing.comparison import Comparison

_MOST = 12  # differences of the environment
HEADERS = ("status", "value", "dtype", "distance", "of inputs", "R", "M", "loss")
_URGENT: dict[Status, int] = {"diverges": 0, "unknown": 1, "carried": 2, "rounding": 3, "equal": 4}
_WORDS: dict[Status, str] = {
    "equal": "equal",
    "rounding": "differ by rounding",
    "carried": "differ as their inputs do",
    "diverges": "differ more than that",
    "unknown": "unknown",
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
    lines += ["", f"Step {comparison.step}: {counted(comparison)}."]
    lines += _tables(comparison, worst)
    if comparison.zoom:
        lines += ["", "To see the elements, record the flagged window in full and compare again:"]
        lines += [f"  {command}" for command in comparison.zoom]
    lines += ["", *(f"note: {note}" for note in comparison.notes)] if comparison.notes else []
    return "\n".join(lines)


def counted(comparison: Comparison) -> str:
    """How many values there are of each status, and of operators without a counterpart."""
    parts = [f"{comparison.count(one)} values {_WORDS[one]}" for one in STATUSES]
    shown = [part for part in parts if not part.startswith("0 ")] or ["no value could be aligned"]
    if comparison.unmatched:
        shown.append(f"{len(comparison.unmatched)} operators have no counterpart")
    for one in comparison.coverage:
        checked, unchecked = sum(one.checked.values()), sum(one.unchecked.values())
        shown.append(f"{checked} operators of the {one.run} replayed, {unchecked} not")
    return ", ".join(shown)


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
    faulty = accuracy is not None and accuracy.verdict == "faulty"
    return (
        "faulty" if faulty else row.status,
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
