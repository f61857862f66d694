"""Sections of the page, each with its anchor and heading; those without content are left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from accel.convert.finding import TreeResult
from accel.convert.pages.rows import Rows, Section, section
from accel.convert.pages.runs import Trace
from accel.convert.pages.summary import Group, Place, Summary
from accel.convert.pages.text import HOW_TO_REPORT
from accel.convert.pages.words import ACTIONS, count, percent, sentence
from accel.report import Markup, html
from accel.report.markup import breakable, element, joined

_PLACES = 60  # of a group; the table has all
_REASONS = 3  # of a group; every finding of the table has its own
_OPEN = 6  # groups of a section that are open at first, if there are no more


class _Count(NamedTuple):
    """Findings of one file, by action."""

    convert: int
    flag: int
    keep: int


def grouped(anchor: str, heading: str, groups: Sequence[Group], rows: Rows) -> Section | None:
    """Groups of findings, each with its advice and links to its places."""
    if not groups:
        return None
    shown = (_group(one, rows, is_open=len(groups) <= _OPEN) for one in groups)
    return section(anchor, heading, *shown)


def blockers(summary: Summary, rows: Rows) -> Section:
    """What stands against a move; all of it open, for nothing matters more."""
    shown = [_group(one, rows, is_open=True) for one in summary.blockers]
    conflicts = [html.listing(summary.conflicts)] if summary.conflicts else []
    body: list[object] = [*conflicts, *shown]
    return section("blockers", "Blockers", *(body or ["None."]))


def _group(group: Group, rows: Rows, *, is_open: bool) -> Markup:
    title = joined(
        (
            element("strong", breakable(group.subject)),
            f" {count(len(group.places), 'place')} ",
            element("span", ", ".join(group.rules), class_="note"),
        )
    )
    reasons = [element("p", sentence(one), class_="note") for one in group.reasons[:_REASONS]]
    return html.disclosure(
        title, *reasons, *group.advice, places(group.places, rows), *_named_at(group),
        is_open=is_open,
    )  # fmt: skip


def _named_at(group: Group) -> list[Markup]:
    if not group.named_at:
        return []
    lines = [element("li", element("code", breakable(one))) for one in group.named_at[:_PLACES]]
    return [
        element("p", "Named in Python at:", class_="note"),
        element("ul", joined(lines), class_="places"),
    ]


def places(found: Sequence[Place], rows: Rows) -> Markup:
    """Links to findings."""
    links = [rows.link(one) for one in found[:_PLACES]]
    if len(found) > _PLACES:
        links.append(Markup(f"and {len(found) - _PLACES:,} more in the table"))
    return element("ul", joined(element("li", link) for link in links), class_="places")


def missing(summary: Summary) -> list[Section]:
    """Tokens that no rule accounts for."""
    if not summary.missing:
        return []
    found = [(one.path, one.entry.line, one.entry.token, one.entry.kind) for one in summary.missing]
    table = html.table(("file", "line", "token", "kind"), found, bad=lambda row: True,
                       caption="Tokens that no rule accounts for")  # fmt: skip
    heading = "A bug of the converter: tokens not accounted for"
    return [section("missing", heading, HOW_TO_REPORT, table)]


def unread(summary: Summary) -> list[Section]:
    """Files that stay as they are."""
    if not summary.unread:
        return []
    table = html.table(("file", "why"), summary.unread, caption="Files that were not read")
    return [section("unread", "Files not read or parsed", table)]


def elsewhere(summary: Summary, rows: Rows) -> list[Section | None]:
    """Files that are not Python, by language."""
    return [
        grouped(f"other-{number}", f"Other files: {language}", groups, rows)
        for number, (language, groups) in enumerate(summary.elsewhere.items())
    ]


def traced(trace: Trace, rows: Rows) -> list[Section]:
    """What a run of the program saw."""
    body: list[object] = [trace.sentence]
    if trace.unseen:
        found = [
            (
                one.path, one.line or None, one.name, one.given or None, one.package or None,
                one.times,
            )
            for one in trace.unseen
        ]  # fmt: skip
        headers = ("file", "line", "called", "given", "package", "times")
        body.append(html.table(headers, found, sortable=True, caption="Calls without a finding"))
    if trace.idle:
        body.append(
            html.disclosure(
                f"{count(len(trace.idle), 'site')} of {trace.sites:,} at which no call was logged",
                places(trace.idle, rows),
            )
        )
    return [section("traced", "Seen as the program ran", *body)]


def ledger(summary: Summary) -> Section:
    """Tokens by what became of them."""
    whole = sum(summary.tokens.values())
    rows = [
        (ACTIONS.get(action, "missing: a bug"), number, percent(number, whole) if number else None)
        for action, number in summary.tokens.items()
    ]
    said = (
        "A tokenizer of its own counts every token that names CUDA or a package of it; each must "
        "be accounted for."
    )
    table = html.table(
        ("tokens", "count", "share"), rows, row_headings=True, caption="Ledger",
        bad=lambda row: str(row[0]).startswith("missing") and bool(row[1]),
    )  # fmt: skip
    return section("ledger", "Ledger", said, table)


def files(tree: TreeResult) -> list[Section]:
    """Every file with findings."""
    counted = []
    for file in tree.files:
        actions = [one.action for one in file.findings]
        if actions:
            numbers = _Count(*(actions.count(name) for name in ("convert", "flag", "keep")))
            counted.append((file.path, file.language, file.lines, *numbers))
    if not counted:
        return []
    headers = ("file", "language", "lines", *(ACTIONS[name] for name in _Count._fields))
    table = html.table(headers, counted, sortable=True, row_headings=True, caption="Files")
    said = html.disclosure(count(len(counted), "file"), table, is_open=len(counted) <= 40)
    return [section("files", "Files with findings", said)]


def omitted(summary: Summary) -> list[Section]:
    """What nobody looked into."""
    if not summary.omitted:
        return []
    table = html.table(("path", "why"), summary.omitted, caption="Left out")
    title = count(len(summary.omitted), "path")
    return [section("omitted", "Left out of this run", html.disclosure(title, table))]
