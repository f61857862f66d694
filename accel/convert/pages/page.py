"""The report as one self-contained HTML page, drawn with `accel.report`."""

from __future__ import annotations

from collections.abc import Sequence

from accel.convert.finding import TreeResult
from accel.convert.pages import page_parts as parts
from accel.convert.pages.rows import Rows, Section, section
from accel.convert.pages.runs import Trace
from accel.convert.pages.summary import Summary
from accel.convert.pages.verdict import Verdict
from accel.convert.pages.words import EFFORTS, count, percent, sentence
from accel.report import Markup, explorer, html
from accel.report.html import Tone
from accel.report.markup import element, joined

STYLE = """
main{max-width:1280px}
.note{color:var(--muted);font-size:.88rem}
.share{display:flex;height:14px;border-radius:7px;overflow:hidden;background:var(--grid);
margin:8px 0}
.share .auto{background:var(--good)}.share .review{background:var(--warn)}
.share .rewrite{background:var(--bad)}
.headline dl{margin:10px 0 4px}
details pre{background:var(--panel);padding:2px 8px;border-radius:4px}
tr.detail pre{padding:4px 8px;border:1px solid var(--line);border-radius:4px;
background:var(--back)}
.places{columns:3 260px;padding-left:1.3em}
"""
_LABELS: dict[Verdict, tuple[str, Tone]] = {
    "go": ("go", "good"),
    "go with work": ("go with work", "warn"),
    "no-go": ("no-go", "bad"),
}


def to_html(tree: TreeResult, summary: Summary, trace: Trace | None = None) -> str:
    """The page: verdict, blockers, work, groups, files, every finding.

    It loads nothing: style, script and data are inside. Text from the files is escaped.

    Args:
        tree: The run.
        summary: What it comes to.
        trace: What a traced run of the program saw, if there was one.
    """
    rows = Rows(tree)
    sections = [
        *parts.missing(summary),
        parts.blockers(summary, rows),
        _work(summary),
        *parts.unread(summary),
        parts.grouped("human", "For a human", summary.human, rows),
        parts.grouped("operators", f"Operators and dtypes with limits on the {tree.chip}",
                      summary.operators, rows),
        parts.grouped("packages", "Packages and extensions", summary.packages, rows),
        *parts.elsewhere(summary, rows),
        *(parts.traced(trace, rows) if trace else ()),
        parts.ledger(summary),
        *parts.files(tree),
        *rows.section(),
        *parts.omitted(summary),
    ]  # fmt: skip
    shown = [one for one in sections if one is not None]
    links = html.contents({one.anchor: one.heading for one in shown})
    top = [links, _headline(tree, summary), _figures(summary)]
    return html.page(
        "Migration report",
        [*top, *(one.markup for one in shown)],
        subtitle=", ".join(tree.roots),
        style=explorer.STYLE + STYLE,
        script=explorer.SCRIPT,
    )


def _headline(tree: TreeResult, summary: Summary) -> Markup:
    word, tone = _LABELS[summary.verdict]
    kinds = ", ".join(f"{number:,} {language}" for language, number in summary.files.items())
    facts: dict[str, object] = {
        "files": f"{sum(summary.files.values()):,} ({kinds})" if kinds else "none",
        "lines": f"{summary.lines:,}",
        "target": tree.target,
        "chip": tree.chip,
    }
    said = sentence(summary.sentence)
    return html.headline(
        word, said if word == "no-go" else said[:1].upper() + said[1:],
        html.definitions(facts), tone=tone,
    )  # fmt: skip


def _figures(summary: Summary) -> Markup:
    blocking = sum(len(one.places) for one in summary.blockers)
    items: list[tuple[object, str, Tone]] = [
        (f"{summary.sites:,}", "sites", "neutral"),
        (summary.share, "of them convert by themselves", "good"),
        (f"{summary.actions['flag']:,}", "for a human", _bad_if(summary.actions["flag"], "warn")),
        (f"{blocking:,}", "at blockers", _bad_if(blocking, "bad")),
        (f"{summary.actions['keep'] - summary.switched_off:,}", "right as they are, kept",
         "neutral"),
        *_switched_off(summary),
        (f"{len(summary.unread):,}", "files not read", _bad_if(len(summary.unread), "bad")),
        (f"{len(summary.missing):,}", "tokens nobody accounts for",
         _bad_if(len(summary.missing), "bad")),
    ]  # fmt: skip
    return html.figures(items)


def _switched_off(summary: Summary) -> list[tuple[object, str, Tone]]:
    number = summary.switched_off
    return [(f"{number:,}", "switched off in this run", "warn")] if number else []


def _bad_if(number: int, tone: Tone) -> Tone:
    return tone if number else "good"


def _work(summary: Summary) -> Section:
    rows = [
        (one.effort, EFFORTS[one.effort], one.sites, one.lines, one.files) for one in summary.work
    ]
    headers = ("class", "meaning", "sites", "lines", "files")
    table = html.table(headers, rows, row_headings=True, caption="Work by effort")
    return section("work", "Work", _share(summary), table)


def _share(summary: Summary) -> Markup:
    whole = sum(one.sites for one in summary.work)
    bars: Sequence[Markup] = [
        element("span", class_=one.effort, style=f"width:{100 * one.sites / max(1, whole):.2f}%")
        for one in summary.work
        if one.sites
    ]
    said = ", ".join(
        f"{count(one.sites, 'site')} {one.effort} ({percent(one.sites, whole)})"
        for one in summary.work
        if one.sites
    )
    label = said or "no sites"
    bar = element("div", joined(bars), class_="share", role="img", aria_label=label)
    return Markup(bar + element("p", f"{label}.", class_="note"))
