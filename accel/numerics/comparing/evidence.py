"""Everything that was found out about one step of two runs, before it is judged."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from accel.numerics.comparing.alignment import Alignment
from accel.numerics.comparing.comparison import Accuracy, Precondition, Row, Run, Verdict
from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.drift import Drift, Ending
from accel.numerics.comparing.pairing import Measured
from accel.numerics.comparing.structure import Structural
from accel.numerics.storage.entries import Key, Operator

_RUNS: tuple[Run, ...] = ("reference", "candidate")


@dataclass
class Evidence:
    """What the stages found.

    Attributes:
        a: The reference's values.
        b: The candidate's values.
        environment: Where manifests differ.
        preconditions: What the runs begin with and that differs.
        alignment: What is what.
        structural: Differences between aligned operators.
        measured: Aligned values.
        rows: A row for each of `measured`.
        accuracies: Of each run, how right its operators are, by operator id; empty without replay.
        switches: Findings that a fault of an operator is a switch, by run and operator id.
        collectives: Findings about collectives.
        merged: Whether one of the runs is put together from several ranks.
        drift: By how much trained tensors differ before a later step; None if they do not.
        before: What the step before ended with, if it was compared.
        notes: What else should be known.
    """

    a: Contents
    b: Contents
    environment: Mapping[str, tuple[str, str]]
    preconditions: list[Precondition]
    alignment: Alignment
    structural: Sequence[Structural]
    measured: Sequence[Measured]
    rows: list[Row]
    accuracies: Mapping[Run, Mapping[int, Accuracy]] = field(default_factory=dict)
    switches: Mapping[tuple[Run, int], str] = field(default_factory=dict)
    collectives: Sequence[Verdict] = ()
    merged: bool = False
    drift: Drift | None = None
    before: Ending | None = None
    notes: list[str] = field(default_factory=list)

    def contents(self, run: Run) -> Contents:
        """The values of one run."""
        return self.a if run == "reference" else self.b

    def unmatched(self, run: Run) -> Sequence[Operator]:
        """The operators that only one run has; none where a run was killed in the step."""
        if self.a.step.end is None or self.b.step.end is None:
            return ()
        return self.alignment.only_a if run == "reference" else self.alignment.only_b

    @cached_property
    def _counterparts(self) -> dict[tuple[Run, int], Operator]:
        found: dict[tuple[Run, int], Operator] = {}
        for pair in self.alignment.operators:
            found["reference", pair.a.id] = pair.b
            found["candidate", pair.b.id] = pair.a
        return found

    @cached_property
    def _places(self) -> dict[Key, list[int]]:
        """Where in `rows` those of each of the reference's operators are."""
        found: dict[Key, list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.key is not None:
                found.setdefault(row.key, []).append(index)
        return found

    @cached_property
    def _largest(self) -> tuple[list[int], list[float]]:
        """Ids of the reference's operators, rising, and the largest distance up to each."""
        ids, largest, so_far = [], [], 0.0
        for one, row in zip(self.measured, self.rows, strict=True):
            if row.distance is not None and row.distance < float("inf"):
                so_far = max(so_far, row.distance)
            if one.operators is not None:
                ids.append(one.operators.a.id)
                largest.append(so_far)
        return ids, largest

    def counterpart(self, run: Run, operator: int) -> Operator | None:
        """The other run's operator that is aligned to one of a run's."""
        return self._counterparts.get((run, operator))

    def rows_of(self, key: Key) -> list[Row]:
        """The rows of the reference's operator of a name."""
        return [self.rows[index] for index in self._places.get(key, [])]

    def largest_before(self, operator: int) -> float:
        """The largest finite distance of any row before one of the reference's operators."""
        ids, largest = self._largest
        place = bisect.bisect_left(ids, operator)
        return largest[place - 1] if place else 0.0

    def lacks(self, run: Run, row: Row) -> bool:
        """Whether a run's elements are missing that it takes to judge a value."""
        if (row.reference if run == "reference" else row.candidate) is not None:
            return False
        one, step = self.measured[row.order], self.contents(run).step
        value, operator = one.pair.b, None if one.operators is None else one.operators.b
        if run == "reference":
            value, operator = one.pair.a, None if one.operators is None else one.operators.a
        needed = [value]
        if operator is not None:
            needed = [*operator.produced, *self.contents(run).inputs(operator)]
        return not all(step.has_tensor(self.contents(run).root(value)) for value in needed)

    def lacking(self, row: Row) -> list[Run]:
        """The runs whose elements are missing that it takes to judge a value."""
        return [run for run in _RUNS if self.lacks(run, row)]

    def has_effect(self, operator: Operator) -> bool:
        """Whether any output of the reference's operator differs in the candidate."""
        rows = self.rows_of(operator.key)
        return not rows or any(row.distance != 0.0 for row in rows)
