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
# Line magics that run the Python code behind them, with the options that they take before it.
_RUNS = re.compile(
    r"(\s*)(%(?:time|timeit|prun)(?:[ \t]+-[a-zA-Z](?:[ \t]*\d+)?)*[ \t]+)(?=[^\s-])(.*)"
)
# Magics with Python code, or names of functions, in their arguments.
_TAKES = re.compile(r"%{1,2}(?:time|timeit|prun|lprun|mprun|memit|debug|snakeviz|pyinstrument)\b")
_CELL_MAGIC = re.compile(r"%%\w")
_HELP = re.compile(r"\s*[\w.]+\?{1,2}\s*")


@dataclass
class Code:
    """One code cell.

    Attributes:
        number: From 1, among all cells.
        text: Its source.
        kind: `python`, `shell`, or `other` for cells in another language.
        masked: Python text with a placeholder for each line of IPython's, or for the magic before
            the code that it runs.
        magics: What the placeholders stand for.
        commands: Where in `text` the lines without Python are, with those that go on with one.
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
    lines: list[str] = []
    at, continues = 0, False
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\r\n")
        match = _MAGIC.match(body)
        runs = None if continues else _RUNS.fullmatch(body)
        if runs and _is_simple(runs[3]):
            lines.append(
                f"{runs[1]}{_mark(number, len(code.magics))}; {runs[3]}{line[len(body) :]}"
            )
            code.magics.append(runs[2])
        elif continues or match or _HELP.fullmatch(body):
            indent = "" if continues else re.match(r"\s*", body)[0]  # type: ignore[index]
            # What comes before the first statement comes behind a magic of the whole cell.
            is_comment = continues or (not code.magics and _CELL_MAGIC.match(body) is not None)
            held = "#" if is_comment else "pass#"
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


def takes_python(command: str) -> bool:
    """Whether a line of IPython's has Python code in it, and not a command of a shell's."""
    return _TAKES.search(command.partition("!")[0]) is not None


def _is_simple(text: str) -> bool:
    """Whether a text is Python statements that may stand behind others on a line."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return False
    return not text.endswith("\\") and not any(map(_is_compound, body))


def _is_compound(node: ast.stmt) -> bool:
    return hasattr(node, "body") or hasattr(node, "cases")


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
        sources[code.number] = unmasked(code, own)
    return sources


def unmasked(code: Code, text: str) -> str:
    """A cell's text, or a line of it, with IPython's own in the place of the placeholders."""
    for index, magic in enumerate(code.magics):
        mark = _mark(code.number, index)
        held = re.search(rf"[ \t]*(?:pass)?#{mark}|{mark}; ", text)
        if held:
            text = text[: held.start()] + magic + text[held.end() :]
    return text
