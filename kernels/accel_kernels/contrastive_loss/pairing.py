"""What is whose partner, what is a negative, and what does not count: the structure of a batch.

It is vectors and a rule, never an `[N, M]` matrix: kernels work it out tile by tile.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Duplicates = Literal["positive", "ignore", "negative"]
DUPLICATES: tuple[Duplicates, ...] = ("positive", "ignore", "negative")

ABSENT = -1
"""The sample number of a row that is not there."""


class Guide(NamedTuple):
    """A second opinion on which negatives are false: similarities of a frozen model's embeddings.

    A pair that is no positive is left out where its guide similarity is above the anchor's
    threshold (GISTEmbed, arXiv 2402.16829, section 3).

    Attributes:
        x: `[N, E]`, of the dtype of the embeddings that are trained.
        y: `[M, E]`.
        x_threshold: `[N]` float32 (float64 for float64), for rows as anchors.
        y_threshold: `[M]`, for columns as anchors.
    """

    x: Tensor
    y: Tensor
    x_threshold: Tensor
    y_threshold: Tensor


class Pairing(NamedTuple):
    """Which rows of `x [N, D]` and `y [M, D]` belong together.

    Rows `i` and `j` with `x_sample[i] == y_sample[j]` are partners, and positives. A row whose
    sample is `ABSENT` is neither anchor nor negative. Sample numbers may repeat and need no order:
    a row may have many partners, or none, and is then a negative for others without being an
    anchor itself. Pairs of one group that are no partners are what `duplicates` says; all other
    pairs are negatives, unless the guide leaves them out.

    Attributes:
        x_sample: `[N]` int64.
        y_sample: `[M]` int64.
        x_group: `[N]` int64, identities; None: there are none. A negative number is in no group.
        y_group: `[M]` int64; None exactly if `x_group` is.
        duplicates: What pairs of one group are that are no partners: positives as well, left out
            (neither positive nor negative), or negatives as if there were no groups.
        guide: Leaves out negatives that it finds too similar; None: none.
        hardness: Added to a negative's logit is `hardness * (x_i . y_j)`, as a constant: hard
            negatives count for more (Robinson et al., arXiv 2010.04592, section 3; the form of
            sentence-transformers' `hardness_mode="in_batch_negatives"`).
    """

    x_sample: Tensor
    y_sample: Tensor
    x_group: Tensor | None = None
    y_group: Tensor | None = None
    duplicates: Duplicates = "negative"
    guide: Guide | None = None
    hardness: float = 0.0
