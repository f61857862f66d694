"""What cannot be meant is refused, with what is allowed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accel.alignment import (
    Aligner,
    Temperature,
    aligned_pairs,
    contrastive_loss,
    grouped,
    guided,
    identities,
    matched_pairs,
    with_negatives,
)
from tests.alignment_models import aligner, batch, encoders

X, Y = torch.randn(4, 3), torch.randn(4, 3)
IDS = torch.arange(4)


def refused(call, said, kind=ValueError):
    with pytest.raises(kind, match=said):
        call()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "cosine"}, "kind must be one of softmax, sigmoid, not 'cosine'"),
        ({"direction": "rows"}, "direction must be one of both, x_to_y, y_to_x"),
        ({"kind": "sigmoid", "direction": "x_to_y"}, "sigmoid loss has no direction"),
        ({"form": "broadcast"}, "form must be one of local, all_gather, ring"),
        ({"bias": 1.0}, "softmax loss does not depend on a bias"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"scale": torch.ones(2)}, r"scale must be a floating tensor of shape \[\]"),
        ({"pairing": aligned_pairs(3)}, r"x_sample must be \[4\]"),
        ({"pairing": aligned_pairs(4)._replace(x_group=IDS)}, "both sides or neither"),
        ({"pairing": aligned_pairs(4)._replace(hardness=-1.0)}, "hardness must be finite and"),
    ],
)
def test_losses(options, said):
    refused(lambda: contrastive_loss(X, Y, **{"scale": 1.0, **options}), said)


def test_losses_of_other_things():
    refused(lambda: contrastive_loss(X, Y[:3], scale=1.0), "there are 4 and 3 rows: give a Pairing")
    refused(lambda: contrastive_loss(X, Y[:, :2], scale=1.0), "must agree in D")
    refused(lambda: contrastive_loss(X[0], Y, scale=1.0), r"must be \[rows, dim\]")
    refused(lambda: contrastive_loss(X, Y.double(), scale=1.0), "of one dtype", TypeError)
    refused(
        lambda: contrastive_loss(X.int(), Y.int(), scale=1.0), "must be one of float64", TypeError
    )
    refused(lambda: contrastive_loss([1.0], Y, scale=1.0), "must be a tensor", TypeError)
    refused(lambda: contrastive_loss(X, Y, scale="14"), "must be a tensor", TypeError)
    refused(
        lambda: contrastive_loss(X, Y, scale=1.0, form="ring"),
        "no process group: call torch.distributed.init_process_group first", RuntimeError,
    )  # fmt: skip


def test_pairings():
    plain = aligned_pairs(4)
    refused(lambda: aligned_pairs(-1), "number of rows, not -1")
    refused(lambda: identities(["a", 1]), "text or bytes, not of 1", TypeError)
    refused(lambda: matched_pairs(IDS.int(), IDS), "x_sample must be an int64 tensor", TypeError)
    refused(
        lambda: matched_pairs(IDS, [0, 1]), "y_sample must be an int64 tensor, not list", TypeError
    )
    refused(lambda: matched_pairs(IDS, IDS.reshape(2, 2)), r"must be \[N\], a number for each row")
    refused(lambda: grouped(plain, IDS[:3]), "a group for each of 4 rows, not for 3")
    refused(lambda: grouped(plain, IDS, IDS.float()), "y_group must be an int64", TypeError)
    refused(
        lambda: grouped(plain, IDS, duplicates="drop"), "positive, ignore, negative, not 'drop'"
    )
    refused(lambda: guided(plain, X, Y, -0.1), "margin must be finite and at least 0")
    refused(lambda: guided(plain, X, Y, float("nan")), "margin must be finite and at least 0")
    refused(lambda: guided(plain, X, Y, 0.1, "percent"), "absolute, relative, not 'percent'")
    refused(lambda: guided(plain, X[:3], Y), "a row for each of 4 and 4 rows")
    refused(lambda: with_negatives(plain, -1), "needs a count")
    refused(lambda: with_negatives(plain, 1, side="z"), "side 'x' or 'y'")
    refused(lambda: with_negatives(grouped(plain, IDS), 2), "call with_negatives first")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "triplet"}, "loss must be one of softmax, sigmoid"),
        ({"duplicates": "drop"}, "duplicates must be one of positive, ignore, negative"),
        ({"unpaired": "positive"}, "unpaired must be one of ignore, negative"),
        ({"form": "gather"}, "form must be one of local, all_gather, ring"),
        ({"direction": "rows"}, "direction must be one of both"),
        ({"margin": -1.0}, "margin must be finite and at least 0"),
        ({"margin_strategy": "percent"}, "margin_strategy must be one of absolute, relative"),
        ({"hardness": -1.0}, "hardness must be finite and at least 0"),
        ({"loss": "sigmoid", "direction": "x_to_y"}, "has no direction"),
        ({"bias": -10.0}, "softmax loss does not depend on a bias"),
        ({"pairs": "hub:video"}, "'hub:NAME'"),
        ({"weights": {"text-video": 1.0}}, "no pair that is trained"),
        ({"temperature": {"text-video": 1.0}}, "temperature names 'text-video'"),
        ({"temperature": 1000.0}, "outside of its bounds"),
        ({"projection": "linear"}, "needs the width of each encoder's output: give features="),
        ({"projection": "conv", "features": {}}, "projection must be one of linear, mlp"),
        ({"features": {"text": 3}}, "features are the widths for projection"),
        ({"projection": {"video": nn.Identity()}}, "projection for 'video', but the modalities"),
        ({"dim": 0}, "dim must be a whole number of at least 1, not 0"),
    ],
)
def test_options_of_an_aligner(options, said):
    refused(lambda: Aligner(encoders(), **{"dim": 6, **options}), said)


def test_encoders_that_are_none():
    refused(lambda: Aligner({"text": nn.Identity()}), "at least two encoders, not 1")
    refused(lambda: Aligner({"a-b": nn.Identity(), "c": nn.Identity()}), "may not be called 'a-b'")
    refused(
        lambda: Aligner({"type": nn.Identity(), "c": nn.Identity()}), "may not be called 'type'"
    )
    refused(lambda: Aligner({"a": len, "c": nn.Identity()}), "must be an nn.Module", TypeError)
    refused(lambda: Aligner([nn.Identity()] * 2), "must be a mapping", TypeError)
    refused(lambda: Aligner(encoders(), temperature="hot"), "must be a number, a Temp", TypeError)
    refused(
        lambda: Aligner(encoders(), projection={"text": len}), "must be an nn.Module", TypeError
    )


def test_batches():
    model, given = aligner(), batch(4)
    refused(
        lambda: model({**given, "image": given["image"][:3]}), "different batch sizes: text 4, im"
    )
    refused(lambda: model({**given, "video": given["image"]}), "holds 'video'")
    refused(lambda: model({}), "holds none of the modalities text, image, audio")
    refused(
        lambda: model.encode("video", None), "no modality 'video'; there are text, image, audio"
    )
    refused(lambda: model.loss({"video": X}), "embeddings has 'video'")
    refused(lambda: model.loss({"text": X}), r"must be \[B, 6\], as encode returns them")
    refused(lambda: model.loss({"text": IDS}), "must be a floating tensor", TypeError)
    refused(lambda: model(given, groups=IDS[:3]), "groups must have a row for each of 4 samples")
    refused(lambda: model(given, groups=IDS.float()), "groups must be an int64", TypeError)
    refused(lambda: model(given, guides=X[:3]), "guides of 'text' must have a row for each of 4")
    refused(lambda: model(given, guides={"text": X}), "guides has none for 'image'")
    refused(
        lambda: model(given, guides=X, negatives={"text": given["text"]}), "guides say nothing of"
    )


def test_a_form_of_several_ranks_without_a_process_group():
    model = aligner(form="ring")
    refused(lambda: model(batch(4)), "no process group: call torch.distributed.init", RuntimeError)
    # What else is wrong is not asked of ranks that are not there.
    refused(lambda: model({"text": X}), "no process group", RuntimeError)


def test_encoders_whose_output_does_not_fit():
    wrong = Aligner({"a": nn.Identity(), "b": nn.Identity()}, dim=7)
    refused(lambda: wrong.encode("a", X), r"must be \[B, 7\], not \(4, 3\); projection='linear'")
    refused(lambda: wrong.encode("a", {"x": X}), "must return a floating tensor", TypeError)
    refused(lambda: wrong.encode("a", X.int()), "not torch.int32", TypeError)


def test_a_batch_in_which_no_pair_occurs():
    model, given = aligner(), batch(3)
    presence = torch.eye(3, dtype=torch.bool)
    refused(
        lambda: model(given, presence=presence),
        r"no sample has both modalities of any pair that is trained \(text-image, text-audio, "
        r"image-audio\); of 3 samples there are: text 1, image 1, audio 1",
    )
    refused(
        lambda: model({"text": given["text"]}), "of 3 samples there are: text 3, image 0, audio 0"
    )
    refused(lambda: model(given, presence=presence[:0]), "'text' has 3 rows")
    nobody = {name: one[:0] for name, one in given.items()}
    refused(lambda: model(nobody), "of 0 samples")


def test_a_batch_of_which_nothing_weighs():
    model = aligner(weights={"text-image": 0.0})
    refused(
        lambda: model({name: batch(3)[name] for name in ("text", "image")}),
        "every pair that occurs in this batch has weight 0: text-image",
    )


def test_a_temperature_of_another_module_is_no_bias():
    refused(
        lambda: Aligner(encoders(), loss="sigmoid", bias=Temperature()),
        "bias must be a number, a Bias, or a mapping", TypeError,
    )  # fmt: skip
