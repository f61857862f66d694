"""Retrieval between two modalities: ranks, recall, chance; memory linear in the targets.

Ties count against the model. A collapsed model, for which every target is as near as the right
one, ranks it last and not first: counting only what is nearer would give it a recall of 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from accel.alignment.evaluation.health import present_rows
from accel.alignment.evaluation.ranking import retrieval_ranks
from accel.alignment.pairs import Pair

KS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well queries find their targets.

    Attributes:
        queries: How many have a target.
        targets: Among how many.
        recall: By k: the share of queries with a right target among the k nearest; NaN without
            queries.
        chance: By k: the recall of a random order.
        mean_rank: Of the best right target, from 1.
        median_rank: The same; the mean of the middle two if they are two.
        ranks: int64 `[N]` on the CPU, of all queries; 0: it has no right target in the pool.
        left_out: How many queries have none, and count nowhere.
    """

    queries: int
    targets: int
    recall: dict[int, float]
    chance: dict[int, float]
    mean_rank: float
    median_rank: float
    ranks: Tensor
    left_out: int


class BothWays(NamedTuple):
    """Retrieval between `x` and `y` in both directions."""

    x_to_y: Retrieval
    y_to_x: Retrieval


class PairRetrieval(NamedTuple):
    """One direction of one pair of modalities.

    Attributes:
        query: The modality that asks.
        target: The modality that is searched.
        is_trained: Whether the pair was trained; if not, its alignment is emergent.
        found: The result.
    """

    query: str
    target: str
    is_trained: bool
    found: Retrieval


def retrieve(
    queries: Tensor,
    targets: Tensor,
    *,
    ks: Sequence[int] = KS,
    query_groups: Tensor | None = None,
    target_groups: Tensor | None = None,
    pool: Tensor | None = None,
    chunk_size: int = 1024,
) -> Retrieval:
    """Recall, chance and ranks of one direction; see `retrieval_ranks` for the arguments.

    Args:
        queries: `[N, D]`, floating point.
        targets: `[M, D]`.
        ks: The k of recall at k, each at least 1.
        query_groups: See `retrieval_ranks`.
        target_groups: See `retrieval_ranks`.
        pool: See `retrieval_ranks`.
        chunk_size: See `retrieval_ranks`.

    Raises:
        TypeError: See `directions`.
        ValueError: See `retrieval_ranks`; or `ks` holds something else than positive integers.
    """
    if not ks or any(not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks must be positive integers, got {list(ks)}: (1, 5, 10) is usual")
    ranks = retrieval_ranks(
        queries, targets, query_groups=query_groups, target_groups=target_groups, pool=pool,
        chunk_size=chunk_size,
    )  # fmt: skip
    searched = len(targets) if pool is None else int(pool.sum())
    counted = ranks[ranks > 0]
    count = len(counted)
    right = _right_targets(len(targets), query_groups, target_groups, pool)
    right = right[ranks > 0]
    return Retrieval(
        queries=count,
        targets=searched,
        recall={k: float((counted <= k).double().mean()) for k in ks},
        chance={k: _chance(right, searched, k) for k in ks},
        mean_rank=float(counted.double().mean()),
        median_rank=_median(counted),
        ranks=ranks,
        left_out=len(ranks) - count,
    )


def retrieve_both_ways(
    x: Tensor,
    y: Tensor,
    *,
    ks: Sequence[int] = KS,
    x_groups: Tensor | None = None,
    y_groups: Tensor | None = None,
    chunk_size: int = 1024,
) -> BothWays:
    """`retrieve` from `x` to `y` and back.

    Args:
        x: `[N, D]`, floating point.
        y: `[M, D]`.
        ks: See `retrieve`.
        x_groups: int64 `[N]`; see `retrieval_ranks`.
        y_groups: int64 `[M]`.
        chunk_size: See `retrieval_ranks`.

    Raises:
        TypeError: See `directions`.
        ValueError: See `retrieve`.
    """
    there = retrieve(
        x, y, ks=ks, query_groups=x_groups, target_groups=y_groups, chunk_size=chunk_size
    )
    back = retrieve(
        y, x, ks=ks, query_groups=y_groups, target_groups=x_groups, chunk_size=chunk_size
    )
    return BothWays(there, back)


def retrieve_all_pairs(
    embeddings: Mapping[str, Tensor],
    *,
    trained: Sequence[Pair] | None = None,
    presence: Tensor | Mapping[str, Tensor] | None = None,
    groups: Tensor | None = None,
    ks: Sequence[int] = KS,
    chunk_size: int = 1024,
) -> list[PairRetrieval]:
    """Both directions of every pair of modalities, those never trained together included.

    Args:
        embeddings: `[N, D]` for each modality; row i of all is sample i.
        trained: The pairs that were trained (`aligner.pairs`); None: all.
        presence: bool `[N, modalities]`, in the order of `embeddings`; None: all are there.
        groups: int64 `[N]`, identities: every sample of a group is right. A negative number is in
            no group: only the sample itself is right, as for all if None.
        ks: See `retrieve`.
        chunk_size: See `retrieval_ranks`.

    Returns:
        Trained pairs first.

    Raises:
        TypeError: See `directions`.
        ValueError: See `retrieve` and `present_rows`; or a trained pair names an unknown modality,
            or the groups do not fit.
    """
    there = present_rows(embeddings, presence)
    pairs = list(combinations(embeddings, 2))
    known = {frozenset(pair) for pair in (pairs if trained is None else trained)}
    unknown = sorted(set().union(*known) - set(embeddings)) if known else []
    if unknown:
        raise ValueError(
            f"trained names modalities without embeddings: {', '.join(unknown)}; there are "
            f"{', '.join(embeddings)}"
        )
    samples = _identities(len(next(iter(there.values()))), groups)
    found = []
    for a, b in sorted(pairs, key=lambda pair: frozenset(pair) not in known):
        (x, x_groups), (y, y_groups) = (
            (embeddings[name][there[name].to(embeddings[name].device)], samples[there[name]])
            for name in (a, b)
        )
        both = retrieve_both_ways(
            x, y, ks=ks, x_groups=x_groups, y_groups=y_groups, chunk_size=chunk_size
        )
        is_trained = frozenset((a, b)) in known
        found.append(PairRetrieval(a, b, is_trained, both.x_to_y))
        found.append(PairRetrieval(b, a, is_trained, both.y_to_x))
    return found


def _identities(count: int, groups: Tensor | None) -> Tensor:
    """Numbers from 0 that are equal for what is right for one another: int64 `[N]` on the CPU."""
    own = torch.arange(count)
    if groups is None:
        return own
    if groups.dtype != torch.int64 or list(groups.shape) != [count]:
        raise ValueError(
            f"groups must be int64 [{count}], one for each sample, got {groups.dtype} "
            f"{list(groups.shape)}"
        )
    # Groups become numbers below `count`, so that no sample's own number is one of theirs.
    numbers = groups.cpu().unique(return_inverse=True)[1]
    return torch.where(groups.cpu() < 0, count + own, numbers)


def _right_targets(
    count: int, own: Tensor | None, other: Tensor | None, pool: Tensor | None
) -> Tensor:
    """How many right targets each query has in the pool: int64 `[N]` on the CPU."""
    chosen = torch.ones(count, dtype=torch.bool) if pool is None else pool.cpu()
    if own is None or other is None:
        return chosen.long()
    own, kept = own.cpu(), other.cpu()[chosen]
    values, sizes = kept.unique(return_counts=True)
    if not len(values):
        return torch.zeros(len(own), dtype=torch.int64)
    place = torch.searchsorted(values, own).clamp(max=len(values) - 1)
    return torch.where((values[place] == own) & (own >= 0), sizes[place], 0)


def _median(ranks: Tensor) -> float:
    if not len(ranks):
        return math.nan
    ordered = ranks.sort().values
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return float(middle.double().mean())


def _chance(right: Tensor, targets: int, k: int) -> float:
    """Recall at k of a random order: 1 - C(M - r, k') / C(M, k'), k' = min(k, M)."""
    if not len(right):
        return math.nan
    r = right.double()
    missed = torch.ones_like(r)
    for drawn in range(min(k, targets)):
        missed *= ((targets - r - drawn) / (targets - drawn)).clamp(min=0.0)
    return float((1.0 - missed).mean())
