"""ACC123 and ACC126: packages that are installed or required, by requirement files and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from accel.convert.finding import Finding, Span
from accel.convert.sweep.shell_words import Word
from accel.convert.sweep.text import Text
from accel.convert.sweep.words import about_word
from accel.convert.tables.packages import Package, distribution

# `name[extra]==1.0`, `- conda-forge::name=1.0`, `"name>=1"` in a list, `name = "^1.0"` in Poetry.
_ENTRY = re.compile(
    r"""\s*(?:-\s+)?["']?(?:[\w.-]+::)?(?P<name>[A-Za-z0-9][\w.-]*)(?P<rest>\s*(?:\[[\w,\s-]*\])?\s*
    (?:[=<>!~^@;,"'].*|$))""",
    re.VERBOSE,
)
_QUOTED = re.compile(r"""["']([A-Za-z0-9][\w.-]*)(\[[\w,\s-]*\])?\s*(?:[=<>!~;@][^"']*)?["']""")
_CUDA_BUILD = re.compile(r"\+cu\d{2,3}\b|/whl/cu\d{2,3}\b|=\*?cuda|_cuda\w*$|\bcu1[12]\d\b")


def find(text: Text) -> Iterator[Finding]:
    """Every line of a requirement file, an environment file or a project's metadata."""
    is_structured = not text.path.lower().endswith((".txt", ".in"))
    for _, span in text.lines():
        line = text.get(span)
        at = _comment(line)
        if at is not None:
            rest = Span(span.start + at, span.end)
            for hit in text.hits(rest):
                yield text.keep(hit.span, "ACC139", "a comment; none is ever changed")
            span = Span(span.start, rest.start)
        yield from _line(text, span, is_structured=is_structured)


def installed(text: Text, words: Sequence[Word]) -> Iterator[Finding]:
    """The packages that an installing command names."""
    for index, word in enumerate(words):
        bare = word.text.strip("\"'")
        name = re.match(r"[A-Za-z0-9][\w.-]*", bare)
        package = distribution(name[0]) if name else None
        if package:
            yield about_package(text, word.span, package, "ACC123")
        elif _CUDA_BUILD.search(bare):
            yield _build(text, word.span, "ACC123")
        elif re.match(r"(?:lib)?(?:cuda|cudnn|nccl|nvidia|libn)[\w.-]*", bare) and index:
            yield text.flag(
                word.span, "ACC123", f"{bare} is a part of CUDA",
                "On Ascend install the driver, the firmware and CANN instead.", subject="CUDA",
            )  # fmt: skip
        else:
            before = words[index - 1].text if index else ""
            yield from about_word(text, word.span, before)


def about_package(text: Text, span: Span, package: Package, rule: str) -> Finding:
    """A package of the table."""
    message = f"{package.name} ({package.what}) {package.said}"
    if package.verdict == "supported":
        return text.keep(span, rule, message, package.name)
    instead = package.instead()
    advice = package.advice + (f" Candidates: {instead}." if instead else "")
    return text.flag(
        span, rule, message, advice,
        effort="rewrite" if package.verdict == "none" else "review", subject=package.name,
    )  # fmt: skip


def _build(text: Text, span: Span, rule: str) -> Finding:
    return text.flag(
        span, rule, "a build of torch for CUDA is asked for",
        "On Ascend install the CPU build of the same release, and torch-npu of that release.",
        subject="torch",
    )  # fmt: skip


def _comment(line: str) -> int | None:
    """Where a comment begins; `#` within a word is none, as in an address."""
    match = re.search(
        r"(?:^|\s)[#;](?=\s|\w|$)" if line.lstrip().startswith(";") else r"(?:^|\s)#", line
    )
    return None if match is None else match.start()


def _line(text: Text, span: Span, *, is_structured: bool) -> Iterator[Finding]:
    line = text.get(span)
    named: list[Span] = []
    for match in _QUOTED.finditer(line) if is_structured else ():
        package = distribution(match[1])
        if package:
            named.append(Span(span.start + match.start(), span.start + match.end()))
            yield about_package(text, named[-1], package, "ACC126")
    entry = None if named else _ENTRY.fullmatch(line)
    package = distribution(entry["name"]) if entry else None
    if package:
        yield about_package(text, text.stripped(span), package, "ACC126")
    elif _CUDA_BUILD.search(line):
        yield _build(text, text.stripped(span), "ACC126")
    else:
        for word in re.finditer(r"""[^\s"'\[\],]+""", line):
            at = Span(span.start + word.start(), span.start + word.end())
            if not any(one.contains(at) for one in named):
                yield from about_word(text, at)
