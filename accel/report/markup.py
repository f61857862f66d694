"""HTML and SVG text that is known to be safe, and the one place that escapes everything else."""

from __future__ import annotations

import html
import math
import re


class Markup(str):
    """Text that is markup already; whatever is not is escaped before it enters a page."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """`value` as text that is safe between tags and inside quoted attributes.

    Control characters, which neither HTML nor XML can carry, become U+FFFD, and so do those that
    turn the direction of the text around them: a name must not reorder the sentence it is in.
    """
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(str(value).translate(_UNSAFE), quote=True))


_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}
_DIRECTIONS = {0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_SURROGATES = range(0xD800, 0xE000)  # halves of pairs cannot be encoded
_UNSAFE = dict.fromkeys({*_CONTROLS, *_DIRECTIONS, *_SURROGATES, 0xFFFE, 0xFFFF}, "\ufffd")


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One element.

    Args:
        tag: Its name; trusted.
        *children: Text (escaped) or `Markup` (as it is).
        **attributes: Values are escaped. `class_` means `class`, other underscores mean hyphens; a
            value of None leaves the attribute out.
    """
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    text = "".join(f' {k}="{escaped(v)}"' for k, v in names.items() if v is not None)
    return Markup(f"<{tag}{text}>{joined(children)}</{tag}>")


def void(tag: str, **attributes: object) -> Markup:
    """One element that has no end tag, such as `input`; see `element`."""
    return Markup(element(tag, **attributes).removesuffix(f"</{tag}>"))


def joined(parts: object) -> Markup:
    """Concatenate an iterable of text (escaped) and `Markup` (as it is)."""
    return Markup("".join(escaped(part) for part in parts))  # type: ignore[attr-defined]


_BREAKS = re.compile(r"(?<=[/._:])(?=[^/._:])")


def breakable(name: object) -> Markup:
    """A long name, such as a path, that may be broken after its separators."""
    if isinstance(name, Markup):
        return name
    return Markup("<wbr>".join(map(escaped, _BREAKS.split(str(name)))))


def number(value: object) -> str:
    """A cell's value for people: floats with three digits, None as a dash, the rest as it is."""
    if value is None:
        return "-"
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.3g}" if math.isfinite(value) else str(value)
    return str(value)
