"""Gradients of a mean over a part of the batch are larger than those of the mean over all of it.

In data parallelism each of n ranks takes the mean loss of its part, whose gradient with respect to
an activation is n times that of the mean over the whole batch; parameters' gradients are averaged
over the ranks and come out the same. Whether a run does so is found by comparing both ways.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from accel.numerics.comparing.alignment import aligned
from accel.numerics.comparing.contents import Contents, distance, gradients
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.comparing.shards import Merged

Divisors = tuple[Mapping[int, float], Mapping[int, float]]


def averaged(a: Merged, b: Merged, ours: int, theirs: int) -> tuple[Divisors, list[str]]:
    """What gradients of activations are to be divided by, and a note that says so.

    Args:
        a: The reference, put together.
        b: The candidate.
        ours: How many ranks the reference has.
        theirs: How many the candidate has.
    """
    values = [sorted(_of_activations(one.step) & one.parts) for one in (a, b)]
    if not any(values):
        return ({}, {}), []
    pairs = list(_pairs(a, b))
    choices = [
        (x, y) for x in {1, ours if values[0] else 1} for y in {1, theirs if values[1] else 1}
    ]
    best = min(sorted(choices), key=lambda by: _apart(a, b, pairs, values, by))
    divisors = [dict.fromkeys(v, float(n)) for v, n in zip(values, best, strict=True)]
    notes = [
        f"gradients of activations of the {run} are compared after division by {n}: each rank's "
        "loss is a mean over its part of the batch"
        for run, n in zip(("reference", "candidate"), best, strict=True)
        if n != 1
    ]
    return (divisors[0], divisors[1]), notes


def _of_activations(step: RecordedStep) -> set[int]:
    """All gradients but those of parameters, which are averaged already."""
    parameters = {value for value, source in step.sources.items() if source.kind == "parameter"}
    return set(gradients(step)) - {g for of, g in step.adjoints.items() if of in parameters}


def _pairs(a: Merged, b: Merged) -> Iterator[tuple[int, int]]:
    alignment = aligned(a.step, b.step)
    for operators in alignment.operators:
        if operators.a.key.phase == "backward":
            yield from zip(operators.a.produced, operators.b.produced, strict=False)
    for pair in alignment.gradients:
        yield pair.a, pair.b


def _apart(
    a: Merged,
    b: Merged,
    pairs: list[tuple[int, int]],
    values: list[list[int]],
    by: tuple[int, int],
) -> float:
    """The median distance of the gradients if they are divided so."""
    left = Contents(a.step, dict.fromkeys(values[0], float(by[0])))
    right = Contents(b.step, dict.fromkeys(values[1], float(by[1])))
    known = [
        apart
        for x, y in pairs
        if x in set(values[0]) or y in set(values[1])
        if (apart := distance(left.sketch(x), right.sketch(y))) is not None
    ]
    return statistics.median(known) if known else 0.0
