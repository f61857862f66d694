"""ACC120 to ACC123 in shell scripts: environment variables, tools, options, installations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from accel.convert.finding import Edit, Finding, Span
from accel.convert.sweep import requirements
from accel.convert.sweep.shell_words import Command, Rest, UnclearError, Word, split
from accel.convert.sweep.text import Text
from accel.convert.sweep.words import about_runtime, about_variable, about_word
from accel.convert.tables.environment import Variable, variable

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_READ = re.compile(r"\$\{?([A-Za-z_]\w*)")
# An expansion that reads a variable and does nothing else, so that it may stand twice.
_PLAIN = re.compile(r"(?:\"?)\$(?:\w+|\{\w+(?::?-[\w,]*)?\})(?:\"?)")
_LASTING = frozenset({"export", "declare", "typeset", "readonly", "local"})
_SETTERS = _LASTING | {"env"}
_INSTALLERS = frozenset(
    {"pip", "pip3", "uv", "conda", "mamba", "micromamba", "apt-get", "apt", "yum", "dnf", "poetry"}
)
_CONTAINERS = frozenset({"docker", "podman", "nerdctl", "nvidia-docker"})
_MODULES = frozenset({"module", "ml", "spack"})
_PRINTERS = frozenset({"echo", "printf", "log", "info", "warn", "die"})


def find(text: Text) -> Iterator[Finding]:
    """Everything that a script says about the platform."""
    yield from find_in(text, Span(0, len(text.chars)), converts=True)


def find_in(text: Text, span: Span, *, converts: bool) -> Iterator[Finding]:
    """The same for a part of a file.

    Args:
        text: The file.
        span: The script within it.
        converts: Whether assignments may be converted, which needs a shell that reads them.
    """
    try:
        pieces = list(split(text.chars, span))
    except UnclearError as error:
        for hit in text.hits(span):
            yield text.flag(
                hit.span, "ACC138", f"{hit.text} stands in a script that cannot be split: {error}",
                "Read this line and decide.",
            )  # fmt: skip
        return
    commands = [piece for piece in pieces if isinstance(piece, Command)]
    for index, command in enumerate(commands):
        beside = commands[max(0, index - 1) : index + 2]
        near = {name for one in beside for name in _names(one)}
        yield from _command(text, command.words, near, converts)
    for piece in pieces:
        if isinstance(piece, Rest):
            yield from _rest(text, piece)


def _names(command: Command) -> Iterator[str]:
    """The variables that a command sets."""
    for word in command.words:
        match = _ASSIGNMENT.fullmatch(word.text)
        if match:
            yield match[1]


def _rest(text: Text, piece: Rest) -> Iterator[Finding]:
    for hit in text.hits(piece.span):
        if piece.kind == "comment":
            yield text.keep(hit.span, "ACC139", "a comment; none is ever changed")
        else:
            yield text.flag(
                hit.span, "ACC138", f"{hit.text} is in a text that the script writes or feeds on",
                "Read what receives the text and decide.", subject=hit.text,
            )  # fmt: skip


def _command(
    text: Text, words: Sequence[Word], near: set[str], converts: bool
) -> Iterator[Finding]:
    head = next((word.text for word in words if not _ASSIGNMENT.fullmatch(word.text)), "")
    head = head.rpartition("/")[2].strip("\"'")
    if head == "unset":
        yield from _unset(text, words)
        return
    if _installs(words):
        yield from requirements.installed(text, words)
        return
    here = set(_names(Command(tuple(words))))
    leading = True
    for index, word in enumerate(words):
        match = _ASSIGNMENT.fullmatch(word.text)
        leading = leading and (match is not None or word.text in _SETTERS or _is_option(word.text))
        known = variable(match[1]) if match else None
        if match and known:
            sets = converts and leading and bool(head)
            # An assignment before a command holds for that one only; others for what follows.
            lasts = not sets or head in _LASTING
            twins = here | near if lasts else here
            yield _assignment(text, word, match, known, sets=sets, twins=twins)
        elif head in _PRINTERS and index and _has(text, word):
            yield text.keep(word.span, "ACC139", "a text that is printed; none is ever changed")
        elif head in _MODULES and index and _has(text, word):
            yield text.flag(
                word.span, "ACC123", f"{word.text} is loaded for CUDA",
                "On Ascend source CANN's set_env.sh instead.", subject="environment module",
            )  # fmt: skip
        elif head in _CONTAINERS and word.text.startswith("--gpus"):
            yield about_runtime(text, word.span)
        else:
            before = words[index - 1].text if index else ""
            yield from about_word(text, word.span, before, is_command=_is_head(words, index))


def _is_head(words: Sequence[Word], index: int) -> bool:
    """Whether all words before are assignments, so that this one is a command."""
    return all(_ASSIGNMENT.fullmatch(word.text) for word in words[:index])


def _is_option(word: str) -> bool:
    return re.fullmatch(r"-[a-z]", word) is not None


def _installs(words: Sequence[Word]) -> bool:
    names = {word.text.rpartition("/")[2] for word in words}
    return bool(names & _INSTALLERS) and bool(names & {"install", "add", "create"})


def _assignment(
    text: Text,
    word: Word,
    match: re.Match[str],
    known: Variable,
    *,
    sets: bool,
    twins: set[str],
) -> Finding:
    """`NAME=value`: the twin is set beside it where the value means the same there."""
    value = match[2]
    if known.kind == "twin" and known.ascend in twins:
        return text.keep(word.span, "ACC120", f"{known.ascend} is set beside it", known.name)
    if sets and _carries(known, value):
        edit = Edit(Span(word.span.end, word.span.end), (f" {known.ascend}={value}",))
        message = f"{known.ascend} is what Ascend calls {known.name}; both are set"
        return text.convert(word.span, "ACC120", message, edit, known.name)
    return about_variable(text, word.span, known, value)


def _carries(known: Variable, value: str) -> bool:
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
    if known.carries(bare):
        return True
    # A program's own variable holds indexes as well as a literal does; the vendors' would loop.
    reads = _PLAIN.fullmatch(value) and variable(_READ.findall(value + "$_")[0]) is None
    return known.kind == "twin" and known.name != "PYTORCH_CUDA_ALLOC_CONF" and bool(reads)


def _unset(text: Text, words: Sequence[Word]) -> Iterator[Finding]:
    names = {word.text for word in words}
    for word in words:
        known = variable(word.text)
        if known is None:
            yield from about_word(text, word.span)
        elif known.kind != "twin":
            yield about_variable(text, word.span, known, "")
        elif known.ascend in names:
            yield text.keep(word.span, "ACC120", f"{known.ascend} is unset beside it", known.name)
        else:
            edit = Edit(Span(word.span.end, word.span.end), (f" {known.ascend}",))
            message = f"{known.ascend} is what Ascend calls {known.name}; both are unset"
            yield text.convert(word.span, "ACC120", message, edit, known.name)


def _has(text: Text, word: Word) -> bool:
    return next(text.hits(word.span), None) is not None
