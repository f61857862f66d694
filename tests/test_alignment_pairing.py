"""Building pairings."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from accel.alignment import (
    ABSENT,
    Pairing,
    aligned_pairs,
    contrastive_loss,
    grouped,
    guided,
    identities,
    matched_pairs,
    with_negatives,
)
from accel.alignment.pairing import partner_similarities
from tests.alignment_reference import leaves


def test_aligned_pairs():
    pairing = aligned_pairs(4)
    assert pairing.x_sample.tolist() == pairing.y_sample.tolist() == [0, 1, 2, 3]
    assert pairing.x_sample.dtype == torch.int64
    assert aligned_pairs(0).x_sample.shape == (0,)
    later = aligned_pairs(3, first=4)
    assert later.x_sample.tolist() == later.y_sample.tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match="at least 0, not -1: negative numbers stand for absent"):
        aligned_pairs(3, first=-1)


def test_in_a_pairing_of_ones_own_only_one_number_is_absent():
    """Every place that asks whether a row is there asks the same."""
    x, y = leaves(4, 4)
    sample = torch.tensor([0, -2, ABSENT, 7])
    raw, other = Pairing(sample, sample), aligned_pairs(4)
    other = other._replace(x_sample=torch.where(sample == ABSENT, ABSENT, other.x_sample))
    (of_x, has_x), (of_y, has_y) = partner_similarities(x, y, raw)
    assert has_x.tolist() == has_y.tolist() == [True, True, False, True]
    torch.testing.assert_close(of_x[1], x[1] @ y[1])
    torch.testing.assert_close(of_y[1], x[1] @ y[1])
    thresholds = guided(raw, x.detach(), y.detach()).guide.x_threshold
    assert thresholds.isinf().tolist() == [False, False, True, False]
    for kind in ("softmax", "sigmoid"):
        found, expected = (
            contrastive_loss(x, y, scale=3.0, kind=kind, pairing=pairing)
            for pairing in (raw, other._replace(y_sample=other.x_sample))
        )
        torch.testing.assert_close(found, expected)


def test_matched_pairs_mark_every_negative_number_as_absent():
    pairing = matched_pairs(torch.tensor([5, -7, 2]), torch.tensor([-1, 2]))
    assert pairing.x_sample.tolist() == [5, ABSENT, 2]
    assert pairing.y_sample.tolist() == [ABSENT, 2]


def test_several_captions_of_an_image():
    """Five captions each: the mean over five positives, in one call."""
    image, caption = leaves(3, 15)
    pairing = matched_pairs(torch.arange(3), torch.arange(15) // 5)
    loss = contrastive_loss(image, caption, scale=6.0, pairing=pairing, direction="x_to_y")
    logits = 6.0 * image @ caption.T
    log_probability = logits.log_softmax(1)
    expected = -torch.stack([log_probability[i, 5 * i : 5 * i + 5].mean() for i in range(3)]).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("duplicates", ["positive", "ignore", "negative"])
def test_groups_take_one_side_for_both(duplicates):
    groups = torch.tensor([4, -1, 4])
    pairing = grouped(aligned_pairs(3), groups, duplicates=duplicates)
    assert pairing.y_group is groups
    assert pairing.duplicates == duplicates
    x, y = leaves(3, 3)
    loss = contrastive_loss(x, y, scale=3.0, pairing=pairing, direction="x_to_y")
    logits = 3.0 * x @ y.T
    if duplicates == "ignore":
        logits[0, 2] = logits[2, 0] = -torch.inf
    losses = logits.logsumexp(1) - logits.diagonal()
    if duplicates == "positive":
        mean = (logits[0, 0] + logits[0, 2]) / 2, (logits[2, 0] + logits[2, 2]) / 2
        losses = logits.logsumexp(1) - torch.stack([mean[0], logits[1, 1], mean[1]])
    torch.testing.assert_close(loss, losses.mean())


def test_identities_are_equal_for_equal_items_in_every_process():
    found = identities(["ab", "b", b"ab", "", "ab"])
    assert found.dtype == torch.int64
    assert (found >= 0).all()
    assert found[0] == found[2] == found[4]
    assert len(set(found.tolist())) == 3
    code = "from accel.alignment import identities; print(identities(['ab', 'b']).tolist())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "5", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert other.stdout.strip() == str(found[:2].tolist())
    assert identities([]).shape == (0,)


@pytest.mark.parametrize(("strategy", "expected"), [("absolute", 0.3), ("relative", 0.4)])
def test_thresholds_of_a_guide(strategy, expected):
    """The partner's cosine is 0.5; a row without a partner leaves nothing out."""
    guide_x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    guide_y = torch.tensor([[0.5, 0.75**0.5], [1.0, 0.0]])
    pairing = guided(
        matched_pairs(torch.tensor([0, 1]), torch.tensor([0, 9])), guide_x, guide_y, 0.2, strategy
    )
    torch.testing.assert_close(pairing.guide.x_threshold, torch.tensor([expected, torch.inf]))
    torch.testing.assert_close(pairing.guide.y_threshold, torch.tensor([expected, torch.inf]))
    torch.testing.assert_close(pairing.guide.x.norm(dim=1), torch.ones(2))


def test_a_negative_similarity_is_lowered_by_a_relative_margin_too():
    guide_x, guide_y = torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.5, 0.75**0.5]])
    pairing = guided(aligned_pairs(1), guide_x, guide_y, 0.2, "relative")
    assert pairing.guide.x_threshold.item() == pytest.approx(-0.6)


def test_a_guide_leaves_out_what_it_finds_too_similar():
    x, y = leaves(3, 3)
    guide = torch.tensor([[1.0, 0.0], [1.0, 0.05], [0.0, 1.0]], dtype=torch.float64)
    pairing = guided(aligned_pairs(3), guide, guide, margin=0.1)
    loss = contrastive_loss(x, y, scale=3.0, pairing=pairing)
    logits = 3.0 * x @ y.T
    logits[0, 1] = logits[1, 0] = -torch.inf
    sides = [(one.logsumexp(1) - one.diagonal()).mean() for one in (logits, logits.T)]
    torch.testing.assert_close(loss, sum(sides) / 2)


def test_negatives_are_nobodys_partner_on_either_side():
    both = with_negatives(with_negatives(aligned_pairs(2), 3), 2, side="x")
    assert len(both.x_sample) == 4
    assert len(both.y_sample) == 5
    assert not set(both.x_sample[2:].tolist()) & set(both.y_sample.tolist())
    assert not set(both.y_sample[2:].tolist()) & set(both.x_sample.tolist())
    assert (both.x_sample >= 0).all()
    x, y = leaves(4, 5)
    loss = contrastive_loss(x, y, scale=2.0, pairing=both)
    logits = 2.0 * x @ y.T
    sides = logits[:2].logsumexp(1), logits.T[:2].logsumexp(1)
    expected = sum((side - logits.diagonal()[:2]).mean() for side in sides) / 2
    torch.testing.assert_close(loss, expected)


def test_partners_are_found_in_any_order():
    x, y = leaves(4, 5)
    pairing = Pairing(torch.tensor([3, ABSENT, 8, 1]), torch.tensor([1, 3, ABSENT, 3, 6]))
    (of_x, has_x), (of_y, has_y) = partner_similarities(x, y, pairing)
    assert has_x.tolist() == [True, False, False, True]
    assert has_y.tolist() == [True, True, False, True, False]
    torch.testing.assert_close(
        of_x, torch.stack([x[0] @ y[1], x[0, 0] * 0, x[0, 0] * 0, x[3] @ y[0]])
    )
    assert of_y[2] == of_y[4] == 0.0
    torch.testing.assert_close(of_y[3], x[0] @ y[3])
