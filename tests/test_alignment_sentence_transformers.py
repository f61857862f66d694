"""The same losses as sentence-transformers where both define one, written from its formulas.

The package itself imports scipy and scikit-learn, which are not among our requirements. Formulas
are those of release 6.2.0: `sentence_transformer/losses/multiple_negatives_ranking.py`
(`MultipleNegativesRankingLoss.compute_loss_from_embeddings`) and `gist_embed.py`
(`GISTEmbedLoss.forward` with `contrast_anchors=False, contrast_positives=False`).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from accel.alignment import aligned_pairs, contrastive_loss, guided, normalized, with_negatives

SCALE = 20.0  # its default


def drawn(*rows: int) -> list[Tensor]:
    """Embeddings as an encoder returns them: not normalised, which cosines do not notice."""
    return [torch.randn(n, 7, dtype=torch.float64).requires_grad_() for n in rows]


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one.unsqueeze(1), other.unsqueeze(0), dim=-1)


def agree(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_multiple_negatives_ranking(n):
    query, document = drawn(n, n)
    scores = SCALE * cosines(query, document)
    ours = contrastive_loss(
        normalized(query), normalized(document), scale=SCALE, direction="x_to_y"
    )
    agree(ours, (scores.logsumexp(1) - scores.diagonal()).mean(), [query, document])


@pytest.mark.parametrize("n", [1, 3, 40])
def test_multiple_negatives_symmetric(n):
    """`directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"`."""
    query, document = drawn(n, n)
    scores = SCALE * cosines(query, document)
    normaliser = (scores.logsumexp(1) + scores.T.logsumexp(1)) / 2
    ours = contrastive_loss(normalized(query), normalized(document), scale=SCALE)
    agree(ours, (normaliser - scores.diagonal()).mean(), [query, document])


def test_hard_negatives():
    query, document, negative = drawn(12, 12, 12)
    scores = SCALE * cosines(query, torch.cat([document, negative]))
    ours = contrastive_loss(
        normalized(query), normalized(torch.cat([document, negative])), scale=SCALE,
        direction="x_to_y", pairing=with_negatives(aligned_pairs(12), 12),
    )  # fmt: skip
    theirs = (scores.logsumexp(1) - scores[:, :12].diagonal()).mean()
    agree(ours, theirs, [query, document, negative])


@pytest.mark.parametrize("negatives", [0, 12])
def test_hardness(negatives):
    """`in_batch_negatives`, and with explicit negatives `all_negatives`: all but the positive."""
    strength = 9.0
    query, document, negative = drawn(12, 12, negatives)
    similarity = cosines(query, torch.cat([document, negative]))
    penalty = strength * similarity.detach()
    penalty[:, :12].fill_diagonal_(0.0)
    scores = SCALE * similarity + penalty
    pairing = with_negatives(aligned_pairs(12), negatives)._replace(hardness=strength)
    ours = contrastive_loss(
        normalized(query), normalized(torch.cat([document, negative])), scale=SCALE,
        direction="x_to_y", pairing=pairing,
    )  # fmt: skip
    agree(ours, (scores.logsumexp(1) - scores[:, :12].diagonal()).mean(), [query, document])


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("negatives", [0, 12])
def test_gist(strategy, margin, negatives):
    anchor, positive, negative = drawn(12, 12, negatives)
    guides = [one.detach() + torch.randn_like(one) for one in (anchor, positive, negative)]
    candidates, guide_candidates = torch.cat([positive, negative]), torch.cat(guides[1:])
    similarity, by_guide = cosines(anchor, candidates), cosines(guides[0], guide_candidates)
    of_positive = by_guide[:, :12].diagonal().unsqueeze(1)
    width = margin if strategy == "absolute" else of_positive.abs() * margin
    is_false = by_guide > of_positive - width
    is_false[:, :12].fill_diagonal_(False)
    assert is_false.any()
    scores = similarity.masked_fill(is_false, -torch.inf) * SCALE
    pairing = guided(
        with_negatives(aligned_pairs(12), negatives), guides[0], guide_candidates, margin, strategy
    )
    ours = contrastive_loss(
        normalized(anchor), normalized(candidates), scale=SCALE, direction="x_to_y", pairing=pairing
    )
    agree(ours, F.cross_entropy(scores, torch.arange(12)), [anchor, positive])
