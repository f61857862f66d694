"""Copies of parameters and gradients that all ranks of a run should have alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from accel.numerics.comparing.comparison import Run, Verdict
from accel.numerics.comparing.contents import distance, is_same
from accel.numerics.storage.entries import Value

_MOST = 5
Copies = Mapping[int, Value]  # by rank


@dataclass(frozen=True)
class Differing:
    """Copies that are not alike.

    Attributes:
        what: `parameter`, `gradient` (of a parameter) or `update` (a parameter after the step).
        name: The parameter's name.
        copies: By rank.
    """

    what: str
    name: str
    copies: Copies

    def are_copies(self, other: Value | None) -> bool:
        """Whether they should be alike: the recording says so, or the other run's is no larger."""
        values = list(self.copies.values())
        if all(is_copy(value) for value in values):
            return True
        plain = all(value.shard is None for value in values)
        return plain and other is not None and all(v.shape == other.shape for v in values)


def is_copy(value: Value) -> bool:
    """Whether a value is said to be all of its whole."""
    shard = value.shard
    return shard is not None and not shard.partial and shard.shape == value.shape


def are_alike(copies: Sequence[Value]) -> bool:
    """Whether copies are equal, or nobody can tell."""
    known = [copy.sketch for copy in copies if copy.sketch is not None]
    return all(is_same(known[0], one) for one in known[1:])


def broken(
    differing: Sequence[Differing], others: Mapping[tuple[str, str], Value], run: Run
) -> Iterator[Verdict]:
    """Findings about copies that differ between ranks.

    Args:
        differing: Them.
        others: The other run's values of the same kinds and names.
        run: Whose copies they are.

    Returns:
        One at most: parameters before the step come before gradients, these before the rest.
    """
    wrong = [d for d in differing if d.are_copies(others.get((d.what, d.name)))]
    before = [one for one in wrong if one.what == "parameter"]
    if before:
        sentence = f"the ranks of the {run} hold different copies of {before[0].name}"
        yield Verdict("different weight/input", sentence, _facts(before, others), run=run)
        return
    gradients = [one for one in wrong if one.what == "gradient"]
    if gradients:
        sentence = (
            f"the ranks of the {run} have different gradients of {gradients[0].name}, which should "
            "be copies"
        )
        yield Verdict("different program", sentence, _facts(gradients, others), run=run)
        return
    after = [one for one in wrong if one.what == "update"]
    if after:
        sentence = f"the copies of {after[0].name} on the {run}'s ranks drift apart in the step"
        yield Verdict("different program", sentence, _facts(after, others), run=run)


def _facts(
    differing: Sequence[Differing], others: Mapping[tuple[str, str], Value]
) -> tuple[str, ...]:
    first = differing[0]
    other = others.get((first.what, first.name))
    facts = []
    for rank, value in first.copies.items():
        apart = None if other is None else distance(other.sketch, value.sketch)
        if apart is not None:
            facts.append(f"rank {rank}'s {first.what} {first.name}: {apart:.3g} from the other run")
    names = ", ".join(one.name for one in differing[:_MOST])
    return (*facts, f"{len(differing)} differ between ranks: {names}")
