"""The conversion as a unified diff that `git apply` and `patch` take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from accel.convert.finding import FileResult
from accel.convert.pages.matching import Group, groups

_COLOURS = ((b"+++", b"\x1b[1m"), (b"---", b"\x1b[1m"), (b"@@", b"\x1b[36m"), (b"+", b"\x1b[32m"),
            (b"-", b"\x1b[31m"))  # fmt: skip
_RESET = b"\x1b[0m"
_STEERING = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_NO_NEWLINE = b"\\ No newline at end of file\n"


def unified(result: FileResult, name: str) -> bytes:
    """The change of one file; nothing where there is none.

    Args:
        result: The file.
        name: Its name in the diff, as seen from where the diff will be applied.
    """
    if not result.is_changed:
        return b""
    before, after = _lines(result.before), _lines(result.after)
    head = b"--- " + _quoted(f"a/{name}") + b"\n+++ " + _quoted(f"b/{name}") + b"\n"
    return head + b"".join(_hunk(group, before, after) for group in groups(before, after))


def _hunk(group: Group, before: list[bytes], after: list[bytes]) -> bytes:
    first, last = group[0], group[-1]
    old = _range(first[1], last[2])
    new = _range(first[3], last[4])
    parts = [f"@@ -{old} +{new} @@\n".encode()]
    for kind, a, b, c, d in group:
        if kind == "equal":
            parts += (b" " + line for line in before[a:b])
        else:
            parts += (b"-" + line for line in before[a:b])
            parts += (b"+" + line for line in after[c:d])
    return b"".join(part if part.endswith(b"\n") else part + b"\n" + _NO_NEWLINE for part in parts)


def _range(start: int, stop: int) -> str:
    """Lines as a hunk's head has them: from 1, and one before the place where there are none."""
    length = stop - start
    if length == 1:
        return str(start + 1)
    return f"{start + bool(length)},{length}"


def _lines(data: bytes) -> list[bytes]:
    """Lines as `patch` counts them: ended by a line feed, whatever else Python splits at."""
    lines = data.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _quoted(name: str) -> bytes:
    """A name as git writes it: in quotes, with escapes, where it holds something odd."""
    data = name.encode("utf-8", "surrogateescape")
    if not re.search(rb'[\x00-\x1f\x7f"\\]', data):
        return data + b"\t" if b" " in data else data  # the tab says where a name with blanks ends
    odd = {ord("\n"): "\\n", ord("\t"): "\\t", ord('"'): '\\"', ord("\\"): "\\\\"}
    text = "".join(odd.get(b, chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in data)
    return f'"{text}"'.encode()


def coloured(diff: bytes) -> bytes:
    """A diff for a terminal: with colours, and without what could steer the terminal."""
    return b"".join(_coloured(_lines(diff)))


def _coloured(lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        body = _STEERING.sub(b"?", line.rstrip(b"\r\n"))
        colour = next((code for start, code in _COLOURS if body.startswith(start)), b"")
        yield colour + body + (_RESET if colour else b"") + b"\n"
