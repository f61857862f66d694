"""The top of the page: the verdict, what it rests on, how much agrees, what to do next."""

from __future__ import annotations

from accel.numerics.comparing.comparison import Comparison, Kind, Verdict
from accel.numerics.pages.words import link_to, tone_of_status, words_of_status
from accel.report import Markup, html
from accel.report.html import Tone
from accel.report.markup import element, joined

_TONES: dict[Kind, Tone] = {
    "same": "good",
    "rounding only": "good",
    "different switch": "warn",
    "faulty operator": "bad",
    "different weight/input": "warn",
    "different program": "warn",
    "cannot decide": "neutral",
}
_MOST_FINDINGS = 20


def tone_of_kind(kind: Kind) -> Tone:
    """The colour of a verdict."""
    return _TONES[kind]


def headline(comparison: Comparison) -> Markup:
    """The verdict with its evidence, and the first divergence where that is another place."""
    verdict = comparison.verdict
    body = [_place(comparison, verdict)]
    if verdict.evidence:
        body.append(html.listing(verdict.evidence))
    return html.headline(
        verdict.kind, _capital(verdict.sentence), *body, tone=tone_of_kind(verdict.kind)
    )


def _capital(sentence: str) -> str:
    # Names that begin a sentence, such as `forward:head/addmm#0`, are not changed.
    first = sentence.split(" ", 1)[0]
    plain = first.isalpha()
    ended = sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
    return ended[:1].upper() + ended[1:] if plain else ended


def _place(comparison: Comparison, verdict: Verdict) -> Markup:
    facts: dict[str, object] = {}
    if verdict.operator is not None:
        facts["operator"] = linked(comparison, str(verdict.operator))
    if verdict.place is not None:
        facts["source line"] = element("code", verdict.place)
    if verdict.run is not None:
        facts["in the"] = f"{verdict.run} ({getattr(comparison, verdict.run)})"
    first = comparison.divergence
    if first is not None and not first.startswith(str(verdict.operator)):
        facts["first divergence"] = linked(comparison, first)
        place = comparison.row(first).place
        if place is not None and place != verdict.place:
            facts["its source line"] = element("code", place)
    return html.definitions(facts) if facts else Markup("")


def linked(comparison: Comparison, name: str) -> Markup:
    """An operator's or row's name, linked to its row of the table if it has one."""
    found = (i for i, row in enumerate(comparison.rows) if name in (row.name, str(row.key)))
    position = next(found, None)
    link = None if position is None else link_to(position)
    code = element("code", name)
    return code if link is None else element("a", code, href=link)


def other_findings(comparison: Comparison) -> list[Markup]:
    """Everything else that was found."""
    others = comparison.findings[1:]
    if not others:
        return []
    shown = [_finding(comparison, one) for one in others[:_MOST_FINDINGS]]
    if len(others) > len(shown):
        shown.append(html.paragraph(f"{len(others) - len(shown)} more are in the JSON."))
    return [html.section("Also found", *shown, anchor="also")]


def _finding(comparison: Comparison, verdict: Verdict) -> Markup:
    mark = html.label(verdict.kind, tone_of_kind(verdict.kind))
    parts = [element("summary", mark, " ", _capital(verdict.sentence)), _place(comparison, verdict)]
    return element("details", *parts, html.listing(verdict.evidence) if verdict.evidence else "")


def figures(comparison: Comparison) -> Markup:
    """How many values there are of each status, and how many operators were replayed."""
    items: list[tuple[object, str, Tone]] = [
        (count, words_of_status(status), tone_of_status(status) if count else "neutral")
        for status in ("equal", "rounding", "carried", "diverges", "unknown")
        for count in (comparison.count(status),)
        if count or status in ("equal", "diverges")
    ]
    for one in comparison.coverage:
        checked, unchecked = sum(one.checked.values()), sum(one.unchecked.values())
        items.append((f"{checked} / {checked + unchecked}", f"replayed, {one.run}", "neutral"))
    if comparison.unmatched:
        items.append((len(comparison.unmatched), "operators without counterpart", "warn"))
    return html.figures(items)


def zoom(comparison: Comparison) -> list[Markup]:
    """What to record next, if elements are needed."""
    if not comparison.zoom:
        return []
    boxes = joined(html.copyable(one, name="the command") for one in comparison.zoom)
    said = (
        "The sketches name the window. Record it with all elements, then compare the new "
        "recordings:"
    )
    return [html.section("Next: record the flagged window in full", said, boxes, anchor="zoom")]
