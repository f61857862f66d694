"""Rules of the user's own, from a JSON file.

The file holds a list of objects:

```json
[
  {
    "id": "USR001",
    "match": "mylib.sync_gpu",
    "replace": "accel.synchronize",
    "imports": ["accel"],
    "message": "mylib's own synchronisation is accel's"
  },
  {
    "id": "USR002",
    "match": "mylib.fused_norm",
    "action": "flag",
    "message": "a CUDA kernel of our own",
    "advice": "Use torch.nn.functional.layer_norm."
  }
]
```

- `id`: `USR` and three digits, once.
- `match`: the full dotted name of a function, class, constant or module, as its import gives it.
  Every reference to it by any alias is a match; a name that only looks like it is none.
- `action`: `convert` (the default if there is a `replace`), `keep` or `flag`.
- `replace`: an expression in the place of the reference; its call keeps its arguments.
- `imports`: modules that the replacement needs.
- `message`, `advice`: one sentence each; for a flag both are wanted.

A user's rules come before all others.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from accel.convert.finding import Action, Finding, Span
from accel.convert.module import Module
from accel.convert.rule import Rule

RULES: tuple[Rule, ...] = ()

_ID = re.compile(r"USR\d{3}")
_NAME = re.compile(r"\.*[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_KEYS = {"id", "match", "replace", "imports", "action", "message", "advice"}
_ACTIONS: tuple[Action, ...] = ("convert", "keep", "flag")


@dataclass(frozen=True)
class UserRule:
    """One rule of the file, as in the module's description."""

    id: str
    match: str
    action: Action
    replace: str = ""
    imports: frozenset[str] = frozenset()
    message: str = ""
    advice: str = ""


def find(module: Module) -> Iterator[Finding]:
    """References to what the user's rules match."""
    rules = read(module.options.user_rules)
    if not rules:
        return
    by_name = {module.vendor.known(rule.match): rule for rule in rules}
    last_words = {name.rpartition(".")[2] for name in by_name}
    for attribute in module.all(ast.Attribute):
        if attribute.attr in last_words and isinstance(attribute.ctx, ast.Load):
            rule = by_name.get(module.qualified(attribute) or "")
            if rule is not None:
                yield _said(module, attribute, rule)
    for name in module.all(ast.Name):
        binding = module.binding(name) if isinstance(name.ctx, ast.Load) else None
        if binding is not None and binding.imports:
            rule = by_name.get(module.qualified(name) or "")
            if rule is not None:
                yield _said(module, name, rule)


def _said(module: Module, node: ast.expr, rule: UserRule) -> Finding:
    message = rule.message or f"{rule.match} is matched by a rule of the user's own"
    if rule.action == "convert":
        return module.convert(
            node, rule.id, message, rule.replace, imports=rule.imports, subject=rule.match
        )
    if rule.action == "keep":
        return module.keep(node, rule.id, message, subject=rule.match)
    return module.flag(node, rule.id, message, rule.advice, subject=rule.match)


def prefer(findings: list[Finding]) -> list[Finding]:
    """Without what other rules would do with the places that a user's rule speaks of."""
    own = [finding for finding in findings if _ID.fullmatch(finding.rule)]
    if not own:
        return findings
    spans = {finding.span for finding in own}
    return [f for f in findings if _ID.fullmatch(f.rule) or not _touches(f, spans)]


def _touches(finding: Finding, spans: set[Span]) -> bool:
    if finding.span in spans:
        return True
    for edit in finding.edits:
        kept = [part for part in edit.parts if isinstance(part, Span)]
        for span in spans:
            if edit.span.contains(span) and not any(part.contains(span) for part in kept):
                return True
    return False


@lru_cache(maxsize=8)
def read(text: str) -> tuple[UserRule, ...]:
    """Rules from the text of a file; none for an empty one.

    Raises:
        ValueError: The text is no such list; it says which rule, what is wrong and what is allowed.
    """
    if not text.strip():
        return ()
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the user's rules are no JSON: {error}; a list of objects is wanted"
        ) from error
    if not isinstance(entries, list):
        raise ValueError(
            f"the user's rules are a list of objects, not {type(entries).__name__}: "
            'write [{"id": "USR001", ...}]'
        )
    rules = tuple(_rule(number, entry) for number, entry in enumerate(entries, 1))
    for key in ("id", "match"):
        values = [getattr(rule, key) for rule in rules]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"the user's rules have {key} {twice[0]!r} twice: give each its own")
    return rules


def _rule(number: int, entry: object) -> UserRule:
    where = f"rule {number} of the user's rules"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}: an object with id and match is wanted")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}: allowed are {', '.join(sorted(_KEYS))}")
    for key in ("id", "match", "replace", "action", "message", "advice"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f"{where} has {key} {entry[key]!r}: a string is wanted")
    name, match = entry.get("id", ""), entry.get("match", "")
    if not _ID.fullmatch(name):
        raise ValueError(f"{where} has id {name!r}: USR and three digits are wanted, as USR001")
    where = f"{where} ({name})"
    if not _NAME.fullmatch(match):
        raise ValueError(f"{where} has match {match!r}: a dotted name is wanted, as mylib.sync_gpu")
    action = entry.get("action", "convert" if "replace" in entry else "flag")
    if action not in _ACTIONS:
        raise ValueError(f"{where} has action {action!r}: allowed are {', '.join(_ACTIONS)}")
    _check_replacement(where, action, entry)
    if action == "flag" and not (entry.get("message") and entry.get("advice")):
        raise ValueError(f"{where} flags and lacks a message or an advice: say what to do")
    return UserRule(
        name, match, action, entry.get("replace", ""), _imports(where, entry),
        entry.get("message", ""), entry.get("advice", ""),
    )  # fmt: skip


def _check_replacement(where: str, action: Action, entry: dict[str, object]) -> None:
    text = entry.get("replace")
    if action != "convert":
        if text is not None:
            raise ValueError(f"{where} has a replace and action {action!r}: leave one of them out")
        return
    try:
        tree = ast.parse(str(text or ""), mode="eval").body
    except SyntaxError as error:
        raise ValueError(
            f"{where} has replace {text!r}, which is no expression: write what stands in the place "
            "of the name, as accel.synchronize"
        ) from error
    if not isinstance(tree, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)):
        raise ValueError(f"{where} has replace {text!r}: put it into parentheses of a call")


def _imports(where: str, entry: dict[str, object]) -> frozenset[str]:
    given = entry.get("imports", [])
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{where} has imports {given!r}: a list of modules is wanted")
    for name in given:
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise ValueError(f"{where} imports {name!r}: a module's dotted name is wanted")
    return frozenset(given)
