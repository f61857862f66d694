"""Words that all forms of the report share, and text made safe for a terminal."""

from __future__ import annotations

import textwrap
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from itertools import accumulate

from accel.convert.finding import Effort
from accel.convert.rules import RULES, Rule

WIDTH = 100  # columns of a text
_FAMILIES = (
    (19, "devices"),
    (29, "torch.cuda functions"),
    (39, "guards"),
    (44, "mixed precision"),
    (49, "tensor types"),
    (59, "streams, graphs, profiling"),
    (69, "distributed and environment"),
    (79, "loading, pinning, random numbers"),
    (89, "backends and compilation"),
    (99, "operators and dtypes"),
    (119, "packages and extensions"),
    (139, "files that are not Python"),
    (149, "names that stay"),
    (169, "vendor code"),
)
OPERATORS, PACKAGES = "operators and dtypes", "packages and extensions"
EFFORTS: Mapping[Effort, str] = {
    "auto": "done by the tool",
    "review": "a person looks at it",
    "rewrite": "a person writes something new",
}
ACTIONS: Mapping[str, str] = {"convert": "converted", "flag": "for a human", "keep": "kept"}
DOCUMENTS = "docs/convert-rules"


@cache
def _rules() -> Mapping[str, Rule]:
    return {rule.id: rule for rule in RULES}


def rule_of(identifier: str) -> Rule | None:
    """A rule of the table; None for a rule of the user's."""
    return _rules().get(identifier)


def title_of(identifier: str) -> str:
    """What a rule is about."""
    rule = rule_of(identifier)
    return identifier if rule is None else rule.title


def document_of(identifier: str) -> str:
    """Where a rule's page is, in the repository."""
    return f"{DOCUMENTS}/{identifier}.md"


def family_of(identifier: str) -> str:
    """The family that a rule belongs to, by its number."""
    digits = identifier.removeprefix("ACC")
    if digits == identifier or not digits.isdecimal():
        return "your own rules"
    return next((name for last, name in _FAMILIES if int(digits) <= last), "others")


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def percent(part: int, whole: int) -> str:
    """A share; never rounded up to all, nor down to nothing; `-` of nothing."""
    if not whole:
        return "-"
    if part == whole:
        return "100 %"
    share = min(max(100.0 * part / whole, 0.1 if part else 0.0), 99.9)
    return f"{share:.1f} %"


def plain(text: str) -> str:
    """Text without what could steer a terminal: names and lines come from strangers' files."""
    shown = text.replace("\t", " ")
    return "".join(c if c.isprintable() else "\ufffd" for c in shown)


def cut(text: str, width: int) -> str:
    """Plain text in at most so many columns of a terminal."""
    shown = plain(text)
    columns = list(accumulate(_columns(character) for character in shown))
    if not columns or columns[-1] <= width:
        return shown
    return shown[: bisect_right(columns, width - 3)].rstrip() + "..."


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str, indent: str = "", *, first: str | None = None) -> list[str]:
    """Plain text as lines of at most `WIDTH` columns.

    Args:
        text: A sentence or several.
        indent: Before each line.
        first: Before the first line, if something else.
    """
    return textwrap.wrap(
        plain(text),
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def sentence(text: str) -> str:
    """Text with a full stop, if it has no end of its own."""
    return text if not text or text.endswith((".", "!", "?", ":")) else f"{text}."
