"""The table of every finding of the page, and links into it."""

from __future__ import annotations

from typing import NamedTuple

from accel.convert.finding import Finding, TreeResult
from accel.convert.pages.summary import Place
from accel.convert.pages.words import ACTIONS, document_of, family_of, rule_of
from accel.report import Markup, html
from accel.report.explorer import Cell, Column, Labelled, explorer
from accel.report.html import Tone
from accel.report.markup import breakable, element

MOST_ROWS = 20_000
_NAME = "finding"
_COLUMNS = (
    Column("Place", "code"),
    Column("Action", "label", has_choices=True),
    Column("Rule", "text", has_choices=True),
    Column("About", "text", has_choices=True),
    Column("Effort", "text", has_choices=True),
    Column("What and why", "text"),
    Column("Language", "text", has_choices=True, hidden=True),
    Column("Line", "code", hidden=True),
)
_TONES: dict[str, Tone] = {"convert": "good", "flag": "warn", "keep": "neutral"}


class Section(NamedTuple):
    """A section of the page."""

    anchor: str
    heading: str
    markup: Markup


def section(anchor: str, heading: str, *body: object) -> Section:
    """A section with its heading."""
    return Section(anchor, heading, html.section(heading, *body, anchor=anchor))


class Rows:
    """Every finding of a tree, in order."""

    def __init__(self, tree: TreeResult) -> None:
        self._places = [
            (file.language, Place(file.path, one)) for file in tree.files for one in file.findings
        ]
        self._numbers = {id(place.finding): i for i, (_, place) in enumerate(self._places)}

    def link(self, place: Place) -> Markup:
        """A place, linked to its row."""
        name = breakable(f"{place.path}:{place.finding.line}")
        number = self._numbers[id(place.finding)]
        if number >= MOST_ROWS:
            return element("code", name)
        return element("a", element("code", name), href=f"#{_NAME}-{number}")

    def section(self) -> list[Section]:
        """The table."""
        if not self._places:
            return []
        shown = self._places[:MOST_ROWS]
        table = explorer(
            _COLUMNS,
            [_cells(language, place) for language, place in shown],
            name=_NAME,
            caption="Every finding",
            details=[_details(place.finding) for _, place in shown],
            marked=[i for i, (_, place) in enumerate(shown) if place.finding.blocker],
        )
        said = "In the order of files. A heading sorts, a place opens its line and the advice."
        if len(self._places) > MOST_ROWS:
            said += f" The first {MOST_ROWS:,} of {len(self._places):,}; the JSON has all."
        return [section("findings", "Every finding", said, table)]


def _cells(language: str, place: Place) -> list[Cell]:
    path, one = place
    label = "blocker" if one.blocker else ACTIONS[one.action]
    return [
        f"{path}:{one.line}",
        Labelled(label, "bad" if one.blocker else _TONES[one.action]),
        one.rule,
        family_of(one.rule),
        "" if one.action == "keep" else one.effort,
        one.message,
        language,
        one.snippet,
    ]


def _details(finding: Finding) -> Markup:
    parts = [element("pre", element("code", finding.snippet))] if finding.snippet else []
    if finding.advice:
        parts.append(html.paragraph(finding.advice))
    rule = rule_of(finding.rule)
    about = f"{rule.id}: {rule.title} ({document_of(rule.id)})" if rule else finding.rule
    parts.append(element("p", about, class_="note"))
    return Markup("".join(parts))
