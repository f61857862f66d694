"""An aligner in two processes is the one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from accel.alignment import contrastive_loss
from tests import alignment_ranks_worker as worker
from tests.process_groups import launched_well


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    launched_well(Path(worker.__file__), len(worker.SIZES), str(out))
    return [torch.load(out / f"{rank}.pt") for rank in range(len(worker.SIZES))]


@pytest.mark.parametrize("case", worker.CASES)
def test_loss_counts_and_gradients_are_those_of_the_whole_batch(said, case):
    given, presence, groups = worker.whole_batch()
    alone = worker.model_of(case)
    output = alone(given, presence=presence, groups=groups)
    assert output.pair_counts == {"text-image": 5, "text-audio": 2, "image-audio": 0}
    output.loss.backward()
    for loss, counts, gradients in (one[case] for one in said):
        assert counts == output.pair_counts
        torch.testing.assert_close(loss, output.loss)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(
                gradients[name], parameter.grad, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert alone.encoders["text"][0].weight.grad.any()


def test_ranks_agree_that_there_is_nothing(said):
    texts = {one["nothing"] for one in said}
    assert len(texts) == 1
    assert "no sample has both modalities of any pair" in texts.pop()


@pytest.mark.parametrize(
    ("case", "said_of_it"),
    [
        ("groups", "groups must have a row for each of 8 samples"),
        ("nan", "embeddings of 'image' are NaN or infinite for 1 of 5 rows, samples 0"),
        ("sizes", "'text' has 5 rows"),
    ],
)
def test_what_one_rank_does_wrong_no_rank_waits_for(said, case, said_of_it):
    first, second = (one[case] for one in said)
    assert said_of_it in second
    assert first == f"rank 1 cannot take part in the loss: ValueError: {second}"


def test_autocast_does_not_reach_in(said):
    for one in said:
        gathered, gathered_in, ring, ring_in = one["autocast"]
        for plain, inside in ((gathered, gathered_in), (ring, ring_in)):
            assert all(map(torch.equal, plain, inside))


def test_a_clamp_judges_by_the_gradient_of_all_ranks(said):
    x = torch.eye(6)
    y = torch.cat([x[:3], x[3:].roll(1, 0)])
    scale = torch.tensor(4.0, requires_grad=True)
    expected = contrastive_loss(x, y, scale=scale)
    (slope,) = torch.autograd.grad(expected, scale)
    assert slope > 0  # inward; of the first rank's samples alone it would be outward
    for loss, gradient in (one["bounded"] for one in said):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, slope.reshape(1) * 4.0)
