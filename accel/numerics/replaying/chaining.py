"""The whole recorded graph in float64: how far the run has strayed at each value."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from accel.numerics.replaying import references
from accel.numerics.replaying.calls import Results, wide, widened
from accel.numerics.replaying.operators import why_nothing_to_check
from accel.numerics.replaying.recorded import (
    RecordedStep,
    Tensors,
    call_from,
    inputs_of,
    produced_names,
    results_from,
)
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.replaying.responses import is_inexact
from accel.numerics.storage.entries import Operator


def chained_errors(
    step: RecordedStep, on_operator: Callable[[], None] = lambda: None
) -> dict[int, float]:
    """The relative rms error of every floating-point value that was kept.

    The graph starts from the recorded sources and goes on with float64 results. Random operators,
    integers and comparisons keep their recorded results, so that the float64 run takes the same
    branches; so does what cannot be replayed. Float64 results are freed after their last use.

    Args:
        step: A step recorded at level `full`.
        on_operator: Called after each operator, for a progress bar.

    Returns:
        By value id.
    """
    chain = _Chain(step)
    for position, operator in enumerate(step.operators):
        chain.run(operator)
        chain.free(position)
        on_operator()
    return chain.errors


class _Chain:
    """The float64 values that are still needed."""

    def __init__(self, step: RecordedStep) -> None:
        self._tensors = Tensors(step)
        self._truths: dict[int, Tensor] = {}
        self._seen: set[int] = set()
        self.errors: dict[int, float] = {}
        last: dict[int, int] = {}
        for position, operator in enumerate(step.operators):
            for value in (*inputs_of(operator), *operator.produced):
                last[value] = position
        self._last_used: dict[int, list[int]] = {}
        for value, position in last.items():
            self._last_used.setdefault(position, []).append(value)

    def run(self, operator: Operator) -> None:
        """Compute an operator's results, and their errors."""
        truths = dict(self._results(operator).named())
        self._seen.update(inputs_of(operator))
        for name, value in produced_names(operator):
            truth = truths.get(name)
            is_new = value not in self._seen  # a view of a view may be the first again
            self._seen.add(value)
            if not is_new or truth is None or not is_inexact(truth):
                continue
            self._truths[value] = truth
            if self._tensors.has(value):
                self.errors[value] = _relative(self._tensors.of(value), truth)

    def free(self, position: int) -> None:
        """Forget what no later operator reads."""
        for value in self._last_used.get(position, ()):
            self._truths.pop(value, None)

    def _results(self, operator: Operator) -> Results:
        """In float64; nothing where the recorded results are to be taken."""
        if why_nothing_to_check(operator.name, operator.overload) is not None:
            return _NOTHING
        try:
            call = call_from(operator, self._of)
            recorded = _Lazily(operator, self._tensors).results()
            return references.replayer(call, recorded)(widened(call))
        except (CannotReplayError, ValueError):  # not replayable, or what it read was not kept
            return _NOTHING

    def _of(self, value: int) -> Tensor:
        found = self._truths.get(value)
        return self._tensors.of(value) if found is None else found


_NOTHING = Results((), {})


class _Lazily:
    """What an operator produced, or nothing where that was not kept."""

    def __init__(self, operator: Operator, tensors: Tensors) -> None:
        self._operator, self._tensors = operator, tensors

    def results(self) -> Results:
        """As far as a formula needs them (the mask of a dropout)."""
        if all(map(self._tensors.has, self._operator.produced)):
            return results_from(self._operator, self._tensors.of)
        return Results(tuple(None for _ in self._operator.outputs), {})


def _relative(actual: Tensor, truth: Tensor) -> float:
    if actual.shape != truth.shape:
        return math.inf
    error = actual.to(wide(actual.dtype)) - truth
    size = float(truth.abs().square().sum())
    wrong = float(error.abs().nan_to_num(nan=0.0, posinf=0.0).square().sum())
    if wrong == 0.0:
        return 0.0
    return math.sqrt(wrong / size) if size > 0.0 and math.isfinite(size) else math.inf
