"""Comparing two recordings: do they agree, and if not, which operator is at fault."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from accel.numerics.comparing import ranks
from accel.numerics.comparing.comparison import Comparison, Run, StepSummary
from accel.numerics.comparing.environment import differences
from accel.numerics.comparing.interface import RecordedRun
from accel.numerics.comparing.stages import Options, Outcome
from accel.numerics.comparing.wording import listed
from accel.numerics.comparing.zoom import command, window
from accel.numerics.storage.manifest import Manifest


def compare(
    reference: RecordedRun | str | os.PathLike[str],
    candidate: RecordedRun | str | os.PathLike[str],
    *,
    scale: float = 1.0,
    replay: bool = True,
    step: int | None = None,
) -> Comparison:
    """Say whether two recordings agree, and if not, which operator is at fault.

    The stages and their order are in docs/compare.md: what the runs begin with, their programs,
    non-finite elements, the first divergence by sketches, isolated errors by float64 replay where
    elements were kept, and what each operator adds to the loss difference.

    Args:
        reference: The recording that is believed: a path, or what `load_recording` returned.
        candidate: The recording that is checked.
        scale: How many times the candidate's gradients are the reference's: 1024 if only the
            candidate scales its loss by 1024. They are divided by it before they are compared.
        replay: Whether operators whose elements were kept are replayed in float64, which takes
            some seconds for each million elements. Without it no operator is called faulty.
        step: Compare only this step; all steps that both have if None.

    Returns:
        The comparison; its rows are those of the first step that does not agree, else of the first
        that is not the same, else of the first.

    Raises:
        ValueError: A recording is unreadable or damaged, they have no step in common, or `scale`
            is no positive number.
    """
    if not 0.0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number such as 1024.0, got {scale!r}")
    a, b = _opened(reference), _opened(candidate)
    options = Options(scale=scale, replay=replay)
    outcomes: list[Outcome] = []
    for index in _steps(a, b, step):
        outcomes.append(ranks.compared(a, b, index, options))
    wrong = (one for one in outcomes if not one.ok)
    unlike = (one for one in outcomes if one.findings[0].kind != "same")
    deciding = next(wrong, None) or next(unlike, outcomes[0])
    return _comparison(a, b, outcomes, deciding)


def _opened(recording: RecordedRun | str | os.PathLike[str]) -> RecordedRun:
    if isinstance(recording, (str, os.PathLike)):
        from accel.numerics.storage.reader import load_recording

        return load_recording(Path(recording))
    return recording


def _steps(a: RecordedRun, b: RecordedRun, asked: int | None) -> list[int]:
    known = [{index for rank in run.ranks.values() for index in rank.steps} for run in (a, b)]
    common = sorted(known[0] & known[1])
    if asked is not None:
        common = [index for index in common if index == asked]
    if not common:
        lists = [", ".join(map(str, sorted(one))) or "none" for one in known]
        wanted = "no step" if asked is None else f"no step {asked}"
        raise ValueError(
            f"the recordings have {wanted} in common: {a.path} has {lists[0]}, {b.path} has "
            f"{lists[1]}; record the same steps of both"
        )
    return common


def _uncommon(a: RecordedRun, b: RecordedRun, compared: list[int]) -> list[str]:
    """Recorded steps that were not compared, because only one run has them."""
    notes = []
    for (name, run), other in zip((("reference", a), ("candidate", b)), (b, a), strict=True):
        theirs = {index for rank in other.ranks.values() for index in rank.steps}
        own = {index for rank in run.ranks.values() for index in rank.steps} - theirs
        if own and compared:
            notes.append(f"only the {name} has {_steps_said(sorted(own))}: not compared")
    return notes


def _steps_said(steps: list[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {listed(list(map(str, steps)))}"


def _manifest(run: RecordedRun) -> Manifest:
    return next(rank.manifest for _, rank in sorted(run.ranks.items()))


def _comparison(
    a: RecordedRun, b: RecordedRun, outcomes: list[Outcome], deciding: Outcome
) -> Comparison:
    manifests = _manifest(a), _manifest(b)
    incomplete = _incomplete({"reference": a, "candidate": b}, [one.step for one in outcomes])
    uncommon = _uncommon(a, b, [one.step for one in outcomes])
    drifts = [str(one.drift) for one in outcomes if one.drift is not None and one.drift.by_size]
    diverging = [row for row in deciding.rows if row.status == "diverges"]
    return Comparison(
        verdict=deciding.findings[0],
        findings=tuple(deciding.findings),
        reference=os.fspath(a.path),
        candidate=os.fspath(b.path),
        levels=(manifests[0].level, manifests[1].level),
        step=deciding.step,
        steps=tuple(
            StepSummary(one.step, one.findings[0].kind, one.findings[0].sentence)
            for one in outcomes
        ),
        environment=differences(*manifests),
        preconditions=tuple(deciding.preconditions),
        rows=tuple(deciding.rows),
        unmatched=tuple(deciding.unmatched),
        modules=tuple(deciding.modules),
        coverage=tuple(deciding.coverage),
        attribution=deciding.attribution,
        ranks=tuple(deciding.ranks),
        divergence=diverging[0].name if diverging else None,
        zoom=_zoom(a, b, deciding),
        notes=tuple(dict.fromkeys([*incomplete, *uncommon, *drifts, *deciding.notes])),
    )


def _zoom(a: RecordedRun, b: RecordedRun, outcome: Outcome) -> tuple[str, ...]:
    """Commands where elements are needed and not there."""
    is_drift = outcome.drift is not None and not outcome.drift.explained
    if outcome.findings[0].kind != "cannot decide" or is_drift:
        return ()
    needed = [row for row in outcome.rows if row.status == "diverges"]
    only = window(needed)
    if not only:
        return ()
    known: dict[Run, RecordedRun] = {"candidate": b, "reference": a}
    runs = [run for name, run in known.items() if name in outcome.lacking]
    return tuple(command(run.path, _manifest(run), outcome.step, only) for run in runs)


def _incomplete(runs: Mapping[str, RecordedRun], steps: Sequence[int]) -> list[str]:
    notes = []
    for name, run in runs.items():
        for number, rank in sorted(run.ranks.items()):
            if not rank.manifest.complete:
                how = rank.manifest.error or "the run was killed, or still runs"
                notes.append(f"the {name} is incomplete (rank {number}): {how}")
            notes += [
                f"the {name}'s step {step.index} was cut short: what is there is compared"
                for step in (rank.steps[index] for index in steps if index in rank.steps)
                if step.end is None
            ]
    return notes
