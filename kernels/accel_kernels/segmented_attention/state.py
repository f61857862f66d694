"""The attention state `(out, lse)` and what every kernel of this operation does with it.

`out` is the attention of a query row over the keys seen so far, `lse` the natural logarithm of the
sum of its exponentiated scores. Two states over disjoint keys merge into the state over their union
(Rabe & Staats, arXiv 2112.05682, section 2; Milakov & Gimelshein, arXiv 1805.02867); the empty
state is `out = 0`, `lse = -inf`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """A rectangle of the score matrix: query rows `q0:q1` against keys `k0:k1`.

    If `diagonal`, the tile is square and row `i` sees only its keys up to `i`; else every row
    sees every key.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    diagonal: bool


def tiles(query_length: int, key_length: int, segment_size: int, is_causal: bool) -> list[Tile]:
    """Cover the visible part of the score matrix, each visible score once.

    Causal masking is aligned at the bottom right: the last query sees the last key, so query `i`
    sees key `j` if `j <= i + key_length - query_length`. Keys that all queries see come first, in
    full tiles; the rest is a square, cut into diagonal tiles and the full ones below them. Query
    rows that see no key are in no tile.
    """
    if query_length == 0 or key_length == 0:
        return []
    if not is_causal:
        return [
            Tile(0, query_length, k0, min(k0 + segment_size, key_length), False)
            for k0 in range(0, key_length, segment_size)
        ]
    shared = max(key_length - query_length, 0)
    first_row = max(query_length - key_length, 0)
    covering = [
        Tile(0, query_length, k0, min(k0 + segment_size, shared), False)
        for k0 in range(0, shared, segment_size)
    ]
    side = min(query_length, key_length)
    for start in range(0, side, segment_size):
        end = min(start + segment_size, side)
        q0, q1, k0, k1 = first_row + start, first_row + end, shared + start, shared + end
        covering.append(Tile(q0, q1, k0, k1, True))
        if end < side:
            covering.append(Tile(q1, query_length, k0, k1, False))
    return covering


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What outputs, log-sum-exps and gradients are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The state over the union of two disjoint sets of keys.

    The weights come from the difference of the log-sum-exps, so that they add up to one however
    the log-sum-exps are rounded; `exp(lse_a - lse)` would scale the output by their error.

    Args:
        out_a: `[..., T, D]`.
        lse_a: `[..., T]`, -inf for a row that saw no key. May be of a wider dtype than `out_a`.
        out_b: As `out_a`.
        lse_b: As `lse_a`.

    Returns:
        `out` and `lse` of the union, in the dtypes of the arguments.
    """
    both_empty = (lse_a == -torch.inf) & (lse_b == -torch.inf)
    difference = torch.where(both_empty, torch.zeros_like(lse_a), lse_b - lse_a)
    weight_b = torch.sigmoid(difference).to(out_a.dtype).unsqueeze(-1)
    return torch.lerp(out_a, out_b, weight_b), torch.logaddexp(lse_a, lse_b)
