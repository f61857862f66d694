"""From the bytes of a Python file to its findings, its converted text and its ledger."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import replace

from accel.convert import keeping, tokens, unparsed
from accel.convert.edits import ConflictError, apply, arrange
from accel.convert.finding import Edit, FileResult, Finding, Span
from accel.convert.importing import import_edit
from accel.convert.ledger import account
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.project import Project, index
from accel.convert.rules import FAMILIES, names, user_rules
from accel.convert.source import Source

_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"  # newer syntax needs a newer Python


def convert_source(
    data: bytes, path: str, options: Options, project: Project | None = None
) -> FileResult:
    """Convert one Python file.

    Args:
        data: Its bytes.
        path: Its name in the result, and its place in the project.
        options: What to do.
        project: What is known of all files of the tree, this one included; of this one alone if
            None.

    Returns:
        The result. A file that is no Python 3 is kept as it is, with `error`.
    """
    try:
        source = Source(data)
        if not _may_matter(source.utf8, options):
            return FileResult(path, "python", data, data, lines=_count(source.utf8))
        known = index({path: data}) if project is None else project
        module = Module(source, path, options, known)
        found = tokens.find(source, tokens.pattern(options.source))
    except (SyntaxError, UnicodeDecodeError) as error:
        lines = _count(data)
        said = f"{_said(error)}; {unparsed.next_step(data, options.source)}"
        return FileResult(path, "python", data, data, error=said, lines=lines)
    findings = [finding for family in FAMILIES for finding in family.find(module)]
    findings = _restrained(findings, module)
    findings = _without_conflicts(_first_of_each(user_rules.prefer(findings)))
    findings += _restrained(names.find(module, found, findings), module)
    return _finish(module, data, found, findings)


def _may_matter(utf8: bytes, options: Options) -> bool:
    """Whether anything in a file can concern a rule; saves the parse of most files."""
    if b"torch" in utf8 or options.user_rules:
        return True
    return tokens.speaks(utf8.decode("utf-8"), options.source)


def _count(text: bytes) -> int:
    """How many lines a text has; a last one without a line feed is one."""
    return text.count(b"\n") + (bool(text) and not text.endswith(b"\n"))


def _said(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}: " if error.lineno else ""
        return f"{where}not Python {_VERSION}: {error.msg}"
    return f"cannot be decoded: {error}"


def _restrained(findings: Sequence[Finding], module: Module) -> list[Finding]:
    marks = keeping.marks_of(module.source.utf8)
    ends = _last_lines(module) if marks else None
    line_of = module.source.line_of
    return [keeping.restrained(one, module.options, marks, line_of, ends) for one in findings]


def _last_lines(module: Module) -> dict[int, int]:
    """The last line of each line's statement: a comment behind a call's bracket is about it all."""
    found: dict[int, int] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            span = module.span(node)
            first, last = module.source.line_of(span.start), module.source.line_of(span.end)
            found |= dict.fromkeys(range(first, last), last)
    return found


def _first_of_each(findings: Sequence[Finding]) -> list[Finding]:
    """Without those that would change exactly what an earlier family's finding changes."""
    taken: set[Span] = set()
    out = []
    for finding in findings:
        spans = {edit.span for edit in finding.edits}
        if spans and spans <= taken:
            continue
        taken |= spans
        out.append(finding)
    return out


def _without_conflicts(findings: list[Finding]) -> list[Finding]:
    """Findings whose edits fit together; one that does not is for a human."""
    try:
        arrange(edit for finding in findings for edit in finding.edits)
    except ConflictError:
        return _one_by_one(findings)
    return findings


def _one_by_one(findings: list[Finding]) -> list[Finding]:
    accepted: list[Finding] = []
    edits: list[Edit] = []
    for finding in findings:
        try:
            arrange([*edits, *finding.edits])
        except ConflictError:
            finding = replace(
                finding, action="flag", edits=(), imports=frozenset(), effort="review",
                advice="Convert this place by hand: two rules want to change parts of it.",
            )  # fmt: skip
        edits += finding.edits
        accepted.append(finding)
    return accepted


def _finish(
    module: Module, data: bytes, found: list[tokens.Token], findings: list[Finding]
) -> FileResult:
    source = module.source
    edits = [edit for finding in findings for edit in finding.edits]
    _, applied = apply(source.utf8, edits)
    findings = _visible(findings, applied)
    users = [f for f in findings if f.action == "convert" and f.imports]
    needed = {name for f in users for name in f.imports}
    first = min((edit.span.start for f in users for edit in f.edits), default=None)
    changed, applied = apply(source.utf8, [*edits, *import_edit(module, needed, first)])
    lines = _count(source.utf8)
    try:
        ast.parse(changed.decode("utf-8"))
    except SyntaxError as error:
        said = f"the conversion would not parse ({error}); please report this as a bug"
        return FileResult(module.path, "python", data, data, error=said, lines=lines)
    after = source.encode(changed) if edits else data
    ordered = tuple(sorted(findings, key=lambda f: (f.span, f.rule)))
    ledger = account(found, ordered, applied)
    return FileResult(module.path, "python", data, after, ordered, ledger, lines=lines)


def _visible(findings: list[Finding], applied: set[Span]) -> list[Finding]:
    """Without what lies in text that an outer edit took away."""
    gone: list[Span] = []
    for finding in findings:
        for edit in finding.edits:
            if edit.span in applied:
                gone += _removed(edit)
    kept = []
    for finding in findings:
        own = {edit.span for edit in finding.edits}
        if own and not own & applied:
            continue
        if not own and any(span.contains(finding.span) for span in gone):
            continue
        kept.append(finding)
    return kept


def _removed(edit: Edit) -> list[Span]:
    """The stretches of an edit's span that it does not keep."""
    spans = sorted(part for part in edit.parts if isinstance(part, Span))
    out, position = [], edit.span.start
    for span in spans:
        out.append(Span(position, span.start))
        position = max(position, span.end)
    out.append(Span(position, edit.span.end))
    return [span for span in out if span.end > span.start]
