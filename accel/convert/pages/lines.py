"""One line per finding, as compilers write them; and a rule as text."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from accel.convert.finding import TreeResult
from accel.convert.pages.words import (
    count,
    document_of,
    family_of,
    plain,
    rule_of,
    sentence,
    wrap,
)
from accel.convert.rules import RULES
from accel.convert.walking import place_of
from accel.report import text

_WORDS = {"convert": "would be converted", "flag": "for a human", "keep": "kept"}


def name_from_here(tree: TreeResult, path: str) -> str:
    """A file's name from where the command runs; as in the report if it is not below."""
    place = place_of(tree.roots, path)
    if not place.is_absolute():
        return place.as_posix().removeprefix("./")
    below = os.path.relpath(place, os.getcwd())
    return path.lstrip("/") if below.startswith("..") else below.replace(os.sep, "/")


def finding_lines(tree: TreeResult, actions: Collection[str]) -> Iterator[str]:
    """`a.py:3:7: ACC001 would be converted: …` for findings with one of the actions.

    Files that could not be read, and tokens that nobody accounts for, are there as well.
    """
    for file in tree.files:
        place = place_of(tree.roots, file.path).as_posix()
        if file.error:
            yield plain(f"{place}:1:1: not read or parsed: {file.error}")
        for one in file.findings:
            if one.action in actions:
                said = " ".join(sentence(part) for part in (one.message, one.advice) if part)
                yield plain(
                    f"{place}:{one.line}:{one.column}: {one.rule} {_WORDS[one.action]}: {said}"
                )
        for entry in file.ledger:
            if entry.action == "missing":
                yield plain(
                    f"{place}:{entry.line}:1: no rule accounts for {entry.token}: a bug of the "
                    "converter; please report it"
                )


def rule_table() -> str:
    """All rules, one a line."""
    rows = [(one.id, one.action, one.effort, family_of(one.id), one.title) for one in RULES]
    said = f"{count(len(RULES), 'rule')}; `accel convert rules {RULES[0].id}` shows one."
    return f"{text.table(('rule', 'action', 'effort', 'family', 'title'), rows)}\n\n{said}"


def rule_text(identifier: str) -> str:
    """One rule: what it is about, why, what to know on an Ascend, before and after.

    Raises:
        ValueError: There is none of that id.
    """
    rule = rule_of(identifier)
    if rule is None:
        raise ValueError(f"no rule is called {identifier!r}: `accel convert rules` lists all")
    parts = [f"{rule.id} {rule.name}: {rule.title}", f"{rule.action}, {rule.effort}", ""]
    parts += [*wrap(f"Why: {rule.why}"), "", *wrap(f"Ascend: {rule.ascend}")]
    for example in rule.examples:
        parts += ["", "before:", *_indented(example.before)]
        if example.after == example.before:
            parts.append("after: the same; the place is in the report")
        else:
            parts += ["after:", *_indented(example.after)]
    for kept in rule.kept:
        parts += ["", "stays as it is:", *_indented(kept)]
    return "\n".join([*parts, "", document_of(rule.id)])


def _indented(source: str) -> list[str]:
    return [f"    {line}" for line in source.strip("\n").splitlines()]
