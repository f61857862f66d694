"""What a rule is: data for the documentation and the tests beside the function that finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from accel.convert.finding import Action, Effort


@dataclass(frozen=True)
class Example:
    """A program before and after; both are tests.

    Attributes:
        before: Source code.
        after: For the target `accel`; equal to `before` where the rule keeps or flags.
        others: For other targets, where the tests shall look at them too.
    """

    before: str
    after: str
    others: Mapping[str, str] = field(default_factory=dict)


def unchanged(*programs: str) -> tuple[Example, ...]:
    """Examples of what a rule keeps or flags."""
    return tuple(Example(program, program) for program in programs)


@dataclass(frozen=True)
class Rule:
    """One pattern and what is right to do about it.

    Attributes:
        id: `ACC` and three digits.
        name: A slug, e.g. `tensor-cuda`.
        title: One line.
        why: Why CUDA-bound code of this kind stops other devices, and why this rewrite is exact.
        ascend: What to know on an Ascend.
        action: What it mostly does.
        effort: Who has work with it.
        examples: Before and after; at least one.
        kept: Programs that look alike and must come out unchanged.
    """

    id: str
    name: str
    title: str
    why: str
    ascend: str
    action: Action
    effort: Effort
    examples: tuple[Example, ...]
    kept: tuple[str, ...] = ()
