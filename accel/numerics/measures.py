"""How far each tensor of two aligned recordings is from its float64 truth, and from its twin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accel.numerics.encoding import dtype_named
from accel.numerics.entries import Entry, Key
from accel.numerics.reader import Recording
from accel_kernels import budgets
from accel_kernels.budgets import Deviation


@dataclass(frozen=True)
class Measured:
    """One tensor of both runs.

    Attributes:
        reference: Its entry in the reference.
        candidate: Its entry in the candidate.
        is_equal: The two are equal, bit for bit.
        distance: Candidate against reference; None if their shapes differ or they are no floats.
        error_reference: Reference against its float64 truth; None without one. Errors of gradients
            are relative to their scales (`entries.Response`), others to the truth.
        error_candidate: Candidate against its own float64 truth, else against the reference's.
        has_own_truth: Whether it was its own.
        programs: The candidate's float64 truth against the reference's; None unless both exist.
        unequal: For integers and booleans, how many elements differ.
    """

    reference: Entry
    candidate: Entry
    is_equal: bool
    distance: Deviation | None = None
    error_reference: Deviation | None = None
    error_candidate: Deviation | None = None
    has_own_truth: bool = True
    programs: Deviation | None = None
    unequal: int = 0

    @property
    def key(self) -> Key:
        """Which tensor it is."""
        return self.reference.key

    @property
    def sensitivity(self) -> tuple[float, float]:
        """The scale of a gradient over its own size, at least 1."""
        return _sensitivity(self.reference)


def measured(reference: Recording, candidate: Recording) -> Iterator[Measured]:
    """Measure every tensor that both recordings hold, in the reference's execution order.

    Raises:
        ValueError: A file is damaged.
    """
    for key, a in reference.entries.items():
        b = candidate.entries.get(key)
        if b is not None and key.phase != "parameter":
            yield _one(reference, candidate, a, b)


def _one(reference: Recording, candidate: Recording, a: Entry, b: Entry) -> Measured:
    a, b = _with_response(reference, a), _with_response(candidate, b)
    is_equal = a.digest == b.digest
    if a.shape != b.shape or a.blob is None or b.blob is None:
        return Measured(a, b, is_equal)
    left = reference.tensor(a)
    right = left if is_equal else candidate.tensor(b)
    if not (_is_float(left) and _is_float(right)):
        unequal = int((left != right).sum())
        return Measured(a, b, unequal == 0, unequal=unequal)
    truth, own_truth = _truth(reference, a), _truth(candidate, b)
    against = truth if own_truth is None else own_truth
    return Measured(
        a,
        b,
        is_equal,
        distance=budgets.deviation(right, _exact(left)),
        error_reference=None if truth is None else _error(a, left, truth, scale=a),
        error_candidate=None if against is None else _error(b, right, against, scale=a),
        has_own_truth=own_truth is not None,
        programs=_distance(own_truth, truth),
    )


def _error(entry: Entry, value: Tensor, truth: Tensor, *, scale: Entry) -> Deviation:
    if entry.response is not None:
        return Deviation(*entry.response.error)
    error = budgets.deviation(value, truth)
    rms, worst = _sensitivity(scale)
    return Deviation(error.rms / rms, error.worst / worst, error.nonfinite)


def _sensitivity(entry: Entry) -> tuple[float, float]:
    rms, worst = (1.0, 1.0) if entry.response is None else entry.response.sensitivity
    return max(rms, 1.0), max(worst, 1.0)


def _distance(one: Tensor | None, other: Tensor | None) -> Deviation | None:
    return None if one is None or other is None else budgets.deviation(one, other)


def _with_response(recording: Recording, entry: Entry) -> Entry:
    truth = recording.truths.get(entry.key)
    return entry if truth is None else replace(entry, response=truth.response)


def _truth(recording: Recording, entry: Entry) -> Tensor | None:
    truth = recording.truths.get(entry.key)
    if truth is None:
        return None
    if truth.shape != entry.shape or dtype_named(truth.dtype) not in _TRUTHS:
        raise ValueError(
            f"{recording.path}: the truth of {entry.key} is {truth.dtype} {list(truth.shape)} and "
            f"its tensor {entry.dtype} {list(entry.shape)}; record it again"
        )
    return recording.tensor(truth)


_TRUTHS = (torch.float64, torch.complex128)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
