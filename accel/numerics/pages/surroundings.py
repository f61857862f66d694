"""What lies around the values: environment, beginnings, coverage, ranks, steps, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from accel.numerics.comparing.comparison import (
    Comparison,
    Coverage,
    Precondition,
    RankCell,
    Unmatched,
)
from accel.numerics.comparing.wording import number_of
from accel.numerics.pages.summary import tone_of_kind
from accel.numerics.pages.words import tone_of_status
from accel.report import Markup, html
from accel.report.markup import element, joined, number

_MOST = 200


def environment(comparison: Comparison) -> Markup:
    """Versions, chip and switches that differ, and what the runs begin with and that differs."""
    body: list[object] = []
    if comparison.environment:
        rows = [(name, a, b) for name, (a, b) in comparison.environment.items()]
        body.append(html.table(("differs", "reference", "candidate"), rows, row_headings=True,
                               caption="Differences of the environment"))  # fmt: skip
    else:
        body.append("No difference in versions, chip, switches, seed or revision.")
    if comparison.preconditions:
        shown = comparison.preconditions[:_MOST]
        headers = ("begins with", "reference", "candidate", "relation", "distance", "decisive")
        body.append(element("h3", "What the runs begin with and that differs"))
        body.append(html.table(headers, [_precondition(one) for one in shown], row_headings=True,
                               caption="Differing beginnings"))  # fmt: skip
        body += _cut(len(comparison.preconditions))
    return html.section("Environment and beginnings", *body, anchor="environment")


def _precondition(one: Precondition) -> tuple[object, ...]:
    decisive = html.label("yes", "warn") if one.decisive else html.label("no", "neutral")
    name = f"{one.subject} {one.name}"
    return name, one.reference, one.candidate, one.relation or None, one.distance, decisive


def _cut(count: int) -> list[str]:
    return [f"The first {_MOST} of {count}; the JSON has all."] if count > _MOST else []


def coverage(comparison: Comparison) -> Markup:
    """How many operators were checked, not checked and missing, by kind."""
    body: list[object] = []
    for one in comparison.coverage:
        body += _of_run(one, [u for u in comparison.unmatched if u.run == one.run])
    if not comparison.coverage:
        body.append("No operator was checked by replay: no elements were kept, or replay was off.")
    body += _unmatched(comparison.unmatched)
    return html.section("Coverage", *body, anchor="coverage")


def _of_run(one: Coverage, missing: Sequence[Unmatched]) -> list[object]:
    checked, unchecked = sum(one.checked.values()), sum(one.unchecked.values())
    alike = sum(one.by_signature.values())
    lacking = Counter(unmatched.key.op for unmatched in missing)
    said = (
        f"{number_of(checked, 'operator')} replayed, {alike} judged by another of the same "
        f"signature, {unchecked} not checked, {one.unneeded} with nothing to check"
        f"{_why_nothing(one)}, {len(missing)} without a counterpart in the other run. What was not "
        "checked is not said to be right."
    )
    names = {*one.checked, *one.by_signature, *one.unchecked, *lacking}
    rows = [
        (
            op,
            one.checked.get(op, 0),
            one.by_signature.get(op, 0),
            one.unchecked.get(op, 0),
            lacking[op],
            one.reasons.get(op),
        )
        for op in sorted(names, key=lambda op: (-one.unchecked.get(op, 0), -lacking[op], op))
    ]
    headers = ("operator", "replayed", "by signature", "not checked", "no counterpart",
               "why not checked")  # fmt: skip
    table = html.table(headers, rows, sortable=True, row_headings=True,
                       caption=f"Coverage of the {one.run}")  # fmt: skip
    return [
        element("h3", f"The {one.run}"),
        _share(checked, alike + unchecked, one.unneeded),
        said,
        html.disclosure(f"By operator ({len(rows)})", table, is_open=bool(unchecked or missing)),
    ]


def _why_nothing(one: Coverage) -> str:
    said = ", ".join(f"{count}: {why}" for why, count in one.nothing.items())
    return f" ({said})" if said else ""


def _share(checked: int, unchecked: int, unneeded: int) -> Markup:
    parts = (("checked", checked), ("unchecked", unchecked), ("unneeded", unneeded))
    whole = max(1, checked + unchecked + unneeded)
    bars = (
        element("span", class_=name, style=f"width:{100 * count / whole:.2f}%")
        for name, count in parts if count
    )  # fmt: skip
    said = ", ".join(f"{count} {name}" for name, count in parts)
    return element("div", joined(bars), class_="share", role="img", aria_label=said)


def _unmatched(found: Sequence[Unmatched]) -> list[object]:
    if not found:
        return []
    rows = [
        (
            str(one.key),
            one.run,
            ", ".join(one.dtypes),
            None if one.place is None else str(one.place),
        )
        for one in found[:_MOST]
    ]
    headers = ("operator", "only in the", "dtypes", "source line")
    table = html.table(headers, rows, sortable=True, row_headings=True,
                       caption="Operators without a counterpart")  # fmt: skip
    title = f"Operators without a counterpart ({len(found)})"
    return [html.disclosure(title, *_cut(len(found)), table)]


def ranks(comparison: Comparison) -> list[Markup]:
    """Every rank of the reference against every rank of the candidate."""
    if not comparison.ranks:
        return []
    ours = sorted({cell.reference for cell in comparison.ranks})
    theirs = sorted({cell.candidate for cell in comparison.ranks})
    cells = {(cell.reference, cell.candidate): cell for cell in comparison.ranks}
    headers = ("reference \\ candidate", *(f"rank {rank}" for rank in theirs))
    rows = [
        (f"rank {a}", *(_rank(cells.get((a, b))) for b in theirs)) for a in ours
    ]  # fmt: skip
    table = html.table(headers, rows, row_headings=True, caption="Ranks against ranks")
    said = (
        "Distances are the largest relative L2 distances: of the values for equal ranks, of the "
        "inputs for all. Inputs that are equal away from the diagonal are swapped ranks."
    )
    return [html.section("Ranks", said, table, anchor="ranks")]


def _rank(cell: RankCell | None) -> Markup | None:
    if cell is None:
        return None
    parts: list[object] = []
    if cell.reference == cell.candidate:
        parts += [html.label(cell.status, tone_of_status(cell.status))]
    if cell.values is not None:
        parts += [element("div", f"values {number(cell.values)}")]
    if cell.inputs is not None:
        is_swapped = cell.inputs == 0.0 and cell.reference != cell.candidate
        same = element("strong", "same inputs") if is_swapped else f"inputs {number(cell.inputs)}"
        parts += [element("div", same)]
    if cell.first is not None:
        parts += [element("div", "first: ", element("code", cell.first))]
    return joined(parts) if parts else None


def steps(comparison: Comparison) -> list[Markup]:
    """The finding of every step, if there are several."""
    if len(comparison.steps) < 2:
        return []
    rows = [
        (one.step, html.label(one.kind, tone_of_kind(one.kind)), one.sentence)
        for one in comparison.steps
    ]
    table = html.table(("step", "finding", "sentence"), rows, caption="Steps",
                       bad=lambda row: row[0] == comparison.step and not comparison.ok)  # fmt: skip
    said = f"The verdict and everything on this page are of step {comparison.step}."
    return [html.section("Steps", said, table, anchor="steps")]


def notes(comparison: Comparison) -> list[Markup]:
    """What else should be known."""
    if not comparison.notes:
        return []
    return [html.section("Notes", html.listing(comparison.notes), anchor="notes")]
