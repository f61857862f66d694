"""A comparison as text and as JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from accel.numerics.judgement import Judged
from accel.report import text
from accel_kernels.budgets import Budget, Deviation

if TYPE_CHECKING:
    from accel.numerics.comparison import Comparison

HEADERS = ("", "tensor", "module", "call", "dtype", "reference", "candidate", "allowed", "used")


def row(one: Judged) -> tuple[object, ...]:
    """One line of the table of tensors, under `HEADERS`; errors are relative rms."""
    measured = one.measured
    left, right = measured.reference.dtype, measured.candidate.dtype
    error = measured.error_candidate or measured.distance
    return (
        one.status,
        f"{measured.key.phase.replace('_', ' ')} {measured.key.path}",
        measured.key.module or "(the model)",
        measured.key.call,
        left if left == right else f"{left} / {right}",
        None if measured.error_reference is None else measured.error_reference.rms,
        None if error is None else error.rms,
        None if one.allowed is None else one.allowed.rms,
        None if one.allowed is None or error is None else one.share,
    )


def by_share(entries: tuple[Judged, ...]) -> list[Judged]:
    """The tensors nearest to their budgets or beyond them first."""
    order = {"out": 0, "unchecked": 1, "within": 2, "equal": 3}
    return sorted(entries, key=lambda one: (order[one.status], -one.share))


def counts(comparison: Comparison) -> str:
    """How many tensors there are of each status, in words."""
    said = {
        "equal": "equal bit for bit",
        "within": "within budget",
        "out": "out of budget",
        "unchecked": "not checked",
    }
    parts = [f"{comparison.count(status)} {words}" for status, words in said.items()]
    parts += [f"{len(comparison.missing)} missing", f"{len(comparison.extra)} extra"]
    return ", ".join(parts)


def as_text(comparison: Comparison, worst: int) -> str:
    """See `Comparison.to_text`."""
    lines = [comparison.verdict, "", f"Tensors: {counts(comparison)}."]
    if comparison.environment:
        rows = [(name, str(a), str(b)) for name, (a, b) in comparison.environment.items()]
        lines += ["", text.table(("environment", "reference", "candidate"), rows)]
    shown = by_share(comparison.entries)[:worst]
    if shown:
        lines += ["", text.table(HEADERS, [row(one) for one in shown])]
    lines += ["", *(f"note: {note}" for note in comparison.notes)] if comparison.notes else []
    return "\n".join(lines)


def as_json(comparison: Comparison) -> str:
    """See `Comparison.to_json`. Infinity and NaN, which JSON lacks, become strings."""
    first = comparison.first_divergence
    document = {
        "ok": comparison.ok,
        "verdict": comparison.verdict,
        "reference": comparison.reference,
        "candidate": comparison.candidate,
        "first_divergence": None
        if first is None
        else {
            "module": first.module,
            "class": first.module_class,
            "where": first.where,
            "reason": first.reason,
        },
        "counts": {s: comparison.count(s) for s in ("equal", "within", "out", "unchecked")},
        "missing": [key._asdict() for key in comparison.missing],
        "extra": [key._asdict() for key in comparison.extra],
        "environment": {name: list(pair) for name, pair in comparison.environment.items()},
        "notes": list(comparison.notes),
        "entries": [_entry(one) for one in comparison.entries],
    }
    return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


def _entry(one: Judged) -> dict[str, Any]:
    measured = one.measured
    return {
        **measured.key._asdict(),
        "class": measured.reference.module_class,
        "status": one.status,
        "kind": one.kind,
        "reason": one.reason,
        "dtypes": [measured.reference.dtype, measured.candidate.dtype],
        "shape": list(measured.candidate.shape),
        "error_reference": _pair(measured.error_reference),
        "error_candidate": _pair(measured.error_candidate),
        "allowed": _pair(one.allowed),
        "distance": _pair(measured.distance),
        "programs": _pair(measured.programs),
    }


def _pair(values: Deviation | Budget | None) -> dict[str, float] | None:
    return None if values is None else {"rms": values.rms, "worst": values.worst}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
