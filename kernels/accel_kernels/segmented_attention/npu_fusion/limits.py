"""How much one call of Ascend's attention operators may be asked for, with where that is said.

A call that runs too long ends in an aicore error ("timeout or trap error"), and the vendor's remedy
is to cut the axes, which is what this module's numbers decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from accel_kernels.segmented_attention.npu_fusion.pieces import Piece, cut, tightened

SIDE = 2048
"""Of the operators' compressed mask, and of tiles with a mask of their own (op-plugin's page of
`npu_fusion_attention`: sparse modes 2, 3 and 4)."""

BIAS_SIDE = 1024
"""Of tiles with a bias: with more than 1024 queries the operator may take `pse` for a compressed
one (the same page, `pse`)."""

LARGEST_HEAD = 768
"""Head sizes that the training operator takes (the same page: D from 1 to 768)."""


class Limits(NamedTuple):
    """Of one call.

    Attributes:
        length: Queries, and keys. The same page: S from 1 to 1M.
        heads: Of the query. The same page: 1 to 256.
        batch: The same page: 1 to 2M.
        work: `batch * heads * queries * keys seen * head size`. No page gives a number for the
            training operator. That of `npu_fused_infer_attention_score` lists four calls that time
            out; the smallest has 20 heads, 2,097,152 queries and keys and a head size of 256, which
            is 2.3e16. This is a hundredth of it: seconds at a tenth of a chip's peak, and more than
            32 heads of 128 at 131,072 causal tokens.
    """

    length: int = 1_000_000
    heads: int = 256
    batch: int = 2_000_000
    work: int = 1 << 47


LIMITS = Limits()


def within_limits(
    piece: Piece, groups: int, width: int, segment_size: int | None, limits: Limits = LIMITS
) -> Iterator[Piece]:
    """The piece in parts that one call each may compute.

    Args:
        piece: What is to be computed.
        groups: Query heads for each head of the keys.
        width: Head size.
        segment_size: Keys of a part at most; None: as many as the limits allow.
        limits: Of a call.
    """
    keys = limits.length if segment_size is None else min(segment_size, limits.length)
    for part in cut(piece, limits.length, keys):
        yield from _halved(part, groups, width, limits)


def _halved(piece: Piece, groups: int, width: int, limits: Limits) -> Iterator[Piece]:
    """Batch and heads are cut first, as nothing has to be merged then; keys last."""
    batch, heads = (stop - start for start, stop in (piece.batch, piece.heads))
    rows, keys = piece.q1 - piece.q0, piece.k1 - piece.k0
    work = batch * heads * rows * piece.visible_keys * width
    if work <= limits.work and heads <= limits.heads and batch <= limits.batch:
        yield piece
        return
    if batch > 1 and heads <= limits.heads:
        middle = piece.batch[0] + batch // 2
        parts = [
            piece._replace(batch=(piece.batch[0], middle)),
            piece._replace(batch=(middle, piece.batch[1])),
        ]
    elif heads > 1:
        # Between groups, as long as there are several; then within the one.
        step = groups if heads > groups else 1
        middle = piece.heads[0] + heads // step // 2 * step
        parts = [
            piece._replace(heads=(piece.heads[0], middle)),
            piece._replace(heads=(middle, piece.heads[1])),
        ]
    elif rows > 1 or keys > 1:
        step_q = rows if keys > rows else (rows + 1) // 2
        step_k = keys if keys <= rows else (keys + 1) // 2
        parts = list(cut(piece, step_q, step_k))
    else:
        yield piece
        return
    for part in parts:
        found = tightened(part)
        if found is not None:
            yield from _halved(found, groups, width, limits)
