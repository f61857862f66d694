"""Collectives, checked from the recordings of all ranks of one run.

A reduction's output must be the sum (mean, largest, least) of what the ranks put in, and the same
on all of them bit for bit. Where elements were kept that is computed in float64; where only
sketches were, sums and means are, since sketches of addends add up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel.numerics.comparing.comparison import Run, Verdict
from accel.numerics.comparing.contents import Contents, is_same, refs, rounding
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.storage.entries import Key, Operator
from accel_kernels.sketch import Sketch

# A sum of n addends in a dtype of unit roundoff u errs by at most (n - 1) u times the sum of their
# magnitudes, in any order; sketches estimate L2 norms to within a factor of 1.4.
_SLACK = 2.0
_ESTIMATE = 1.4
_REDUCTIONS = ("allreduce", "all_reduce")
_SAME_OUTPUT = (*_REDUCTIONS, "broadcast")

Combine = Callable[[Sequence[Tensor]], Tensor]
_COMBINED: dict[str, Combine] = {
    "sum": lambda tensors: torch.stack(list(tensors)).sum(0),
    "avg": lambda tensors: torch.stack(list(tensors)).mean(0),
    "max": lambda tensors: torch.stack(list(tensors)).amax(0),
    "min": lambda tensors: torch.stack(list(tensors)).amin(0),
    "product": lambda tensors: torch.stack(list(tensors)).prod(0),
}


class Part(NamedTuple):
    """One tensor of a collective on one rank."""

    rank: int
    contents: Contents
    operator: Operator
    given: int
    result: int


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
            if _is(operator, _SAME_OUTPUT):
                by_key[operator.key].append((rank, operator))
    for key, members in by_key.items():
        if len(members) < 2:
            continue
        for parts in _parts(contents, members):
            wrong = _wrong(parts)
            if wrong is not None:
                place = members[0][1].place
                sentence = f"{key} of the {run} {wrong[0]}"
                return [Verdict("faulty operator", sentence, wrong[1], key, place, run)]
    return []


def _is(operator: Operator, names: Sequence[str]) -> bool:
    bare = operator.key.op.split("::")[-1].rstrip("_")
    return operator.key.op.split("::")[0].endswith(("c10d", "c10d_functional")) and bare in names


def _parts(
    contents: Mapping[int, Contents], members: Sequence[tuple[int, Operator]]
) -> Iterator[list[Part]]:
    """The tensors of one collective on all ranks, one list for each place of its list."""
    columns: list[list[tuple[int, int]]] = []
    for _, operator in members:
        given = [value for argument in operator.arguments.values() for value in refs(argument)]
        columns.append(list(zip(given, operator.produced, strict=False)))
    for index in range(min(map(len, columns))):
        parts = [
            Part(rank, contents[rank], operator, *column[index])
            for (rank, operator), column in zip(members, columns, strict=True)
        ]
        if all(part.contents.value(part.result).skipped is None for part in parts):
            yield parts


def _wrong(parts: Sequence[Part]) -> tuple[str, tuple[str, ...]] | None:
    """What is wrong with one collective, and the facts; None if nothing is."""
    groups = _groups(parts)
    for group in groups:
        if len(group) == 1 and len(parts) > 1 and not _is_alone(group[0], parts):
            ranks = ", ".join(str(part.rank) for part in parts)
            facts = (f"ranks {ranks} have {len(groups)} different results",)
            return "left other results on other ranks", facts
        if _is(group[0].operator, _REDUCTIONS) and len(group) > 1:
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
