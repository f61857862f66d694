"""Code cells as one Python text, with IPython's own lines masked, and back again."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from accel.convert.finding import Span

# Cell magics whose cell is Python all the same.
_PYTHON = frozenset({"time", "timeit", "capture", "prun", "python", "python3", "debug"})
_SHELL = frozenset({"bash", "sh", "script", "system", "sx", "!"})
_MAGIC = re.compile(r"(\s*)([!%?]|[\w., \t]+?=\s*[!%](?=\w))")
_HELP = re.compile(r"\s*[\w.]+\?{1,2}\s*")


@dataclass
class Code:
    """One code cell.

    Attributes:
        number: From 1, among all cells.
        text: Its source.
        kind: `python`, `shell`, or `other` for cells in another language.
        masked: Python text with a placeholder for each line of IPython's.
        magics: Those lines, as they are.
        commands: Where in `text` they are, with the lines that go on with one.
        error: Why the masked text does not parse; "" if it does.
    """

    number: int
    text: str
    kind: str = "python"
    masked: str = ""
    magics: list[str] = field(default_factory=list)
    commands: list[Span] = field(default_factory=list)
    error: str = ""


def code_of(number: int, text: str) -> Code:
    """Read one code cell."""
    code = Code(number, text)
    first = re.match(r"\s*%%(\w+|!)", text)
    if first and first[1] not in _PYTHON:
        code.kind = "shell" if first[1] in _SHELL else "other"
        return code
    lines, at, continues = [], 0, False
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\r\n")
        match = _MAGIC.match(body)
        if continues or match or _HELP.fullmatch(body):
            indent = "" if continues else re.match(r"\s*", body)[0]  # type: ignore[index]
            held = "#" if continues else "pass#"
            lines.append(f"{indent}{held}{_mark(number, len(code.magics))}" + line[len(body) :])
            code.magics.append(body)
            start = code.commands.pop().start if continues else at
            code.commands.append(Span(start, at + len(body)))
            continues = body.endswith("\\")
        else:
            lines.append(line)
        at += len(line)
    code.masked = "".join(lines)
    try:
        ast.parse(code.masked)
    except (SyntaxError, ValueError, RecursionError) as error:
        code.error = str(getattr(error, "msg", "") or error)
    return code


def _mark(cell: int, index: int) -> str:
    return f"accel_magic_{cell}_{index}_"


def _head(cell: int) -> str:
    return f"#accel_cell_{cell}_\n"


def joined(codes: list[Code]) -> tuple[str, dict[int, int]]:
    """One text of all Python cells, and where in it each cell begins."""
    parts, starts, at = [], {}, 0
    for code in codes:
        head = _head(code.number)
        starts[code.number] = at + len(head)
        parts.append(head + code.masked + "\n")
        at += len(parts[-1])
    return "".join(parts), starts


def parted(text: str, codes: list[Code]) -> dict[int, str]:
    """The cells of a text that `joined` made and the engine changed, with IPython's lines back."""
    sources = {}
    # What the engine put before the first cell belongs to it.
    before, _, rest = text.partition(_head(codes[0].number))
    for code, following in zip(codes, [*codes[1:], None], strict=True):
        if following is None:
            own, rest = rest, ""
        else:
            own, _, rest = rest.partition(_head(following.number))
        own = before + own.removesuffix("\n")
        before = ""
        for index, magic in enumerate(code.magics):
            held = re.search(rf"[ \t]*(?:pass)?#{_mark(code.number, index)}", own)
            if held:
                own = own[: held.start()] + magic + own[held.end() :]
        sources[code.number] = own
    return sources
