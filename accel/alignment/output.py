"""What an alignment step returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AlignmentOutput(NamedTuple):
    """The loss of a batch, and what it is made of.

    Attributes:
        loss: `[]`, the weighted mean of the losses of those pairs that occur; float32, float64 for
            float64 embeddings.
        pair_losses: By name of the pair, `text-image`: `[]`, without its weight; exactly 0, with
            zero gradients, for a pair that does not occur.
        pair_counts: By name of the pair, how many samples have both modalities; over all ranks if
            the loss is.
        embeddings: By modality, `[P, dim]`: the present rows, in the order of the batch.
    """

    loss: Tensor
    pair_losses: dict[str, Tensor]
    pair_counts: dict[str, int]
    embeddings: dict[str, Tensor]
