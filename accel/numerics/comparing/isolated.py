"""How right each operator is by itself: float64 replay of what was kept, and `check` lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from accel.numerics.comparing import details, narrowing
from accel.numerics.comparing.comparison import Accuracy, Coverage, Row, Run
from accel.numerics.comparing.contents import Contents, rounding
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.replayer import Replayer
from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.operators import is_view, why_nothing_to_check
from accel.numerics.replaying.recorded import is_checkable, signature_of
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Key, Operator

_RUNS: tuple[Run, ...] = ("reference", "candidate")
_WORDS: dict[str, Literal["faulty", "known inaccurate"]] = {
    "out": "faulty",
    "known": "known inaccurate",
}
_DETAILED = 30  # rows besides the flagged ones whose worst elements are kept


def replays(
    a: Contents, b: Contents, kernels: tuple[str | None, str | None] = (None, None)
) -> dict[Run, Replayer]:
    """What replays the operators of each run, and by whose kernels they were computed."""
    return {"reference": Replayer(a, kernels[0]), "candidate": Replayer(b, kernels[1])}


def judge(evidence: Evidence, replays: Mapping[Run, Replayer]) -> list[Coverage]:
    """Replay what was kept; fill in the accuracies, switches and details of the rows.

    Returns:
        How much of each run was checked; nothing for a run of which nothing was.
    """
    found: dict[Run, dict[int, Accuracy]] = {}
    coverage: list[Coverage] = []
    for run in _RUNS:
        contents = evidence.contents(run)
        known = accuracies(contents, replays[run])
        if known:
            found[run] = known
            coverage.append(covered(run, contents, known))
    evidence.accuracies = found
    evidence.switches = {
        (run, operator): explanation
        for run, known in found.items()
        for operator, explanation in _switches(evidence, run, known, replays[run]).items()
    }
    evidence.rows = _with_accuracies(evidence)
    evidence.rows = details.added(evidence, replays, _detailed(evidence.rows))
    _accumulate(evidence, replays)
    return coverage


def accuracies(contents: Contents, replayer: Replayer) -> dict[int, Accuracy]:
    """How right the operators of a run are, by id; none for those with nothing to check."""
    found: dict[int, Accuracy] = {}
    signatures: dict[object, tuple[Key, Accuracy]] = {}
    for operator in contents.step.operators:
        if not is_checkable(operator):
            continue
        check = contents.step.checks.get(operator.id)
        if replayer.can(operator) and operator.produced:
            found[operator.id] = _replayed(replayer, operator)
        elif check is not None:
            found[operator.id] = accuracy_of(Judged.from_dict(check.fields))
            signature = signature_of(operator, contents.step.values)
            signatures[signature] = operator.key, found[operator.id]
        elif contents.step.checks:
            same = signatures.get(signature_of(operator, contents.step.values))
            if same is not None:
                found[operator.id] = replace(same[1], instance=same[0])
        elif any(map(contents.step.has_tensor, operator.produced)):
            reason = "what it was given was not kept"
            found[operator.id] = Accuracy("unchecked", reason)
    return found


def _replayed(replayer: Replayer, operator: Operator) -> Accuracy:
    try:
        return accuracy_of(replayer.judged(operator))
    except CannotReplayError as error:
        return Accuracy("unchecked", str(error))


def accuracy_of(judged: Judged) -> Accuracy:
    """A replay's verdict in the words of a comparison."""
    if judged.verdict == "unchecked":
        return Accuracy("unchecked", judged.reason or "")
    sixteen = judged.dtype in ("float16", "bfloat16")
    measured = judged.dtype is not None
    return Accuracy(
        verdict=_WORDS.get(judged.verdict, "right"),
        reason=judged.reason or "",
        rms=judged.R if measured else None,
        worst=judged.M if measured else None,
        misrounding=judged.misrounding if sixteen else None,
        limit_rms=judged.limit_R,
        limit_worst=judged.limit_M,
        limit_misrounding=judged.limit_misrounding,
    )


def _switches(
    evidence: Evidence, run: Run, known: Mapping[int, Accuracy], replayer: Replayer
) -> dict[int, str]:
    """Which faulty operators are right if their inputs are narrowed first, and to what."""
    found: dict[int, str] = {}
    for operator in evidence.contents(run).step.operators:
        accuracy = known.get(operator.id)
        if accuracy is not None and accuracy.verdict == "faulty" and replayer.can(operator):
            explanation = narrowing.explanation(replayer, operator)
            if explanation is not None:
                found[operator.id] = explanation
    return found


def _with_accuracies(evidence: Evidence) -> list[Row]:
    rows = []
    ours = evidence.accuracies.get("reference", {})
    theirs = evidence.accuracies.get("candidate", {})
    by_key = evidence.a.step.by_key
    for one, row in zip(evidence.measured, evidence.rows, strict=True):
        if one.operators is not None:
            left, right = ours.get(one.operators.a.id), theirs.get(one.operators.b.id)
        else:
            maker = None if row.key is None else by_key.get(row.key)
            left = None if maker is None else ours.get(maker.id)
            made = evidence.b.step.producers.get(evidence.b.root(one.pair.b))
            right = None if made is None or row.aligned != "content" else theirs.get(made)
        rows.append(replace(row, reference=left, candidate=right))
    return rows


def _accumulate(evidence: Evidence, replays: Mapping[Run, Replayer]) -> None:
    """Put each value's distance from the step computed in float64 into the rows."""
    known = {run: replays[run].accumulated() for run in evidence.accuracies}
    rows = []
    for one, row in zip(evidence.measured, evidence.rows, strict=True):
        left = _strayed(row.reference, known.get("reference", {}).get(one.pair.a), row.dtypes[0])
        right = _strayed(row.candidate, known.get("candidate", {}).get(one.pair.b), row.dtypes[1])
        rows.append(replace(row, reference=left, candidate=right))
    evidence.rows = rows


def _strayed(accuracy: Accuracy | None, error: float | None, dtype: str) -> Accuracy | None:
    unit = rounding(dtype)
    if accuracy is None or error is None or unit == 0.0:
        return accuracy
    return replace(accuracy, accumulated=error / unit)


def _detailed(rows: Sequence[Row]) -> set[int]:
    """The rows whose worst elements are worth keeping, by order."""

    def badness(row: Row) -> float:
        known = [one for one in (row.candidate, row.reference) if one is not None]
        worst = [one.worst for one in known if one.worst is not None]
        return max(worst, default=0.0)

    flagged = {
        row.order
        for row in rows
        if row.status == "diverges"
        or any(one and one.verdict == "faulty" for one in (row.candidate, row.reference))
    }
    ranked = sorted(rows, key=badness, reverse=True)[:_DETAILED]
    return flagged | {row.order for row in ranked if badness(row) > 0.0}


def covered(run: Run, contents: Contents, known: Mapping[int, Accuracy]) -> Coverage:
    """How much of a run was checked, as `accel replay` counts it."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, str] = {}
    for operator in contents.step.operators:
        op, accuracy = operator.key.op, known.get(operator.id)
        if not is_checkable(operator):
            counts["nothing"][_why_nothing(operator)] += 1
        elif accuracy is None or accuracy.verdict == "unchecked":
            counts["unchecked"][op] += 1
            why = "its elements were not kept" if accuracy is None else accuracy.reason
            reasons.setdefault(op, why)
        else:
            counts["checked" if accuracy.instance is None else "by_signature"][op] += 1
    return Coverage(
        run,
        dict(counts["checked"]),
        dict(counts["unchecked"]),
        reasons,
        counts["nothing"].total(),
        dict(counts["by_signature"]),
        dict(counts["nothing"]),
    )


def _why_nothing(operator: Operator) -> str:
    if is_view(operator.name, operator.overload):
        return "a view computes nothing"
    found = why_nothing_to_check(operator.name, operator.overload)
    return found or "it computes no tensor"


def errors(replayer: Replayer, operator: Operator) -> list[tuple[int, torch.Tensor]]:
    """Of each floating-point output its value's id and output - float64(inputs).

    Elements that are not finite on either side count as 0.

    Raises:
        CannotReplayError: There is no reference.
    """
    found = []
    outputs, truths = replayer.outputs(operator), replayer.truth(operator)
    for value, actual, truth in zip(operator.produced, outputs, truths, strict=True):
        if truth is not None and actual.is_floating_point() and actual.shape == truth.shape:
            error = actual.to(torch.float64) - truth
            found.append((value, error.where(error.isfinite(), 0.0)))
    return found
