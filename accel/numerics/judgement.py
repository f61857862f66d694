"""The rule of `compare`: which tensors are out of budget, and why.

Each run carries the float64 truth of its own parameters, inputs and output gradients, so its error
is that of its engine alone, whatever the other run did. A candidate's error may be twice the
reference's plus the rounding of the dtype (`accel_kernels.budgets`), where the reference's is not
believed below what is typical (`accel.numerics.floors`).

Errors of gradients are relative to their scales and come from float64 backwards through the run's
own values (`accel.numerics.entries.Response` says why).

With equal parameters, input and arguments the two float64 truths must agree as well: if they do
not, the programs differ (another formula, another eps), not their engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from accel.numerics.encoding import dtype_named
from accel.numerics.entries import GRADIENT_PHASES, Entry, Key
from accel.numerics.floors import Floors
from accel.numerics.measures import Measured
from accel.numerics.reader import Recording
from accel_kernels import budgets
from accel_kernels.budgets import Budget, Deviation

Status = Literal["equal", "within", "out", "unchecked"]

_SAME_PROGRAM = 2.0**-30  # float64 on two machines differs by 1e-15; float32 could not tell 1e-9
_SAME_FLOAT64_PROGRAM = 2.0**-40
_COTANGENT = 16.0  # how much more than independent noise a difference of output gradients may do
_MEANINGLESS = 0.5  # a reference this far from its own truth has none


@dataclass(frozen=True)
class Judged:
    """One tensor and what is said of it.

    Attributes:
        measured: Its errors.
        allowed: The budget of the candidate's error; None without a truth.
        status: `equal` bit for bit, `within` its budget, `out` of it, or `unchecked`.
        kind: Why it is out: `engine`, `program`, `values`, `dtype` or `shape`; else empty.
        reason: The same in words; for `unchecked`, what is missing.
    """

    measured: Measured
    allowed: Budget | None
    status: Status
    kind: str = ""
    reason: str = ""

    @property
    def share(self) -> float:
        """How much of the rms budget the candidate's error uses up; 0 without a budget."""
        error = self.measured.error_candidate
        if self.allowed is None or error is None:
            return 0.0
        return error.rms / self.allowed.rms if self.allowed.rms > 0 else float(error.rms > 0)


class Judge:
    """Judges the tensors of one comparison.

    Attributes:
        cotangents: Per call of the model, how far the gradients of its outputs differ.

    Args:
        everything: All measured tensors.
        dtypes: The coarsest dtypes behind each tensor, of the reference and of the candidate.
        reference: The recording that is believed.
        comparable: Calls whose float64 truths must agree.
        explained: Whether parameters or autocast say that the candidate computes in other dtypes.
        budget: An explicit budget for the distance of the two runs, in place of truths.
    """

    def __init__(
        self,
        everything: Iterable[Measured],
        dtypes: tuple[Mapping[Key, torch.dtype], Mapping[Key, torch.dtype]],
        *,
        reference: Recording,
        comparable: frozenset[int],
        explained: bool,
        budget: Budget | None,
    ) -> None:
        self._all = list(everything)
        self._dtypes = dtypes
        self._comparable, self._explained, self._budget = comparable, explained, budget
        self._floors = Floors(self._all, reference)
        self.cotangents = _cotangent_distances(self._all, reference)

    def judged(self) -> list[Judged]:
        """Everything, judged, in execution order."""
        return [self._one(one) for one in self._all]

    def _one(self, one: Measured) -> Judged:
        if one.reference.shape != one.candidate.shape:
            shapes = f"{list(one.candidate.shape)} against {list(one.reference.shape)}"
            return Judged(one, None, "out", "shape", f"has shape {shapes}")
        if not self._explained and _is_coarser(one.candidate, one.reference):
            dtypes = f"{one.candidate.dtype} where the reference computes in {one.reference.dtype}"
            return Judged(one, None, "out", "dtype", f"computes in {dtypes}")
        if one.unequal > 0:
            return Judged(one, None, "out", "values", f"differs in {one.unequal} elements")
        if self._budget is not None:
            return _against(one, one.distance, self._budget)
        return self._against_truth(one)

    def _against_truth(self, one: Measured) -> Judged:
        unchecked = self._why_unchecked(one)
        if unchecked is not None:
            return Judged(one, None, "equal") if one.is_equal else _unchecked(one, unchecked)
        allowed = self._allowed(one)
        if one.is_equal:
            return Judged(one, allowed, "equal")
        programs = self._programs_differ(one)
        if programs is not None:
            return Judged(one, allowed, "out", "program", programs)
        return _against(one, one.error_candidate, allowed)

    def _why_unchecked(self, one: Measured) -> str | None:
        if one.distance is None:
            return "only its digest was recorded"
        if one.error_reference is None or one.error_candidate is None:
            return "it has no float64 reference"
        if not one.has_own_truth and one.reference.root not in self._comparable:
            return "the candidate has no float64 reference, and other parameters by now"
        if one.error_reference.rms > _MEANINGLESS:
            return (
                "the reference's float64 model does not describe it (does the loss use the model "
                "other than through its outputs?)"
            )
        return None

    def _allowed(self, one: Measured) -> Budget:
        coarse = self._dtype(one)
        scale = self._coarsening(one.key)
        error = one.error_reference or Deviation(0.0, 0.0)
        floor = self._floors.of(one, coarse)
        # Measured against the reference's truth, a gradient also shows its other beginning.
        others = 0.0 if one.has_own_truth else _COTANGENT * self._cotangent(one)
        return budgets.budget(
            Deviation(error.rms * scale, error.worst * scale),
            coarse,
            floor=Deviation(floor.rms * scale + others, floor.worst * scale + others),
        )

    def _dtype(self, one: Measured) -> torch.dtype:
        found = [one_run.get(one.key, torch.float32) for one_run in self._dtypes]
        return max(found, key=budgets.unit_roundoff)

    def _coarsening(self, key: Key) -> float:
        """How much coarser than the reference the candidate computes.

        Errors in units of the dtype's rounding are what carries over from one to the other.
        """
        left, right = (budgets.unit_roundoff(run.get(key, torch.float32)) for run in self._dtypes)
        return max(1.0, right / left)

    def _programs_differ(self, one: Measured) -> str | None:
        if one.programs is None or one.reference.root not in self._comparable:
            return None
        is_float64 = self._dtype(one) == torch.float64
        allowed = _SAME_FLOAT64_PROGRAM if is_float64 else _SAME_PROGRAM
        if one.key.phase in GRADIENT_PHASES:
            allowed = (allowed + _COTANGENT * self._cotangent(one)) * one.sensitivity[0]
        distance = one.programs
        if distance.rms <= allowed and not distance.nonfinite:
            return None
        said = f"{distance.rms:.3g}" if not distance.nonfinite else "NaN or infinity"
        return (
            f"computes another function: in float64, from equal parameters and input, the two "
            f"programs differ by {said} (relative rms) where {allowed:.2g} is explained"
        )

    def _cotangent(self, one: Measured) -> float:
        """How far the gradients that reached the outputs differ, in the calls that matter here."""
        if one.key.phase != "parameter_gradient":
            return self.cotangents.get(one.reference.root, 0.0)
        return max(self.cotangents.values(), default=0.0)


def _is_coarser(one: Entry, other: Entry) -> bool:
    """Whether the dtypes differ, and not only by `one` being the finer floating-point dtype."""
    a, b = dtype_named(one.dtype), dtype_named(other.dtype)
    if a == b or not (a.is_floating_point and b.is_floating_point):
        return a != b
    return budgets.unit_roundoff(a) >= budgets.unit_roundoff(b)


def _unchecked(one: Measured, why: str) -> Judged:
    return Judged(one, None, "unchecked", reason=why)


def _against(one: Measured, error: Deviation | None, allowed: Budget) -> Judged:
    reason = None if error is None else allowed.exceeded_by(error)
    if reason is not None and not one.is_equal:
        return Judged(one, allowed, "out", "engine", f"is out of budget: {reason}")
    return Judged(one, allowed, "equal" if one.is_equal else "within")


def _cotangent_distances(everything: Iterable[Measured], reference: Recording) -> dict[int, float]:
    """Per call of the model, how far the gradients that reached its outputs differ."""
    roots = {(call.module, call.call) for call in reference.calls}
    found: dict[int, float] = {}
    for one in everything:
        key = one.key
        if key.phase == "gradient" and (key.module, key.call) in roots and one.distance is not None:
            root = one.reference.root
            found[root] = max(found.get(root, 0.0), one.distance.rms)
    return found
