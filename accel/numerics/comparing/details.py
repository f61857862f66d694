"""Element by element: errors, worst elements, histograms, where a difference comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from accel.numerics.comparing.comparison import Accuracy, Decomposition, Element, Row, Run
from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.pairing import Measured
from accel.numerics.comparing.replayer import Replayer
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Operator

_WORST = 16
_BINS = 24  # 0, 0.5, 1, 2, … 2**22 units in the last place


def added(evidence: Evidence, replays: Mapping[Run, Replayer], detailed: set[int]) -> list[Row]:
    """The rows with what the kept elements tell."""
    rows = []
    for one, row in zip(evidence.measured, evidence.rows, strict=True):
        if one.operators is not None and (row.candidate or row.reference):
            row = _with_details(one, row, replays, row.order in detailed)
        elif one.operators is None and row.order in detailed and row.status == "diverges":
            left = _side_of(evidence.a, replays["reference"], one.pair.a)
            right = _side_of(evidence.b, replays["candidate"], one.pair.b)
            row = replace(row, elements=_elements(left, right))
        rows.append(row)
    return rows


class _Side:
    """One run's output with its float64 truth; neither if `operator` is None."""

    def __init__(self, replayer: Replayer, operator: Operator | None, output: int = 0) -> None:
        self.actual: Tensor | None = None
        self.truth: Tensor | None = None
        if operator is None or not replayer.can(operator):
            return
        try:
            truth = replayer.truth(operator)[output]
        except CannotReplayError:
            truth = None
        actual = replayer.outputs(operator)[output]
        if actual.is_floating_point():
            self.actual = actual
            self.truth = truth if truth is not None and truth.shape == actual.shape else None

    @property
    def error(self) -> Tensor | None:
        """Output minus truth; 0 where either is not finite."""
        if self.actual is None or self.truth is None:
            return None
        error = self.actual.to(torch.float64) - self.truth
        return error.where(error.isfinite(), 0.0)


def _side_of(contents: Contents, replayer: Replayer, value: int) -> _Side:
    """A value, whether a replayed operator made it or nobody knows what did."""
    step, root = contents.step, contents.root(value)
    maker = step.operators[step.producers[root]] if root in step.producers else None
    side = _Side(replayer, maker, 0 if maker is None else maker.produced.index(root))
    if side.actual is None and step.has_tensor(value):
        kept = step.tensor(value)
        side.actual = kept if kept.is_floating_point() else None
    return side


def _with_details(one: Measured, row: Row, replays: Mapping[Run, Replayer], detailed: bool) -> Row:
    if one.operators is None:
        return row
    left = _Side(replays["reference"], one.operators.a, one.output)
    right = _Side(replays["candidate"], one.operators.b, one.output)
    row = replace(
        row,
        reference=_with_error(row.reference, left),
        candidate=_with_error(row.candidate, right),
        decomposition=_decomposition(left, right),
    )
    seen = right if right.actual is not None else left
    if seen.actual is None:
        return row
    row = replace(row, histogram=_histogram(seen))
    return replace(row, elements=_elements(left, right)) if detailed else row


def _with_error(accuracy: Accuracy | None, side: _Side) -> Accuracy | None:
    error = side.error
    if accuracy is None or error is None or side.truth is None:
        return accuracy
    return replace(accuracy, error=_over(error, side.truth))


def _over(part: Tensor, whole: Tensor) -> float:
    wide = whole.to(torch.float64)  # first: 8-bit types know no `isfinite`
    size = float(wide.where(wide.isfinite(), 0.0).norm())
    norm = float(part.norm())
    return 0.0 if norm == 0.0 else (norm / size if size else float("inf"))


def _decomposition(left: _Side, right: _Side) -> Decomposition | None:
    errors = left.error, right.error
    if errors[0] is None or errors[1] is None or left.truth is None or right.truth is None:
        return None
    if left.actual is None or left.truth.shape != right.truth.shape:
        return None
    moved = right.truth - left.truth
    inputs = moved.where(moved.isfinite(), 0.0)
    whole = left.actual
    return Decomposition(_over(errors[1], whole), _over(inputs, whole), _over(errors[0], whole))


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of `dtype` at float64 `values`."""
    limits = torch.finfo(dtype)
    exponent = torch.frexp(values).exponent - 1
    size = torch.ldexp(torch.full_like(values, limits.eps), exponent)
    return size.clamp(min=limits.smallest_normal * limits.eps)


def _ulps(side: _Side, against: Tensor) -> Tensor:
    """Distance of an output's elements from `against` in units in the last place."""
    if side.actual is None:
        raise ValueError("the elements were not kept")
    actual, wide = side.actual.to(torch.float64), against.to(torch.float64)
    finite = actual.isfinite() & wide.isfinite()
    apart = (actual - wide).abs().where(finite, 0.0)
    ulps = apart / ulp(wide.where(finite, 1.0), side.actual.dtype)
    same = (actual == wide) | (actual.isnan() & wide.isnan())
    return ulps.where(finite | same, torch.inf).where(~same, 0.0)


def _histogram(side: _Side) -> tuple[tuple[float, int], ...]:
    if side.truth is None or side.actual is None:
        return ()
    ulps = _ulps(side, side.truth).reshape(-1)
    edges = torch.tensor([0.0, *(2.0**power for power in range(-1, _BINS - 2))])
    bins = torch.bucketize(ulps, edges.to(torch.float64), right=True) - 1
    counts = torch.bincount(bins.clamp_(0, len(edges) - 1), minlength=len(edges))
    last = int(counts.nonzero().max()) + 1 if int(counts.sum()) else 0
    pairs = zip(edges[:last].tolist(), counts[:last].tolist(), strict=True)
    return tuple((float(edge), int(count)) for edge, count in pairs)


def _elements(left: _Side, right: _Side) -> tuple[Element, ...]:
    seen, exact = right if right.actual is not None else left, right.truth
    if exact is None:
        exact = left.truth
    elif left.truth is None and left.actual is not None:
        seen = left  # how far it is from float64 is the question, of what cannot be replayed itself
    against = exact if exact is not None else left.actual
    if seen.actual is None or against is None or against.shape != seen.actual.shape:
        return ()
    ulps = _ulps(seen, against)
    count = min(_WORST, ulps.numel())
    found = []
    for flat in ulps.reshape(-1).topk(count).indices.tolist():
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), ulps.shape))
        distance = float(ulps[index])
        if distance == 0.0:
            break
        found.append(
            Element(index, _at(left.actual, index), _at(right.actual, index),
                    _at(exact, index), distance)
        )  # fmt: skip
    return tuple(found)


def _at(tensor: Tensor | None, index: tuple[int, ...]) -> float | None:
    if tensor is None or len(index) != tensor.dim():
        return None
    if any(i >= size for i, size in zip(index, tensor.shape, strict=True)):
        return None  # the other run's tensor is smaller
    return float(tensor[index])
