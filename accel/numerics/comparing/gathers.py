"""Collectives that move parts: what is gathered is the parts, what is scattered the sum's parts.

Sketches of parts add up to that of the whole where the recording says which part each rank has;
elements are put side by side where they were kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from accel.numerics.comparing.contents import is_same, rounding
from accel.numerics.comparing.groups import Part
from accel_kernels.sketch import Sketch

GATHERS = ("_allgather_base", "all_gather_into_tensor")
SCATTERS = ("_reduce_scatter_base", "reduce_scatter_tensor")
BROADCASTS = ("broadcast",)
LISTS = ("allgather",)
_ROOTS = ("root_rank", "src")
# Sums of float64 in another order.
_EXACT = 1e-12
_SLACK, _ESTIMATE = 2.0, 1.4  # as for reductions: see `collectives`

Wrong = tuple[str, tuple[str, ...]]


def misgathered(parts: Sequence[Part]) -> Wrong | None:
    """What is wrong with a gather; None if nothing is or nobody can tell."""
    for part in parts:
        off = _off_gather(parts, part)
        if off:
            fact = f"rank {part.rank} got something else than the {len(parts)} parts: off by {off}"
            return f"left rank {part.rank} something else than what its ranks put in", (fact,)
    return None


def _off_gather(parts: Sequence[Part], part: Part) -> str | None:
    if _are_kept([*((p, p.given) for p in parts), (part, part.result)]):
        given = [p.contents.step.tensor(p.given) for p in parts]
        result = part.contents.step.tensor(part.result)
        expected = torch.cat([tensor.reshape(-1) for tensor in given])
        differing = _unequal(expected, result.reshape(-1))
        return f"{differing} elements" if differing else None
    total = _total([p.contents.sketch(p.given) for p in parts if _is_part(p, p.given)], len(parts))
    result_sketch = part.contents.sketch(part.result)
    if total is None or result_sketch is None or total.count != result_sketch.count:
        return None
    apart = total.distance(result_sketch)
    if total.mask == result_sketch.mask and apart <= _EXACT * (total.norm + result_sketch.norm):
        return None
    return f"{apart:.3g} of {total.norm:.3g} (L2)"


def misscattered(parts: Sequence[Part], reduction: str | None) -> Wrong | None:
    """What is wrong with a scatter of a sum or mean; None if nothing is or nobody can tell."""
    if reduction not in ("sum", "avg"):
        return None
    count = len(parts) if reduction == "avg" else 1
    given = [p.contents.sketch(p.given) for p in parts]
    got = [p.contents.sketch(p.result) for p in parts if _is_part(p, p.result)]
    total, result = _total(given, len(parts)), _total(got, len(parts))
    if total is None or result is None or any(total.mask[:3]) or any(result.mask[:3]):
        return None
    sums = [one / count for one in total.sums]
    error = math.dist(sums, result.sums)
    norms = math.fsum(one.norm for one in given if one is not None)
    unit = rounding(parts[0].contents.value(parts[0].result).dtype)
    allowed = (_SLACK * _ESTIMATE * len(parts) * unit + _EXACT) * norms / count
    if error <= allowed:
        return None
    fact = f"the parts are off by {error:.3g} (L2); rounding explains {allowed:.3g}"
    return f"is not the {reduction} of what its ranks put in", (fact,)


def misbroadcast(parts: Sequence[Part], ranks: Sequence[int]) -> Wrong | None:
    """What is wrong with a broadcast; None if nothing is or nobody can tell."""
    arguments = parts[0].operator.arguments
    root = next((arguments[name] for name in _ROOTS if name in arguments), None)
    if not isinstance(root, int) or not 0 <= root < len(ranks):
        return None
    source = next((part for part in parts if part.rank == ranks[root]), None)
    if source is None:
        return None
    for part in parts:
        if not _is_what_was_given(source, source.given, part, part.result):
            fact = f"rank {source.rank} sent it, and rank {part.rank} has something else"
            return f"left rank {part.rank} something else than was sent", (fact,)
    return None


def mislisted(parts: Sequence[Part], ranks: Sequence[int]) -> Wrong | None:
    """What is wrong with a gather into a list of tensors, one for each rank in order.

    Args:
        parts: Of each rank what it gave; of what it got only the first.
        ranks: Those of the group.
    """
    by_rank = {part.rank: part for part in parts}
    for part in parts:
        for rank, got in zip(ranks, part.operator.produced, strict=False):
            given = by_rank[rank]
            if not _is_what_was_given(given, given.given, part, got):
                fact = f"rank {rank} gave it, and rank {part.rank} has something else"
                return f"left rank {part.rank} something else than rank {rank} put in", (fact,)
    return None


def _is_what_was_given(giver: Part, given: int, getter: Part, got: int) -> bool:
    """Whether a tensor arrived as it was sent, or nobody can tell."""
    blobs = giver.contents.value(given).blob, getter.contents.value(got).blob
    if None not in blobs:
        return blobs[0] == blobs[1]
    if not giver.contents.is_alone(given) or not getter.contents.is_alone(got):
        return True
    sketches = giver.contents.sketch(given), getter.contents.sketch(got)
    return None in sketches or is_same(*sketches)


def _are_kept(values: Sequence[tuple[Part, int]]) -> bool:
    return all(part.contents.step.has_tensor(value) for part, value in values)


def _is_part(part: Part, value: int) -> bool:
    return part.contents.value(value).shard is not None


def _total(sketches: Sequence[Sketch | None], count: int) -> Sketch | None:
    known = [one for one in sketches if one is not None]
    if len(known) < count:
        return None
    total = known[0]
    for one in known[1:]:
        total = total + one
    return total


def _unequal(a: torch.Tensor, b: torch.Tensor) -> int:
    if a.shape != b.shape:
        return max(a.numel(), b.numel())
    both_nan = (a != a) & (b != b)
    return int(((a != b) & ~both_nan).sum())
