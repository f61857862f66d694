"""Tensors that come from outside of the recorded step and have no name: a mask, targets, noise."""

from __future__ import annotations

from accel.numerics.comparing.comparison import Precondition
from accel.numerics.comparing.divergence import LIMIT, is_random
from accel.numerics.comparing.drift import explains
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.pairing import is_overwritten
from accel.numerics.comparing.preconditions import compared, is_foreign
from accel.numerics.comparing.wording import operator_in_words, row_in_words
from accel.numerics.replaying.operators import is_view
from accel.numerics.storage.entries import Ref


def foreign(evidence: Evidence) -> list[Precondition]:
    """What enters at an operator and differs by more than anything computed before.

    Unnamed tensors that operators read, and random numbers that operators draw.
    """
    return [*_unnamed(evidence), *_random(evidence)]


def _unnamed(evidence: Evidence) -> list[Precondition]:
    a, b = evidence.a, evidence.b
    found: list[Precondition] = []
    seen: set[int] = set()
    for pair in evidence.alignment.operators:
        if is_view(pair.a.name, pair.a.overload):  # who reads the view reads it
            continue
        for name, argument in pair.a.arguments.items():
            other = pair.b.arguments.get(name)
            if not isinstance(argument, Ref) or not isinstance(other, Ref):
                continue
            if is_overwritten(pair.a, name):
                continue
            left, right = a.root(argument.value), b.root(other.value)
            both = is_foreign(a.step.sources, left) and is_foreign(b.step.sources, right)
            if left in seen or not both:
                continue
            seen.add(left)
            if explains(evidence.before, a.sketch(left), b.sketch(right)):
                continue
            reader = operator_in_words(pair.a.key, pair.b.place or pair.a.place)
            one = compared(a, b, "other", f"{name} of {reader}", left, right)
            if one is not None and _enters(evidence, one, pair.a.id):
                found.append(one)
    return found


def _enters(evidence: Evidence, one: Precondition, operator: int) -> bool:
    """Whether it cannot have been computed, unseen, from what differed before."""
    before = evidence.largest_before(operator)
    if evidence.drift is not None:
        before = max(before, evidence.drift.largest)
    return one.distance is None or one.distance > LIMIT * before


def _random(evidence: Evidence) -> list[Precondition]:
    for one, row in zip(evidence.measured, evidence.rows, strict=True):
        if row.status == "diverges" and one.operators is not None and is_random(one.operators.a):
            words = ("drawn there", "drawn otherwise", "other random numbers")
            return [Precondition("random", row_in_words(row), *words, row.distance)]
    return []
