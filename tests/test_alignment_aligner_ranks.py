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


def test_whatever_an_encoder_raises_no_rank_waits_for_it(said):
    told = "ValueError: rank 1 cannot take part in the loss: "
    assert len(said[0]["raising"]) == 18
    for first, second in zip(*(one["raising"].items() for one in said), strict=True):
        assert first == (second[0], told + second[1])
        assert second[1].startswith(second[0].split()[1])


def test_who_fails_before_chunks_are_agreed_on_is_not_waited_for_either(said):
    first, second = (one["chunks"] for one in said)
    assert second.startswith("ValueError: an input of 'a' requires a gradient")
    assert first == f"ValueError: rank 1 cannot take part in the loss: {second}"


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        (
            "weights",
            "weights is a-b 1.0, a-c 1.0, b-c 1.0 on rank 0 and a-b 2.5, a-c 1.0, b-c 1.0 on rank "
            "1",
        ),
        ("count", "weights is a-b 1.0, a-c 1.0, b-c 1.0 on rank 0 and count on rank 1"),
        ("margin", "margin is 0.0 on rank 0 and 0.1 on rank 1"),
        ("margin_strategy", "margin_strategy is absolute on rank 0 and relative on rank 1"),
        ("hardness", "hardness is 0.0 on rank 0 and 2.0 on rank 1"),
        ("duplicates", "duplicates is positive on rank 0 and ignore on rank 1"),
        ("pairs", "pairs is a-b, a-c, b-c on rank 0 and b-c, a-b on rank 1"),
        ("direction", "direction is x_to_y on rank 0 and y_to_x on rank 1"),
        ("unpaired", "unpaired is ignore on rank 0 and negative on rank 1"),
        ("form", "form is all_gather on rank 0 and ring on rank 1"),
        ("loss", "loss is softmax on rank 0 and sigmoid on rank 1"),
        ("scale", "the temperature that is learned is a-b, a-c, b-c on rank 0 and none on rank 1"),
        ("bias", "the bias that is learned is none on rank 0 and a-b, a-c, b-c on rank 1"),
    ],
)
def test_options_that_differ_are_one_error_on_every_rank(said, case, difference):
    text = f"ValueError: every rank must call the loss alike, but {difference}"
    assert [one["different"][case] for one in said] == [text, text]
    assert said[0]["different"].keys() == worker.DIFFERENT.keys()


def test_a_backward_notices_a_pairing_that_was_changed(said):
    for one in said:
        assert len(one["changed"]) == 20
        for case, text in one["changed"].items():
            if case.split()[-1] in ("nothing", "inference"):
                assert text == "no error", case
            else:
                assert "a tensor of the pairing was changed in place" in text, case
