"""Checking the fields of a JSON object that nobody vouches for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

LARGEST = 2**62  # ids, sizes, counts
DEEPEST = 32  # nesting of lists among arguments
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGEST_SCALAR = 2**64  # a seed has 64 bits
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_T = TypeVar("_T")


def object_of(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` is.

    Raises:
        ValueError: It is none, or it says something twice, or a number that JSON has no word for.
    """
    try:
        found = _DECODER.decode(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is expected, got {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {shown(twice)} twice")
    return found


def _refused(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refused)


def shown(value: object) -> str:
    """What was found, in an error's words: at most 80 characters on one line."""
    if isinstance(value, int) and not -(2**128) < value < 2**128:
        return f"a number of {value.bit_length()} bits"  # its digits may take hours
    text = repr(value) if not isinstance(value, (dict, list)) else _shown_container(value)
    return ascii(text)[1:-1] if len(text) <= 80 else f"{ascii(text[:80])[1:-1]}…"


def _shown_container(value: dict[str, Any] | list[Any]) -> str:
    try:
        return json.dumps(value)[:81]
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} of {len(value)}"


def integer(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A number from 0 to below 2**62."""
    value = fields.get(name, default)
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"{name} must be an integer from 0 to below 2**62, got {shown(value)}")
    return value


def text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text."""
    value = fields.get(name, default)
    if type(value) is not str:
        raise ValueError(f"{name} must be text, got {shown(value)}")
    return plain_text(value)


def plain_text(value: str) -> str:
    """The text itself, if it can be written anywhere."""
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"half a surrogate pair is no text: {shown(value)}") from None
    return value


def one_of(fields: Mapping[str, Any], name: str, allowed: tuple[_T, ...]) -> _T:
    """One of a few words."""
    value = fields.get(name)
    for word in allowed:
        if type(value) is type(word) and value == word:
            return word
    known = ", ".join(map(str, allowed))
    raise ValueError(f"{name} must be one of {known}, got {shown(value)}")


def flag(fields: Mapping[str, Any], name: str, default: bool | None = None) -> bool:
    """True or false."""
    value = fields.get(name, default)
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, got {shown(value)}")
    return value


def optional(
    fields: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], str], _T]
) -> _T | None:
    """What `read` makes of a field that may be null or left out."""
    return None if fields.get(name) is None else read(fields, name)


def digest(fields: Mapping[str, Any], name: str) -> str:
    """A SHA-256 in hexadecimal."""
    value = fields.get(name)
    if type(value) is not str or not _DIGEST.fullmatch(value):
        raise ValueError(f"{name} must be 64 hexadecimal digits, got {shown(value)}")
    return value


def sizes(fields: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A shape or an offset: at most 64 numbers."""
    value = fields.get(name)
    if type(value) is not list or len(value) > 64:
        raise ValueError(f"{name} must be a list of at most 64 sizes, got {shown(value)}")
    for size in value:
        if type(size) is not int or not 0 <= size < LARGEST:
            raise ValueError(f"{name} must hold integers from 0, got {shown(size)}")
    return tuple(value)


def mapping(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object; empty if left out."""
    value = fields.get(name, {})
    if type(value) is not dict:
        raise ValueError(f"{name} must be an object, got {shown(value)}")
    for key in value:
        plain_text(key)
    return value


def ids(fields: Mapping[str, Any], name: str) -> dict[str, int]:
    """Numbers by name."""
    value = mapping(fields, name)
    return {key: integer(value, key) for key in value}


def texts(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    """Texts by name."""
    value = mapping(fields, name)
    return {key: text(value, key) for key in value}


def listing(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A list; empty if left out."""
    value = fields.get(name, [])
    if type(value) is not list:
        raise ValueError(f"{name} must be a list, got {shown(value)}")
    return value


def scalar(value: object) -> bool | int | float | str | None:
    """A value that is no list and no object, checked."""
    if isinstance(value, float):
        if not math.isfinite(value):  # JSON's 1e999
            raise ValueError(f"a number must be finite, got {value}")
        return value
    if isinstance(value, str):
        return plain_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -_LARGEST_SCALAR < value < _LARGEST_SCALAR:
        return value
    raise ValueError(f"a number must be within 2**64, got {shown(value)}")


def plain(value: Any, depth: int = 0) -> Any:
    """Lists, objects and scalars; `{"float": "inf"}` and its like become that float."""
    if depth == DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return scalar(value)
    if len(value) == 1 and isinstance(value.get("float"), str):
        return _not_finite(value["float"])
    return {plain_text(name): plain(item, depth + 1) for name, item in value.items()}


def _not_finite(word: str) -> float:
    if word not in _NOT_FINITE:
        raise ValueError(f"float must be inf, -inf or nan, got {shown(word)}")
    return _NOT_FINITE[word]
