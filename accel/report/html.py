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

from accel.report.markup import Markup, element, escaped, joined, number
from accel.report.style import SCRIPT, STYLE


def page(title: str, body: Iterable[object], *, subtitle: str | None = None) -> str:
    """A whole HTML document.

    Args:
        title: The heading and the browser's title.
        body: Parts: `Markup` as it is, anything else escaped as a paragraph.
        subtitle: A line under the heading.

    Returns:
        The document, which loads nothing from anywhere.
    """
    parts = [part if isinstance(part, Markup) else paragraph(part) for part in body]
    head = element("h1", title) + (element("p", subtitle, class_="subtitle") if subtitle else "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><header>{head}</header>\n{joined(parts)}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def section(heading: str, *body: object) -> Markup:
    """A headed section; parts that are not `Markup` become paragraphs."""
    parts = [part if isinstance(part, Markup) else paragraph(part) for part in body]
    return Markup(element("section", element("h2", heading), *parts) + "\n")


def paragraph(text: object) -> Markup:
    """One paragraph of text."""
    return element("p", text)


def verdict(sentence: str, *, good: bool) -> Markup:
    """The page's main statement, in a box with a mark that does not rely on colour alone."""
    mark = element("span", "✓" if good else "✗", class_="mark", aria_hidden="true")
    return element("div", mark, element("span", sentence), class_=f"verdict {_kind(good)}")


def badge(text: object, *, good: bool | None = None) -> Markup:
    """A small label: good, bad, or (None) neutral."""
    return element("span", text, class_=f"badge {_kind(good)}")


def definitions(items: Mapping[str, object]) -> Markup:
    """A list of names and values, such as an environment."""
    pairs = (element("dt", name) + element("dd", number(value)) for name, value in items.items())
    return element("dl", joined(Markup(pair) for pair in pairs))


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    sortable: bool = False,
    bad: Callable[[Sequence[object]], bool] | None = None,
) -> Markup:
    """A table.

    Args:
        headers: One name per column.
        rows: One value per column: numbers are right-aligned, and floats shown with three digits;
            None shows as a dash; `Markup` goes in as it is.
        sortable: A click on a heading sorts by it (numbers by value); needs no network.
        bad: Tells which rows to mark.
    """
    kept = list(rows)
    body = (
        element("tr", *(_cell(value) for value in row), class_="bad" if bad and bad(row) else None)
        for row in kept
    )
    head = element("tr", *(_heading(name, i, kept) for i, name in enumerate(headers)))
    inner = element("thead", head) + element("tbody", joined(body))
    kind = "sortable" if sortable else None
    return element("div", element("table", Markup(inner), class_=kind), class_="scroll")


def _heading(name: str, column: int, rows: Sequence[Sequence[object]]) -> Markup:
    numeric = any(_is_number(row[column]) for row in rows)
    return element("th", name, scope="col", class_="number" if numeric else None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: object) -> Markup:
    if _is_number(value):
        return element("td", number(value), class_="number", data_sort=repr(value))
    return element("td", value if isinstance(value, Markup) else number(value))


def _kind(good: bool | None) -> str:
    return "neutral" if good is None else ("good" if good else "bad")
