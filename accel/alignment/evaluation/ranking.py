"""Ranks of right targets by cosine; ties and NaN count against the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from accel.alignment.evaluation.directions import directions, tie_tolerance

_logger = logging.getLogger("accel")
_BLOCK = 128  # queries of a product of matrices, always: the shape may decide the last bit


def retrieval_ranks(
    queries: Tensor,
    targets: Tensor,
    *,
    query_groups: Tensor | None = None,
    target_groups: Tensor | None = None,
    pool: Tensor | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """The rank of each query's best right target, by cosine.

    The rank is 1 plus the number of wrong targets that are at least as near, within the rounding of
    a cosine (`tie_tolerance`). A similarity that is NaN counts against the model as well: a wrong
    target with NaN is nearer, a right one is never found, and a warning says how many rows are
    not finite. A row of zeros is equally near to everything. Computed in float32 (float64 for
    float64), in blocks of a fixed shape: the result is the same for every `chunk_size`.

    Args:
        queries: `[N, D]`, floating point.
        targets: `[M, D]`, on the same device.
        query_groups: int64 `[N]`, identities: every target of a query's group is right. A negative
            number is in no group. None: target i is right for query i, and `N` is `M`.
        target_groups: int64 `[M]`; None exactly if `query_groups` is.
        pool: bool `[M]`: the targets that are searched; None: all.
        chunk_size: Queries whose similarities to all targets are held at once, rounded up to a
            multiple of 128.

    Returns:
        int64 `[N]` on the CPU, from 1; 0 for a query without a right target.

    Raises:
        TypeError: See `directions`.
        ValueError: The shapes do not fit.
    """
    _check(queries, targets, query_groups, target_groups, pool, chunk_size)
    device = targets.device
    x = directions(queries, "queries", may_lack=True)
    y = directions(targets, "targets", may_lack=True)
    _warn_not_finite(x, y)
    if query_groups is None or target_groups is None:
        query_groups = target_groups = torch.arange(len(targets))
    own, other = query_groups.to(device), target_groups.to(device)
    if pool is not None:
        y, other = y[pool.to(device)], other[pool.to(device)]
    if not len(y):
        return torch.zeros(len(x), dtype=torch.int64)
    blocks = max(1, -(-chunk_size // _BLOCK))
    ranks = [
        _ranks(scores, group, other)
        for scores, group in zip(
            _similarities(x, y, blocks), own.split(blocks * _BLOCK), strict=False
        )
    ]
    return torch.cat(ranks).cpu() if ranks else torch.zeros(0, dtype=torch.int64)


def nearest(queries: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k targets nearest to each query, equal ones in their order; not finite ones last.

    Args:
        queries: `[N, D]`, floating point; few of them.
        targets: `[M, D]`.
        k: How many; all if there are fewer.

    Returns:
        Cosines `[N, k]` and indices int64 `[N, k]`, on the CPU.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`.
    """
    x = directions(queries, "queries", may_lack=True)
    y = directions(targets, "targets", may_lack=True)
    scores = (x @ y.T).cpu()
    order = scores.nan_to_num(nan=-2.0).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), order


def _similarities(x: Tensor, y: Tensor, blocks: int) -> Iterator[Tensor]:
    """Cosines `[rows, M]` of up to `blocks` blocks of queries at a time."""
    across = y.T.contiguous()
    for start in range(0, len(x), blocks * _BLOCK):
        rows = x[start : start + blocks * _BLOCK]
        held = rows.new_zeros(-(-len(rows) // _BLOCK) * _BLOCK, x.shape[1])
        held[: len(rows)] = rows
        yield torch.cat([part @ across for part in held.split(_BLOCK)])[: len(rows)]


def _ranks(scores: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Ranks `[rows]` from cosines `[rows, M]`."""
    is_right = (own[:, None] == other[None, :]) & (own >= 0)[:, None]
    # A right target with NaN is found after all others, never before one of them.
    known = torch.where(is_right & ~scores.isnan(), scores, -math.inf)
    best = known.amax(1, keepdim=True) - tie_tolerance(scores.dtype)
    # Whatever is not certainly further away, NaN among it, comes before.
    before = (~(scores < best) & ~is_right).sum(1)
    return torch.where(is_right.any(1), before + 1, 0)


def _warn_not_finite(x: Tensor, y: Tensor) -> None:
    counts = [int((~rows.isfinite().all(1)).sum()) for rows in (x, y)]
    if any(counts):
        _logger.warning(
            "retrieval: %d of %d queries and %d of %d targets are not finite and rank last; look "
            "for the first step whose loss is not finite",
            counts[0], len(x), counts[1], len(y),
        )  # fmt: skip


def _check(
    queries: Tensor, targets: Tensor, own: Tensor | None, other: Tensor | None,
    pool: Tensor | None, chunk_size: int,
) -> None:  # fmt: skip
    if queries.ndim != 2 or targets.ndim != 2 or queries.shape[1] != targets.shape[1]:
        raise ValueError(
            f"queries [N, D] and targets [M, D] must have one depth, got {list(queries.shape)} and "
            f"{list(targets.shape)}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    n, m = len(queries), len(targets)
    if (own is None) != (other is None):
        raise ValueError("groups are given for both queries and targets, or for neither")
    if own is None and n != m:
        raise ValueError(
            f"{n} queries and {m} targets are no partners row by row: give query_groups and "
            "target_groups"
        )
    for name, vector, length in (
        ("query_groups", own, n), ("target_groups", other, m), ("pool", pool, m)
    ):  # fmt: skip
        kind = torch.bool if name == "pool" else torch.int64
        if vector is not None and (vector.dtype != kind or list(vector.shape) != [length]):
            raise ValueError(
                f"{name} must be {kind} [{length}], got {vector.dtype} {list(vector.shape)}"
            )
