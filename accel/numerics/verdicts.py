"""The verdict of a comparison, in one sentence: the first thing that explains a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accel.numerics.beginnings import Preconditions
from accel.numerics.entries import Entry, Key
from accel.numerics.judgement import Judge, Judged
from accel.numerics.naming import Divergence, first_divergence
from accel.numerics.reader import Recording

# Gradients at the outputs that differ by more than this, and by more than so many times what the
# outputs do, come from another loss. Rounding reached 1.5 times in our benign runs.
_LEAST_OTHER_LOSS, _TIMES_OTHER_LOSS = 1e-3, 64.0


def earliest(
    a: Recording,
    b: Recording,
    judged: Sequence[Judged],
    missing: Sequence[Key],
    extra: Sequence[Key],
) -> Divergence | None:
    """The first divergence, in a value or in structure."""
    classes = {entry.key.module: entry.module_class for entry in a.entries.values()}
    found = first_divergence(judged, classes)
    values_at = math.inf if found is None else _place_of_first_out(judged)
    missing_at = a.entries[missing[0]].sequence if missing else math.inf
    extra_at = _place_in(a, b, extra[0]) if extra else math.inf
    if values_at <= min(missing_at, extra_at):
        return found
    if missing_at <= extra_at:
        return _structural(a.entries[missing[0]], "is missing in the candidate")
    return _structural(b.entries[extra[0]], "is only in the candidate")


def _place_of_first_out(judged: Sequence[Judged]) -> float:
    return next(one.measured.reference.sequence for one in judged if one.status == "out")


def _place_in(a: Recording, b: Recording, extra: Key) -> float:
    """Where a tensor of the candidate would have its place in the reference's order."""
    place = -1.0
    for key in b.entries:
        if key == extra:
            break
        if key in a.entries:
            place = max(place, a.entries[key].sequence)
    return place + 0.5


def _structural(entry: Entry, reason: str) -> Divergence:
    where = f"its {entry.key.phase.replace('_', ' ')} {entry.key.path}, call {entry.key.call},"
    return Divergence(entry.key.module, entry.module_class, where, reason, entry.key)


def other_loss(judge: Judge, judged: Sequence[Judged]) -> str | None:
    """Whether the gradients that reached the outputs differ by more than the outputs explain."""
    outputs = [
        one.measured.distance.rms
        for one in judged
        if one.measured.key.phase == "forward" and one.measured.distance is not None
    ]
    explained = max(_LEAST_OTHER_LOSS, _TIMES_OTHER_LOSS * max(outputs, default=0.0))
    for root, distance in judge.cotangents.items():
        if distance > explained:
            return (
                f"different loss: the gradients that reach the outputs of call {root} differ by "
                f"{distance:.3g} (relative rms), which their values do not explain; compare the "
                "losses, their scaling and the targets"
            )
    return None


def problem(
    begun: Preconditions,
    loss: str | None,
    first: Divergence | None,
    unchecked: Sequence[Judged],
) -> str | None:
    """The verdict if the runs do not agree: the first thing wrong, in order of what explains."""
    if begun.differences:
        kind = begun.differences[0].kind
        same = [one for one in begun.differences if one.kind == kind]
        more = f", and {len(same) - 1} more" if len(same) > 1 else ""
        return f"Different {kind}: {same[0].text}{more}; make them equal and record again."
    is_backward = first is None or (first.key is not None and "gradient" in first.key.phase)
    if loss is not None and is_backward:
        return f"Probably a {loss}."
    if first is not None:
        return f"{first.name} diverges first: {first.where} {first.reason}."
    if unchecked:
        reasons = sorted({one.reason for one in unchecked})
        return (
            f"Cannot decide: {len(unchecked)} tensors differ and could not be checked, the first "
            f"being {unchecked[0].measured.key} ({'; '.join(reasons)})."
        )
    return None


def agreement(judged: Sequence[Judged]) -> str:
    """The verdict if they agree."""
    equal = sum(one.status == "equal" for one in judged)
    if equal == len(judged):
        return f"They are the same: all {equal} tensors are equal bit for bit."
    used = max(one.share for one in judged if one.status == "within")
    return (
        f"They agree: {len(judged) - equal} tensors differ within their error budgets (at most "
        f"{used:.0%} of one used up), {equal} are equal bit for bit."
    )
