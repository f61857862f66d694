"""Collectives, checked from the recordings of all ranks of one run.

A reduction's output must be the sum (mean, largest, least) of what the ranks put in, and the same
on all of them bit for bit. Where elements were kept that is computed in float64; where only
sketches were, sums and means are, since sketches of addends add up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from accel.numerics.comparing.comparison import Run, Verdict
from accel.numerics.comparing.contents import Contents, is_same, rounding
from accel.numerics.comparing.gathers import (
    BROADCASTS,
    GATHERS,
    LISTS,
    SCATTERS,
    Wrong,
    misbroadcast,
    misgathered,
    mislisted,
    misscattered,
)
from accel.numerics.comparing.groups import Part, group_of, groups_of, name_of, parts_of
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.storage.entries import Key, Operator
from accel_kernels.sketch import Sketch

# A sum of n addends in a dtype of unit roundoff u errs by at most (n - 1) u times the sum of their
# magnitudes, in any order; sketches estimate L2 norms to within a factor of 1.4.
_SLACK = 2.0
_ESTIMATE = 1.4
_REDUCTIONS = ("allreduce", "all_reduce")
_CHECKED = (*_REDUCTIONS, *BROADCASTS, *GATHERS, *LISTS, *SCATTERS)

Combine = Callable[[Sequence[Tensor]], Tensor]
_COMBINED: dict[str, Combine] = {
    "sum": lambda tensors: torch.stack(list(tensors)).sum(0),
    "avg": lambda tensors: torch.stack(list(tensors)).mean(0),
    "max": lambda tensors: torch.stack(list(tensors)).amax(0),
    "min": lambda tensors: torch.stack(list(tensors)).amin(0),
    "product": lambda tensors: torch.stack(list(tensors)).prod(0),
}


def checked(steps: Mapping[int, RecordedStep], run: Run) -> list[Verdict]:
    """The first collective of a run that did not do what it should, as a finding.

    Args:
        steps: One step of each rank.
        run: Which run it is.
    """
    contents = {rank: Contents(step) for rank, step in steps.items()}
    by_key: dict[Key, list[tuple[int, Operator]]] = defaultdict(list)
    for rank, step in steps.items():
        for operator in step.operators:
            if name_of(operator) in _CHECKED:
                by_key[operator.key].append((rank, operator))
    for key, members in by_key.items():
        for group in groups_of(members):
            if len(group) < 2:
                continue
            for parts in parts_of(contents, group):
                wrong = _wrong(parts)
                if wrong is not None:
                    place = group[0][1].place
                    sentence = f"{key} of the {run} {wrong[0]}"
                    return [Verdict("faulty operator", sentence, wrong[1], key, place, run)]
    return []


def _wrong(parts: Sequence[Part]) -> Wrong | None:
    """What is wrong with one collective, and the facts; None if nothing is."""
    name, ranks = name_of(parts[0].operator), group_of(parts[0].operator)
    if name in GATHERS:
        return misgathered(parts)
    if name in SCATTERS:
        return misscattered(parts, _asked(parts[0].operator))
    if name in LISTS:
        return None if ranks is None else mislisted(parts, ranks)
    if not all(part.is_alone or _is_kept(part) for part in parts):
        return None  # sketches at places in a whole tell nothing of a sum
    if name in BROADCASTS and ranks is not None:
        return misbroadcast(parts, ranks)
    return _unequal(parts) if ranks is None else _misreduced(parts)


def _is_kept(part: Part) -> bool:
    return part.contents.step.has_tensor(part.given) and part.contents.step.has_tensor(part.result)


def _misreduced(parts: Sequence[Part]) -> Wrong | None:
    """The same of a reduction whose group is known: which rank has a wrong result."""
    for part in parts:
        others = [other for other in parts if other is not part]
        apart = _misfit([part, *others])
        if apart is not None:
            wrong = f"is not the {apart[0]} of what its ranks put in, on rank {part.rank}"
            return wrong, (apart[1],)
    other = next((part for part in parts if not _equal(parts[0], part)), None)
    if other is None:
        return None
    ranks = f"ranks {parts[0].rank} and {other.rank}"
    return f"left different results on {ranks}", (f"{ranks} should have the same bits",)


def _unequal(parts: Sequence[Part]) -> Wrong | None:
    """The same where the recording does not say who is in the group."""
    groups = _groups(parts)
    for group in groups:
        if len(group) == 1 and len(parts) > 1 and not _is_alone(group[0], parts):
            ranks = ", ".join(str(part.rank) for part in parts)
            facts = (f"ranks {ranks} have {len(groups)} different results",)
            return "left other results on other ranks", facts
        if name_of(group[0].operator) in _REDUCTIONS and len(group) > 1:
            apart = _misfit(group)
            if apart is not None:
                return f"is not the {apart[0]} of what its ranks put in", (apart[1],)
    return None


def _groups(parts: Sequence[Part]) -> list[list[Part]]:
    """The ranks with equal results: those of one process group, and of no other if it is right."""
    groups: list[list[Part]] = []
    for part in parts:
        found = next((group for group in groups if _equal(group[0], part)), None)
        if found is None:
            groups.append([part])
        else:
            found.append(part)
    return groups


def _equal(a: Part, b: Part) -> bool:
    blobs = a.contents.blob(a.result), b.contents.blob(b.result)
    if None not in blobs:
        return blobs[0] == blobs[1]
    return is_same(a.contents.sketch(a.result), b.contents.sketch(b.result))


def _is_alone(part: Part, parts: Sequence[Part]) -> bool:
    """Whether a rank may be the only one of its group: its result is what it put in."""
    contents = part.contents
    known = contents.sketch(part.given), contents.sketch(part.result)
    if None in known:
        return True  # nobody can tell
    alone = is_same(*known)
    return alone and not any(other is not part and _equal(other, part) for other in parts)


def _misfit(group: Sequence[Part]) -> tuple[str, str] | None:
    """The reduction that a group asked for and did not get, and by how much it is off."""
    asked = _asked(group[0].operator)
    tries = (asked,) if asked is not None else tuple(_COMBINED)
    offs = {}
    for name in tries:
        off = _off(group, name)
        if off is None or off <= 1.0:
            return None
        offs[name] = off
    name = min(offs, key=offs.__getitem__)
    words = name if asked is not None else "sum, mean, largest or least"
    return words, f"it is off by {offs[name]:.3g} times what rounding a {name} in any order can do"


def _asked(operator: Operator) -> str | None:
    asked = operator.arguments.get("reduce_op")
    text = str(getattr(asked, "text", asked)).lower().rpartition(".")[2]
    text = {"mean": "avg", "redoptype.sum": "sum"}.get(text, text)
    return text if text in _COMBINED else None


def _off(group: Sequence[Part], name: str) -> float | None:
    """The error of a result over the largest that rounding explains; None if nobody can tell."""
    if all(part.contents.step.has_tensor(part.given) for part in group) and group[
        0
    ].contents.step.has_tensor(group[0].result):
        return _off_elements(group, name)
    if name not in ("sum", "avg"):
        return None
    return _off_sketches(group, name)


def _off_elements(group: Sequence[Part], name: str) -> float:
    given = [part.contents.step.tensor(part.given).to(torch.float64) for part in group]
    first = group[0]
    result = first.contents.step.tensor(first.result)
    exact = _COMBINED[name](given)
    unit = rounding(first.contents.value(first.result).dtype)
    magnitude = torch.stack(given).abs().sum(0)
    if name == "product":
        magnitude = exact.abs()
    allowed = _SLACK * len(group) * unit * magnitude
    error = (result.to(torch.float64) - exact).abs()
    finite = exact.isfinite()
    if not torch.equal(result.isfinite(), finite):
        return math.inf
    error, allowed = error.where(finite, 0.0), allowed.where(finite, 0.0)
    return float((error / allowed.clamp(min=torch.finfo(torch.float32).tiny)).max())


def _off_sketches(group: Sequence[Part], name: str) -> float | None:
    given = [part.contents.sketch(part.given) for part in group]
    result = group[0].contents.sketch(group[0].result)
    known = [one for one in given if one is not None]
    if result is None or len(known) < len(given) or any(map(_has_holes, [*known, result])):
        return None
    count = len(known) if name == "avg" else 1
    sums = [math.fsum(column) / count for column in zip(*(one.sums for one in known), strict=True)]
    error = math.dist(sums, result.sums)
    unit = rounding(group[0].contents.value(group[0].result).dtype)
    allowed = _SLACK * len(group) * unit * math.fsum(one.norm for one in known) / count
    tiny = 1e-13 * (result.norm + math.fsum(one.norm for one in known))
    return error / (_ESTIMATE * allowed + tiny) if error else 0.0


def _has_holes(one: Sketch) -> bool:
    return any(one.mask[:3])
