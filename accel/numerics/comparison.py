"""Comparing two recordings: do they agree, and if not, which module diverges first, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.numerics import verdicts
from accel.numerics.beginnings import (
    Preconditions,
    environment_differences,
    preconditions,
)
from accel.numerics.entries import Key
from accel.numerics.judgement import Judge, Judged
from accel.numerics.measures import measured
from accel.numerics.naming import Divergence
from accel.numerics.precisions import coarsest_dtypes
from accel.numerics.reader import Recording, load_recording
from accel_kernels.budgets import Budget


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        ok: Whether every tensor was checked and is within its budget, from equal beginnings.
        verdict: The finding in one sentence.
        first_divergence: The module that diverges first, or None.
        entries: Every tensor that both recordings hold, judged, in execution order.
        missing: Tensors that only the reference holds.
        extra: Tensors that only the candidate holds.
        environment: Versions, chip, switches and seed where they differ: (reference, candidate).
        notes: What else should be known: rounded parameters, missing references, dropped lines.
        reference: Path of the reference.
        candidate: Path of the candidate.
    """

    ok: bool
    verdict: str
    first_divergence: Divergence | None
    entries: tuple[Judged, ...]
    missing: tuple[Key, ...]
    extra: tuple[Key, ...]
    environment: dict[str, tuple[Any, Any]]
    notes: tuple[str, ...]
    reference: str
    candidate: str

    def count(self, status: str) -> int:
        """How many entries have a status (`equal`, `within`, `out`, `unchecked`)."""
        return sum(one.status == status for one in self.entries)

    def to_json(self) -> str:
        """The comparison as a JSON document."""
        from accel.numerics.presentation import as_json

        return as_json(self)

    def to_text(self, worst: int = 10) -> str:
        """The comparison for a terminal.

        Args:
            worst: How many of the tensors nearest to or beyond their budgets to list.
        """
        from accel.numerics.presentation import as_text

        return as_text(self, worst)

    def to_html(self) -> str:
        """The comparison as one self-contained page."""
        from accel.numerics.pages import as_html

        return as_html(self)


def compare(
    reference: Recording | str | os.PathLike[str],
    candidate: Recording | str | os.PathLike[str],
    *,
    budget: Budget | None = None,
) -> Comparison:
    """Say whether two recordings agree, and if not, which module diverges first.

    Tensors are aligned by phase, module path, call index and path inside the module's inputs or
    outputs. Each run is measured against the float64 truth that it carries, so no tolerance is
    chosen: the candidate may be twice as far from its truth as the reference is from its own,
    plus rounding (`accel_kernels.budgets`; the whole rule is in `accel.numerics.judgement`).
    Parameters and inputs are compared first, so that no module is blamed for other weights.

    Args:
        reference: The recording that is believed (a path, or what `load_recording` returned).
        candidate: The recording that is checked.
        budget: The largest distance between the two runs, relative to the reference. In place of
            the truths, for recordings made with `reference=False`.

    Returns:
        The comparison; it is `ok` only if nothing was left unchecked.

    Raises:
        ValueError: A recording is unreadable, or neither truth nor budget is there.
    """
    a, b = _opened(reference), _opened(candidate)
    if budget is None:
        _require_truth(a)
    begun = preconditions(a, b)
    judge = _judge(a, b, begun, budget)
    judged = judge.judged()
    missing = tuple(key for key in a.entries if key not in b.entries)
    extra = tuple(key for key in b.entries if key not in a.entries)
    first = verdicts.earliest(a, b, judged, missing, extra)
    unchecked = [one for one in judged if one.status == "unchecked"]
    problem = verdicts.problem(begun, verdicts.other_loss(judge, judged), first, unchecked)
    return Comparison(
        ok=problem is None,
        verdict=problem or verdicts.agreement(judged),
        first_divergence=first,
        entries=tuple(judged),
        missing=missing,
        extra=extra,
        environment=environment_differences(a, b),
        notes=_notes(a, b, begun, judged),
        reference=str(a.path),
        candidate=str(b.path),
    )


def _opened(recording: Recording | str | os.PathLike[str]) -> Recording:
    return recording if isinstance(recording, Recording) else load_recording(Path(recording))


def _require_truth(reference: Recording) -> None:
    if reference.truths:
        return
    reasons = sorted({failure.reason for failure in reference.failures})
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise ValueError(
        f"{reference.path} carries no float64 reference{why}: record it with reference=True, or "
        "pass an explicit budget=accel_kernels.budgets.Budget(rms=…, worst=…)"
    )


def _judge(a: Recording, b: Recording, begun: Preconditions, budget: Budget | None) -> Judge:
    return Judge(
        measured(a, b),
        (coarsest_dtypes(a), coarsest_dtypes(b)),
        reference=a,
        comparable=begun.comparable,
        explained=_dtypes_are_chosen(a, b),
        budget=budget,
    )


def _dtypes_are_chosen(a: Recording, b: Recording) -> bool:
    """Whether parameters, inputs or autocast say that the candidate computes in other dtypes."""
    if [call.autocast for call in a.calls] != [call.autocast for call in b.calls]:
        return True
    parameters = (key for key in a.entries if key.phase == "parameter" and key in b.entries)
    return any(a.entries[key].dtype != b.entries[key].dtype for key in parameters)


def _notes(
    a: Recording, b: Recording, begun: Preconditions, judged: Sequence[Judged]
) -> tuple[str, ...]:
    notes = [*(one.text for one in begun.differences), *begun.notes]
    for recording in (a, b):
        manifest = recording.manifest
        if not manifest.complete:
            how = manifest.error or "the run was killed"
            notes.append(f"{recording.path} is incomplete: {how}")
        if recording.dropped is not None:
            notes.append(f"{recording.path}: dropped {recording.dropped}")
        for failure in recording.failures:
            notes.append(
                f"{recording.path}: call {failure.root} has no float64 reference: {failure.reason}"
            )
        notes += [f"{recording.path}: {one.key}: {one.reason}" for one in recording.skipped[:3]]
    others = {
        f"{one.measured.candidate.dtype} against {one.measured.reference.dtype}"
        for one in judged
        if one.measured.candidate.dtype != one.measured.reference.dtype
    }
    notes += [f"computes in other dtypes: {text}" for text in sorted(others)]
    return tuple(dict.fromkeys(notes))
