"""Which modules a rule matches, and why one that decides nothing does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from accel.precision.policy.families import FAMILIES
from accel.precision.policy.formats import near
from accel.precision.policy.grouping import listed
from accel.precision.policy.policy import Policy
from accel.precision.policy.rule import Rule
from accel.precision.policy.tree import Node


def matches(rule: Rule, node: Node) -> bool:
    """Whether a rule speaks of a module: by its own name or type or those of one it is inside."""
    for name, chain in zip(node.names, node.chains, strict=True):
        if rule.name != "*" and not any(map(rule.matches_name, _prefixes(name))):
            continue
        if not rule.type or any(_is_of_type(rule.type, outer) for outer in chain):
            return True
    return False


def why_unused(
    rule: Rule,
    policy: Policy,
    nodes: Sequence[Node],
    passed: Mapping[str, Sequence[tuple[Rule, str]]],
) -> str:
    """Why a rule decides nothing, and what to do.

    Args:
        rule: The rule.
        policy: Whose it is.
        nodes: Every module of the model.
        passed: Per module, the rules that match it and cannot give it what they say, and why.
    """
    this = f"rule {policy.rules.index(rule) + 1}, {rule},"
    advice = f"correct or remove it, or write {rule.selector}?= for a rule that may match nothing"
    found = [node for node in nodes if matches(rule, node)]
    if not found:
        return f"{this} matches no module{_nearest(rule, nodes)}; {advice}"
    reasons: dict[str, list[str]] = {}
    for node in found:
        for reason in {reason for one, reason in passed.get(node.path, ()) if one == rule}:
            reasons.setdefault(reason, []).append(node.title)
    if reasons:
        where = "; ".join(f"{listed(names)} ({reason})" for reason, names in reasons.items())
        return f"{this} decides nothing: it matches {where}; {advice}"
    return (
        f"{this} decides nothing: the first match wins, and rules before it decide all that it "
        f"matches ({listed([node.title for node in found])}); put it before them, or {advice}"
    )


def _nearest(rule: Rule, nodes: Sequence[Node]) -> str:
    names = list(dict.fromkeys(name for node in nodes for name in node.names if name))
    types = sorted({name for node in nodes for name in node.classes})
    if rule.name != "*" and not any(map(rule.matches_name, names)):
        return near(rule.name, [*names, *(f"<{kind}>" for kind in (*types, *FAMILIES))]) or (
            f": the model's modules are {listed(names)}"
        )
    if rule.type in FAMILIES:
        return f": the model has no {rule.type} {'layer' if rule.name == '*' else 'there'}"
    hint = near(rule.type, [*types, *FAMILIES]) or f": the model's types are {listed(types)}"
    return hint if rule.type not in types else f": no {rule.type} is inside {rule.name}"


def _is_of_type(kind: str, node: Node) -> bool:
    return kind in (node.families if kind in FAMILIES else node.classes)


def _prefixes(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b` and `a`, of `a.b.c`."""
    yield name
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
