"""Self-contained HTML pages: inline style, no network, light and dark, every value escaped.

A page is a title and a sequence of parts, each made by a function of this module or by `svg`:

    html.page("Run A against run B", [
        html.verdict("They agree.", good=True),
        html.section("Error against depth", svg.error_plot(series)),
        html.section("Modules", html.table(["module", "error"], rows, sortable=True)),
    ])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from accel.report.markup import Markup, breakable, element, escaped, joined, number
from accel.report.style import SCRIPT, STYLE

_LONG = 24  # characters from which a cell wraps, in a column that is wide enough to be read
Tone = Literal["good", "warn", "bad", "neutral"]


def page(
    title: str,
    body: Iterable[object],
    *,
    subtitle: str | None = None,
    style: str = "",
    script: str = "",
) -> str:
    """A whole HTML document.

    Args:
        title: The heading and the browser's title.
        body: Parts: `Markup` as it is, anything else escaped as a paragraph.
        subtitle: A line under the heading.
        style: More style rules; trusted.
        script: More script, such as `explorer.SCRIPT`; trusted.

    Returns:
        The document, which loads nothing from anywhere.
    """
    parts = [part if isinstance(part, Markup) else paragraph(part) for part in body]
    head = element("h1", title) + (element("p", subtitle, class_="subtitle") if subtitle else "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main><header>{head}</header>\n{joined(parts)}</main>"
        f"<script>{SCRIPT}{script}</script></body></html>\n"
    )


def section(heading: str, *body: object, anchor: str | None = None) -> Markup:
    """A headed section; parts that are not `Markup` become paragraphs.

    Args:
        heading: Its heading.
        *body: Its parts.
        anchor: Its id, which `contents` links to.
    """
    parts = [part if isinstance(part, Markup) else paragraph(part) for part in body]
    return Markup(element("section", element("h2", heading), *parts, id=anchor) + "\n")


def contents(sections: Mapping[str, str]) -> Markup:
    """Links to the sections of the page: their headings by their anchors."""
    links = (element("a", heading, href=f"#{anchor}") for anchor, heading in sections.items())
    return element("nav", joined(links), class_="contents", aria_label="Sections")


def paragraph(text: object) -> Markup:
    """One paragraph of text."""
    return element("p", text)


def verdict(sentence: str, *, good: bool) -> Markup:
    """The page's main statement, in a box with a mark that does not rely on colour alone."""
    mark = element("span", "✓" if good else "✗", class_="mark", aria_hidden="true")
    return element("div", mark, element("span", sentence), class_=f"verdict {_kind(good)}")


def headline(label: str, sentence: str, *body: object, tone: Tone) -> Markup:
    """The page's main statement: its kind as a coloured label, a sentence, and what it rests on.

    Args:
        label: The kind in a word or two.
        sentence: The statement.
        *body: Parts that follow inside the box.
        tone: Its colour; the label says the same in words.
    """
    mark = element("span", label, class_="label")
    return element(
        "div", element("p", mark, " ", element("strong", sentence)), *body,
        class_=f"headline {tone}", role="region", aria_label="Verdict",
    )  # fmt: skip


def label(text: object, tone: Tone) -> Markup:
    """A small coloured label."""
    return element("span", text, class_=f"badge {tone}")


def figures(items: Iterable[tuple[object, str, Tone]]) -> Markup:
    """A row of figures: number, what it counts, tone."""
    boxes = (
        element("div", element("b", number(value)), element("span", name), class_=f"figure {tone}")
        for value, name, tone in items
    )
    return element("div", joined(boxes), class_="figures")


def listing(items: Iterable[object]) -> Markup:
    """A bulleted list."""
    return element("ul", joined(element("li", item) for item in items))


def disclosure(summary: object, *body: object, is_open: bool = False) -> Markup:
    """A part of the page that opens by a click on its summary."""
    parts = [part if isinstance(part, Markup) else paragraph(part) for part in body]
    opened = "" if is_open else None
    return element("details", element("summary", summary), *parts, open=opened)


def copyable(text: str, *, name: str) -> Markup:
    """Text in a box with a button that copies it.

    Args:
        text: Such as a command.
        name: What it is, for who cannot see the box.
    """
    button = element("button", "Copy", type="button", class_="copy", aria_label=f"Copy {name}")
    code = element("code", text)
    return element("div", element("pre", code), button, class_="copyable")


def badge(text: object, *, good: bool | None = None) -> Markup:
    """A small label: good, bad, or (None) neutral."""
    return element("span", text, class_=f"badge {_kind(good)}")


def definitions(items: Mapping[str, object]) -> Markup:
    """A list of names and values, such as an environment."""
    pairs = (element("dt", name) + element("dd", _shown(value)) for name, value in items.items())
    return element("dl", joined(Markup(pair) for pair in pairs))


def _shown(value: object) -> str:
    return value if isinstance(value, Markup) else number(value)


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    sortable: bool = False,
    bad: Callable[[Sequence[object]], bool] | None = None,
    caption: str | None = None,
    row_headings: bool = False,
) -> Markup:
    """A table.

    Args:
        headers: One name per column.
        rows: One value per column: numbers are right-aligned, and floats shown with three digits;
            None shows as a dash; `Markup` goes in as it is.
        sortable: A click on a heading sorts by it (numbers by value); needs no network.
        bad: Tells which rows to mark.
        caption: What the table shows, for who cannot see the page.
        row_headings: Whether the first column names the rows.
    """
    kept = list(rows)
    numeric = [any(_is_number(row[i]) for row in kept) for i in range(len(headers))]
    body = (
        element(
            "tr", *_cells(row, numeric, sortable, row_headings),
            class_="bad" if bad and bad(row) else None,
        )
        for row in kept
    )  # fmt: skip
    head = element("tr", *map(_heading, headers, numeric))
    said = element("caption", caption) if caption else ""
    inner = said + element("thead", head) + element("tbody", joined(body))
    kind = "sortable" if sortable else None
    return element("div", element("table", Markup(inner), class_=kind), class_="scroll")


def _cells(
    row: Sequence[object], numeric: Sequence[bool], sortable: bool, has_heading: bool
) -> list[Markup]:
    cells = [
        _cell(value, is_number, sortable) for value, is_number in zip(row, numeric, strict=True)
    ]
    if has_heading and row:
        cells[0] = element("th", breakable(row[0]), scope="row")
    return cells


def _heading(name: str, is_numeric: bool) -> Markup:
    return element("th", name, scope="col", class_="number" if is_numeric else None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: object, is_numeric: bool, sortable: bool) -> Markup:
    if _is_number(value):
        key = repr(value) if sortable else None
        return element("td", number(value), class_="number", data_sort=key)
    if value is None and is_numeric:
        return element("td", number(value), class_="number")
    shown = _shown(value)
    is_long = not isinstance(value, Markup) and len(shown) > _LONG
    return element("td", shown, class_="long" if is_long else None)


def _kind(good: bool | None) -> str:
    return "neutral" if good is None else ("good" if good else "bad")
