"""What each operator adds to the loss difference: <dL/d(out), local error>.

The gradients of operators' outputs that were recorded are the derivatives of the loss, so to first
order the loss moves by the inner product of each operator's own error with the gradient of its
output (adjoint error estimation: Giles and Suli, Adjoint methods for PDEs, Acta Numerica 2002).
Where errors are too large for that, the sum of all contributions misses the recorded difference,
and nothing is attributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from accel.numerics.comparing.comparison import Attribution, Run
from accel.numerics.comparing.contents import Contents, is_float, rounding
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.isolated import errors
from accel.numerics.comparing.replayer import Replayer
from accel.numerics.replaying.operators import is_view
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Key, Operator

_LINEAR = 2.0  # predicted and actual within this factor
_ROUNDINGS = 4.0  # of the loss itself, which no difference can resolve


def attributed(evidence: Evidence, replays: Mapping[Run, Replayer]) -> Attribution | None:
    """Attribute the loss difference, and put contributions into the rows.

    Returns:
        None where nothing was replayed, or no gradient of any output was kept.
    """
    found: dict[Run, dict[int, float]] = {}
    for run in evidence.accuracies:
        parts = _contributions(evidence.contents(run), replays[run])
        if parts:
            found[run] = parts
    if "candidate" not in found:
        return None
    against = found.get("reference")
    totals = _by_key(evidence, found["candidate"], against or {})
    evidence.rows = [
        replace(row, contribution=totals[row.key]) if row.key in totals else row
        for row in evidence.rows
    ]
    losses = loss(evidence.a), loss(evidence.b)
    actual = None
    if against is not None and losses[0] is not None and losses[1] is not None:
        actual = losses[1][0] - losses[0][0]
    at = losses[0] or losses[1]
    predicted = sum(totals.values())
    unit = 0.0 if at is None else rounding(at[1]) * abs(at[0])
    ranked = sorted(totals.items(), key=lambda pair: -abs(pair[1]))
    return Attribution(
        of="candidate - reference" if against is not None else "candidate - float64",
        actual=actual,
        predicted=predicted,
        loss=float("nan") if at is None else at[0],
        linear=None if actual is None else _agree(predicted, actual, _ROUNDINGS * unit),
        contributions=tuple(ranked),
    )


def _agree(predicted: float, actual: float, least: float) -> bool:
    if abs(predicted - actual) <= least:
        return True
    low, high = sorted((abs(predicted), abs(actual)))
    return predicted * actual > 0.0 and high <= _LINEAR * low


def _contributions(contents: Contents, replayer: Replayer) -> dict[int, float]:
    """By operator id, how much each moves the loss of its run."""
    found: dict[int, float] = {}
    for operator in contents.step.operators:
        gradients = _gradients(contents, operator)
        skip = operator.key.phase != "forward" or is_view(operator.name, operator.overload)
        if skip or not gradients or not replayer.can(operator):
            continue
        try:
            local = errors(replayer, operator)
        except CannotReplayError:
            continue
        found[operator.id] = sum(
            float((gradients[value].to(error.dtype) * error).sum())
            for value, error in local
            if value in gradients and gradients[value].shape == error.shape
        )
    return found


def _gradients(contents: Contents, operator: Operator) -> dict[int, Tensor]:
    """The kept gradients of an operator's outputs, by the output's value."""
    step = contents.step
    known = ((value, step.adjoints.get(value)) for value in operator.produced)
    return {v: step.tensor(g) for v, g in known if g is not None and step.has_tensor(g)}


def _by_key(
    evidence: Evidence, candidate: Mapping[int, float], reference: Mapping[int, float]
) -> dict[Key, float]:
    """The contributions of both runs, under the reference's names where there is one."""
    totals: dict[Key, float] = {}
    for operator in evidence.b.step.operators:
        if operator.id in candidate:
            other = evidence.counterpart("candidate", operator.id)
            key = operator.key if other is None else other.key
            totals[key] = totals.get(key, 0.0) + candidate[operator.id]
    for operator in evidence.a.step.operators:
        if operator.id in reference:
            totals[operator.key] = totals.get(operator.key, 0.0) - reference[operator.id]
    return totals


def loss(contents: Contents) -> tuple[float, str] | None:
    """The scalar that the backward started from, and its dtype.

    The last one whose gradient is 1; without gradients the last floating-point scalar of the
    forward.
    """
    step, last, started = contents.step, None, None
    for operator in step.operators:
        for value in operator.produced:
            described = contents.value(value)
            if operator.key.phase != "forward" or not is_float(described.dtype):
                continue
            number = scalar(contents, value)
            if number is None:
                continue
            last = number, described.dtype
            gradient = step.adjoints.get(value)
            if gradient is not None and scalar(contents, gradient) == 1.0:
                started = last
    return started or last


def scalar(contents: Contents, value: int) -> float | None:
    """The value of a tensor of one element; its sketch holds it exactly."""
    found = contents.sketch(value)
    if found is None or found.count != 1 or any(found.mask):
        return None
    return found.least
