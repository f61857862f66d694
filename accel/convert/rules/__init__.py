"""The rule table: one module per family, each with its rules as data and a function that finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rule import Example as Example
from accel.convert.rule import Rule as Rule
from accel.convert.rules import (
    amp,
    backends,
    devices,
    distributed,
    environment,
    functions,
    guards,
    loading,
    memory,
    names,
    operators,
    other_vendors,
    packages,
    reverse,
    streams,
    tensor_types,
    user_rules,
)
from accel.convert.sweep.rules import RULES as SWEEP_RULES


class Family(Protocol):
    """What a family's module has."""

    RULES: tuple[Rule, ...]

    def find(self, module: Module) -> Iterator[Finding]:
        """What the family says about a file."""
        ...


# Of two edits on one span the earlier family's is taken.
FAMILIES: tuple[Family, ...] = (  # type: ignore[assignment]
    user_rules,
    distributed,
    environment,
    reverse,
    loading,
    devices,
    guards,
    functions,
    amp,
    tensor_types,
    streams,
    backends,
    memory,
    packages,
    other_vendors,
    operators,
)
_EVERY = (*(rule for family in FAMILIES for rule in family.RULES), *names.RULES, *SWEEP_RULES)
RULES: tuple[Rule, ...] = tuple(sorted(_EVERY, key=lambda rule: rule.id))
