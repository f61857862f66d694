"""What opens under one value: circumstances, isolated errors, histogram, worst elements."""

from __future__ import annotations

from itertools import starmap

from accel.numerics.comparing.comparison import (
    Accuracy,
    Comparison,
    Decomposition,
    Row,
)
from accel.numerics.comparing.wording import number_of
from accel.numerics.pages.elements import histogram_of, table_of
from accel.numerics.pages.words import percent, tone_of_status
from accel.report import Markup, html
from accel.report.html import Tone
from accel.report.markup import element, joined, number

_VERDICTS: dict[str, Tone] = {"right": "good", "faulty": "bad", "unchecked": "neutral",
                               "known inaccurate": "warn"}  # fmt: skip


def details(comparison: Comparison, row: Row, *, is_rich: bool = True) -> Markup:
    """The drill-down of one row.

    Args:
        comparison: What the row is of.
        row: The row.
        is_rich: Whether to draw tables and a histogram; thousands of them make a page heavy.
    """
    if not is_rich:
        said = (
            {"given": ", ".join(starmap(_given_in_words, row.arguments))} if row.arguments else {}
        )
        return html.definitions({**_facts(row), **said, **_in_words(row)})
    parts = [html.definitions(_facts(row)), *_given(row), *_accuracies(row)]
    parts += [histogram_of(row.histogram)] if row.histogram else []
    parts += _elements(comparison, row)
    return joined(parts)


def _facts(row: Row) -> dict[str, object]:
    left, right = row.dtypes
    dtype = left if left == right else f"{left} in the reference, {right} in the candidate"
    module = row.module or "(the model itself)"
    facts: dict[str, object] = {
        "status": html.label(row.status, tone_of_status(row.status)),
        "source line": "not known" if row.place is None else element("code", row.place),
        "module": f"{module} ({row.module_class})" if row.module_class else module,
        "output": f"{dtype} {list(row.shape)}",
        "aligned by": row.aligned,
        "output error": _distances(row),
    }
    if row.decomposition is not None:
        facts["made up of"] = _parts(row.decomposition)
    if row.masks is not None:
        facts["non-finite"] = f"reference {row.masks[0]}; candidate {row.masks[1]}"
    if row.contribution is not None:
        facts["adds to the loss"] = row.contribution
    return facts


def _distances(row: Row) -> str:
    if row.distance is None:
        return "not known: one of the runs has neither sketch nor elements"
    said = f"candidate and reference are apart by {number(row.distance)} (relative L2)"
    if row.input_distance is not None:
        said += f", their inputs by {number(row.input_distance)}"
    if row.expected is not None:
        said += f"; inputs and rounding explain {number(row.expected)}"
    return said


def _parts(found: Decomposition) -> str:
    return (
        f"{number(found.candidate)} the candidate's own error, {number(found.inputs)} came with "
        f"the inputs, {number(found.reference)} the reference's own error"
    )


def _given_in_words(name: str, reference: str, candidate: str) -> str:
    if reference == candidate:
        return f"{name} {reference}"
    return f"{name} {reference} in the reference, {candidate} in the candidate"


def _given(row: Row) -> list[Markup]:
    """The arguments; in one column where both runs have the same."""
    if not row.arguments:
        return []
    if all(reference == candidate for _, reference, candidate in row.arguments):
        same = [(name, text) for name, text, _ in row.arguments]
        return [html.table(("given", "in both runs"), same, row_headings=True,
                           caption="What it was given")]  # fmt: skip
    headers = ("given", "reference", "candidate")
    return [html.table(headers, row.arguments, row_headings=True, caption="What it was given",
                       bad=lambda cells: cells[1] != cells[2])]  # fmt: skip


def _in_words(row: Row) -> dict[str, object]:
    """The isolated errors of both runs, a line each."""
    said: dict[str, object] = {}
    for name, one in (("reference", row.reference), ("candidate", row.candidate)):
        if one is not None:
            parts = [
                one.verdict,
                *(f"{what} {number(value)} (limit {number(most)})" for what, value, most in (
                    ("R", one.rms, one.limit_rms), ("M", one.worst, one.limit_worst),
                ) if value is not None),
                *([f"own error {number(one.error)}"] if one.error is not None else []),
                *([f"{number(one.accumulated)} u from float64"] if one.accumulated is not None
                  else []),
                *([one.reason] if one.reason else []),
            ]  # fmt: skip
            said[f"replay, {name}"] = ", ".join(parts)
    return said


def _accuracies(row: Row) -> list[Markup]:
    known = [(name, one) for name, one in (
        ("reference", row.reference), ("candidate", row.candidate)) if one is not None]  # fmt: skip
    if not known:
        return []
    headers = ["run", "float64 replay", "R", "limit", "M", "limit", "misrounded", "own error"]
    chained = any(one.accumulated is not None for _, one in known)
    headers += ["from float64, in u"] if chained else []
    headers += ["reason"]
    return [html.table(headers, [_accuracy(name, one, chained) for name, one in known],
                       caption="Isolated errors of both runs", row_headings=True)]  # fmt: skip


def _accuracy(name: str, one: Accuracy, chained: bool) -> list[object]:
    reason = one.reason
    if one.instance is not None:
        reason = f"{reason} (replayed at {one.instance}, of the same signature)".strip()
    return [
        name,
        html.label(one.verdict, _VERDICTS[one.verdict]),
        one.rms,
        one.limit_rms,
        one.worst,
        one.limit_worst,
        percent(one.misrounding),
        one.error,
        *([one.accumulated] if chained else []),
        reason or None,
    ]


def _elements(comparison: Comparison, row: Row) -> list[Markup]:
    if not row.elements:
        return [element("p", why_no_elements(comparison, row), class_="note")]
    against = "float64" if row.elements[0].exact is not None else "the reference"
    title = f"The {number_of(len(row.elements), 'element')} furthest from {against}"
    columns = {"reference": "reference", "candidate": "candidate", "exact": "float64"}
    return [element("h4", title), table_of(row.elements, columns)]


def why_no_elements(comparison: Comparison, row: Row) -> str:
    """Why a row lists no elements."""
    if row.candidate is None and row.reference is None:
        if "full" not in comparison.levels:
            return (
                f"No elements are listed: the recordings are at {' and '.join(comparison.levels)}, "
                "which keep none. Record this operator at level full to see them."
            )
        if row.key is None:
            return "No elements are listed: only operators' outputs are replayed."
        return "No elements are listed: its elements or those of its inputs were not kept."
    accuracy = row.candidate or row.reference
    if accuracy is not None and accuracy.verdict == "unchecked":
        return f"No elements are listed: it was not replayed ({accuracy.reason})."
    if accuracy is not None and not row.histogram:
        return "No elements are listed: it was checked in the run, which keeps no elements."
    return "No elements are listed: only those of the least accurate and of flagged operators are."
