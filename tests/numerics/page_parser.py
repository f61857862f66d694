"""Reads a page as a browser would, as far as `html.parser` goes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "input", "wbr"}


class Page(HTMLParser):
    """Fails on a tag that is not closed; collects what the page holds.

    Attributes:
        tags: In order.
        attributes: Of every tag: (tag, attributes).
        ids: Of elements.
        loads: What the page would load.
        text: All text outside of scripts and styles.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.loads: list[str] = []
        self.text = ""
        self._scripts: list[str] = []
        self._texts: list[tuple[str, str]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append(tag)
        self.attributes.append((tag, found))
        names = ("src", "href", "xlink:href", "action", "srcset", "data")
        self.loads += [found[n] for n in names if n in found and not found[n].startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self._scripts.append(data)
        elif "style" not in self.open:
            self.text += data + " "
            self._texts.append((self.open[-1] if self.open else "", data))

    @property
    def ids(self) -> list[str]:
        return [found["id"] for _, found in self.attributes if "id" in found]

    @property
    def handlers(self) -> list[str]:
        """Attributes that would run a script."""
        return [n for _, found in self.attributes for n in found if n.startswith("on")]

    @property
    def data(self) -> dict[str, Any]:
        """What the table of rows is made from."""
        found: dict[str, Any] = json.loads(self._scripts[0])
        return found

    def texts(self, tag: str) -> list[str]:
        """The texts right inside elements of one kind."""
        return [text for where, text in self._texts if where == tag]

    def of_class(self, kind: str) -> int:
        return sum(kind in found.get("class", "").split() for _, found in self.attributes)
