"""Several modalities, of which samples lack some: the loss is that of those that have both."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import accel
from accel.alignment import (
    Aligner,
    Bias,
    Pairing,
    Temperature,
    contrastive_loss,
    guided,
    locked,
    normalized,
)
from tests.alignment_models import (
    MODALITIES,
    SIZES,
    aligner,
    assert_alike,
    batch,
    encoders,
    gradients,
    some_presence,
)
from tests.alignment_reference import plain_sigmoid, plain_softmax


def loop_over_pairs(model, given, presence, groups=None, unpaired="ignore"):
    """Pair by pair: drop the rows that are not there, then loop over anchors, in float64."""
    losses = {}
    for a, b in model.pairs:
        has_a, has_b = (presence[:, MODALITIES.index(name)] for name in (a, b))
        rows = range(len(presence))
        both = [i for i in rows if has_a[i] and has_b[i]]
        x_rows, y_rows = both, both
        if unpaired == "negative":
            x_rows, y_rows = ([i for i in rows if has[i]] for has in (has_a, has_b))
        x = F.normalize(model.encoders[a](given[a][x_rows]), dim=-1)
        y = F.normalize(model.encoders[b](given[b][y_rows]), dim=-1)
        pairing = Pairing(torch.tensor(x_rows), torch.tensor(y_rows))
        if groups is not None:
            pairing = pairing._replace(
                x_group=groups[x_rows], y_group=groups[y_rows], duplicates=model._options.duplicates
            )
        name = f"{a}-{b}"
        scale = model.temperatures[name]()
        if model.kind == "softmax":
            losses[name] = plain_softmax(x, y, scale, pairing)
        else:
            losses[name] = plain_sigmoid(x, y, scale, model.biases[name](), pairing)
    return losses


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("unpaired", ["ignore", "negative"])
@pytest.mark.parametrize("size", [2, 3, 17])
def test_the_loss_of_many_is_the_mean_of_the_losses_of_two(kind, unpaired, size):
    model, given, presence = aligner(loss=kind, unpaired=unpaired), batch(size), some_presence(size)
    output = model(given, presence=presence)
    plain = loop_over_pairs(model, given, presence, unpaired=unpaired)
    assert list(output.pair_losses) == ["text-image", "text-audio", "image-audio"]
    for name, loss in plain.items():
        torch.testing.assert_close(output.pair_losses[name], loss)
        assert_alike(
            gradients(output.pair_losses[name], model),
            gradients(loss, model),
            rtol=1e-8,
            atol=1e-10,
        )
    total = torch.stack(list(plain.values())).mean()
    torch.testing.assert_close(output.loss, total)
    fresh = model(given, presence=presence)
    assert_alike(gradients(fresh.loss, model), gradients(total, model), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("duplicates", ["positive", "ignore", "negative"])
@pytest.mark.parametrize("unpaired", ["ignore", "negative"])
def test_identities(duplicates, unpaired):
    model = aligner(duplicates=duplicates, unpaired=unpaired)
    given, presence, groups = batch(13), some_presence(13), torch.randint(-1, 4, (13,))
    output = model(given, presence=presence, groups=groups)
    plain = loop_over_pairs(model, given, presence, groups, unpaired)
    total = torch.stack(list(plain.values())).mean()
    torch.testing.assert_close(output.loss, total)
    assert_alike(gradients(output.loss, model), gradients(total, model), rtol=1e-8, atol=1e-10)


def test_an_absent_row_changes_nothing_whatever_is_in_it():
    """Neither in rows nor in columns; NaN in it reaches neither the loss nor a gradient."""
    model, given, presence = aligner(), batch(9), some_presence(9)
    expected = model(given, presence=presence)
    expected_gradients = gradients(expected.loss, model)
    spoiled = {
        name: one.masked_fill(~presence[:, [column]], torch.nan)
        for column, (name, one) in enumerate(given.items())
    }
    output = model(spoiled, presence=presence)
    assert torch.equal(output.loss, expected.loss)
    assert_alike(gradients(output.loss, model), expected_gradients, rtol=0, atol=0)


def test_whole_rows_compact_rows_and_embeddings_are_the_same():
    model, given, presence = aligner(), batch(9), some_presence(9)
    expected = model(given, presence=presence)
    compact = {name: one[presence[:, i]] for i, (name, one) in enumerate(given.items())}
    whole = {name: model.encode(name, one) for name, one in given.items()}
    for output in (
        model(compact, presence=presence),
        model.loss(whole, presence=presence),
        model.loss(expected.embeddings, presence=presence),
    ):
        torch.testing.assert_close(output.loss, expected.loss)
        assert output.pair_counts == expected.pair_counts
        for name, rows in output.embeddings.items():
            torch.testing.assert_close(rows, expected.embeddings[name])
            assert len(rows) == int(presence[:, MODALITIES.index(name)].sum())


def test_no_presence_is_everybody_present():
    model, given = aligner(), batch(7)
    everybody = torch.ones(7, 3, dtype=torch.bool)
    output = model(given)
    torch.testing.assert_close(output.loss, model(given, presence=everybody).loss)
    assert output.pair_counts == {"text-image": 7, "text-audio": 7, "image-audio": 7}


def test_a_modality_that_the_batch_does_not_hold_is_absent_and_not_encoded():
    model, given = aligner(), batch(5)
    del given["audio"]
    model.encoders["audio"].register_forward_hook(lambda *_: pytest.fail("it was run"))
    output = model(given)
    assert output.pair_counts == {"text-image": 5, "text-audio": 0, "image-audio": 0}
    torch.testing.assert_close(output.loss, output.pair_losses["text-image"])
    assert output.embeddings["audio"].shape == (0, 6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_pair_that_does_not_occur_is_zero_with_zero_gradients(kind):
    model, given = aligner(loss=kind), batch(6)
    presence = torch.tensor(
        [[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]]
    ).bool()
    output = model(given, presence=presence)
    assert output.pair_counts == {"text-image": 3, "text-audio": 0, "image-audio": 2}
    absent = output.pair_losses["text-audio"]
    assert absent.item() == 0.0
    assert absent.requires_grad
    assert not any(one.any() for one in gradients(absent, model).values())
    fresh = model(given, presence=presence)
    mean = (fresh.pair_losses["text-image"] + fresh.pair_losses["image-audio"]) / 2
    torch.testing.assert_close(fresh.loss, mean)
    fresh.loss.backward()
    # DDP waits for every parameter: the temperature of that pair has a gradient, of zero.
    assert not model.temperatures["text-audio"].log_scale.grad.any()


def test_encoders_of_no_rows_get_zero_gradients():
    model, given = aligner(), batch(4)
    presence = torch.tensor([[True, True, False]] * 4)
    model(given, presence=presence).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == ("audio" not in name), name


# --- options -------------------------------------------------------------------------------------


def test_weights():
    given, presence = batch(12), some_presence(12)
    weights = {("text", "image"): 2.0, "audio-text": 0.5, ("audio", "image"): 0.0}
    model = aligner(weights=weights)
    output = model(given, presence=presence)
    found = output.pair_losses
    torch.testing.assert_close(
        output.loss, (2.0 * found["text-image"] + 0.5 * found["text-audio"]) / 2.5
    )
    counted = aligner(weights="count")
    counted.load_state_dict(model.state_dict())
    output = counted(given, presence=presence)
    counts = output.pair_counts
    assert len(set(counts.values())) > 1
    total = sum(counts[name] * loss for name, loss in output.pair_losses.items())
    torch.testing.assert_close(output.loss, total / sum(counts.values()))


def test_one_temperature_for_all_or_one_for_each():
    shared = aligner(temperature=Temperature(12.0), loss="sigmoid", bias=Bias(-4.0))
    assert [n for n in shared.state_dict() if "encoders" not in n] == [
        "temperatures.shared.log_scale", "biases.shared.bias",
    ]  # fmt: skip
    mixed = aligner(temperature={"image-text": 20.0, ("text", "audio"): Temperature(30.0)})
    assert {name: round(one().item()) for name, one in mixed.temperatures.items()} == {
        "text-image": 20, "text-audio": 30, "image-audio": 14,
    }  # fmt: skip
    default = Aligner(encoders(), dim=6, loss="sigmoid")
    assert {round(one().item()) for one in default.temperatures.values()} == {10}
    assert {one().item() for one in default.biases.values()} == {-10.0}
    assert not Aligner(encoders(), dim=6).biases


@pytest.mark.parametrize("by_pair", [False, True])
def test_a_shared_temperature_at_its_bound_judges_by_the_sum_of_all_pairs(by_pair):
    """One pair wants a higher scale and one a lower; what counts is what both want."""
    shared, pairs = Temperature(4.0, bounds=(1.0, 4.0)), [("text", "image"), ("text", "audio")]
    model = Aligner(
        {name: nn.Identity() for name in MODALITIES}, dim=4, pairs=pairs,
        temperature=dict.fromkeys(pairs, shared) if by_pair else shared,
    )  # fmt: skip
    log_scale = shared.log_scale
    text = torch.eye(4)
    image, audio = normalized(text + 0.3), text.roll(1, 0)
    output = model.loss({"text": text, "image": image, "audio": audio})
    alone = [
        torch.autograd.grad(one, log_scale, retain_graph=True)[0].item()
        for one in output.pair_losses.values()
    ]
    assert alone[0] == 0.0  # outward
    assert alone[1] > 0.0
    scale = torch.tensor(4.0, requires_grad=True)
    both = contrastive_loss(text, image, scale=scale) + contrastive_loss(text, audio, scale=scale)
    (slope,) = torch.autograd.grad(both / 2, scale)
    (whole,) = torch.autograd.grad(output.loss, log_scale)
    assert 0.0 < slope.item() * 4.0 < 0.9 * alone[1] / 2
    assert whole.item() == pytest.approx(slope.item() * 4.0, rel=1e-4)


def test_a_bias_under_several_pairs_is_clamped_once():
    """Two pairs share one, a third has its own; it is at its bound, where the two disagree."""
    shared, pairs = Bias(0.0, bounds=(-9.0, 0.0)), [("text", "image"), ("text", "audio")]
    model = Aligner(
        {name: nn.Identity() for name in MODALITIES}, dim=4, loss="sigmoid", temperature=9.0,
        bias=dict.fromkeys(pairs, shared),
    )  # fmt: skip
    text = torch.eye(4)
    given = {"text": text, "image": normalized(text - 0.8), "audio": normalized(0.4 - text)}
    output = model.loss(given)
    alone = [
        torch.autograd.grad(output.pair_losses[f"text-{name}"], shared.bias, retain_graph=True)[0]
        for name in ("image", "audio")
    ]
    bias = torch.tensor(0.0, requires_grad=True)
    losses = [
        contrastive_loss(given[a], given[b], scale=9.0, bias=bias, kind="sigmoid") for a, b in pairs
    ]
    slopes = [torch.autograd.grad(one, bias, retain_graph=True)[0] for one in losses]
    assert min(slopes) < 0.0 < sum(slopes)  # outward alone, inward together
    torch.testing.assert_close(torch.cat(alone), torch.stack(slopes).clamp(min=0.0))
    (whole,) = torch.autograd.grad(output.loss, shared.bias, retain_graph=True)
    torch.testing.assert_close(whole, sum(slopes).reshape(1) / 3)
    own = model.biases["image-audio"].bias
    assert own is not shared.bias
    assert torch.autograd.grad(output.loss, own)[0].any()


def test_hard_negatives_of_the_first_modality_count_in_the_divisor_of_a_sigmoid():
    model, given = aligner(loss="sigmoid", pairs=[("text", "image")]), batch(5)
    hard = {name: torch.randn(3, SIZES[name], dtype=torch.float64) for name in ("text", "image")}
    found = {
        name: model(given, negatives={name: one}).pair_losses["text-image"]
        for name, one in hard.items()
    }
    x, y, scale, bias = *(model.encode(name, given[name]) for name in hard), 8.0, -10.0
    logits = {
        "text": scale * torch.cat([x, model.encode("text", hard["text"])]) @ y.T + bias,
        "image": scale * x @ torch.cat([y, model.encode("image", hard["image"])]).T + bias,
    }
    for name, divisor in (("text", 5 + 3), ("image", 5)):
        sign = torch.ones_like(logits[name]).fill_diagonal_(-1.0)
        expected = F.softplus(sign * logits[name]).sum() / divisor
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=0.0)


def test_guides_and_hard_negatives():
    model, given, presence = aligner(margin=0.2), batch(9), some_presence(9)
    guide = torch.randn(9, 4, dtype=torch.float64)
    output = model(given, presence=presence, guides=guide)
    both = presence[:, 0] & presence[:, 1]
    x, y = (model.encode(name, given[name][both]) for name in ("text", "image"))
    pairing = guided(
        Pairing(both.nonzero()[:, 0], both.nonzero()[:, 0]), guide[both], guide[both], 0.2
    )
    assert ((pairing.guide.x @ pairing.guide.y.T) > pairing.guide.x_threshold[:, None]).sum() > len(
        x
    )
    torch.testing.assert_close(
        output.pair_losses["text-image"],
        contrastive_loss(x, y, scale=model.temperatures["text-image"](), pairing=pairing),
    )
    by_modality = model(given, presence=presence, guides=dict.fromkeys(MODALITIES, guide))
    torch.testing.assert_close(by_modality.loss, output.loss)

    hard = torch.randn(3, SIZES["image"], dtype=torch.float64)
    output = model(given, presence=presence, negatives={"image": hard})
    columns = torch.cat([y, model.encode("image", hard)])
    logits = model.temperatures["text-image"]() * x @ columns.T
    labels = torch.arange(len(x))
    expected = F.cross_entropy(logits, labels) + F.cross_entropy(logits[:, : len(x)].T, labels)
    torch.testing.assert_close(output.pair_losses["text-image"], expected / 2)


def test_projections():
    linear = Aligner(encoders(), dim=10, projection="linear", features=dict.fromkeys(SIZES, 6))
    assert linear.encode("text", torch.randn(2, 3)).shape == (2, 10)
    assert [tuple(one.weight.shape) for one in linear.projections.values()] == [(10, 6)] * 3
    mlp = Aligner(encoders(), dim=10, projection="mlp", features=dict.fromkeys(SIZES, 6))
    assert len(list(mlp.projections["audio"].parameters())) == 3
    own = Aligner(encoders(), dim=6, projection={"image": nn.Linear(6, 6)})
    assert list(own.projections) == ["image"]
    assert own.encode("text", torch.randn(2, 3)).shape == (2, 6)


# --- embeddings ----------------------------------------------------------------------------------


def test_embeddings_have_norm_one_and_float32_at_least():
    for dtype, expected in (
        (torch.float64, torch.float64), (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32), (torch.float16, torch.float32),
    ):  # fmt: skip
        model = Aligner({"a": nn.Identity(), "b": nn.Identity()}, dim=50)
        found = model.encode("a", torch.randn(4, 50).to(dtype))
        assert found.dtype == expected
        torch.testing.assert_close(found.norm(dim=1), torch.ones(4, dtype=expected))


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_rows_of_any_length(factor):
    rows = torch.randn(5, 7, dtype=torch.float64)
    expected = F.normalize(rows, dim=-1).float()
    model = Aligner({"a": nn.Identity(), "b": nn.Identity()}, dim=7)
    given = (rows * factor).float().requires_grad_()
    found = model.encode("a", given)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), given)
    rows.requires_grad_()
    (exact,) = torch.autograd.grad(F.normalize(rows, dim=-1)[:, 0].sum(), rows)
    torch.testing.assert_close(gradient.double() * factor, exact, rtol=1e-4, atol=1e-6)


def test_a_zero_vector_is_similar_to_nothing_and_can_leave():
    model = Aligner({"a": nn.Identity(), "b": nn.Identity()}, dim=4, temperature=5.0)
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    x[1] = 0.0
    x.requires_grad_()
    output = model({"a": x, "b": y})
    assert not output.embeddings["a"][1].any()
    similarities = output.embeddings["a"] @ output.embeddings["b"].T
    assert not similarities[1].any()
    labels = torch.arange(3)
    expected = F.cross_entropy(5 * similarities, labels) + F.cross_entropy(
        5 * similarities.T, labels
    )
    torch.testing.assert_close(output.loss, expected / 2)
    (gradient,) = torch.autograd.grad(output.loss, x)
    assert gradient.isfinite().all()
    assert 0 < gradient[1].norm() < 10.0


def test_nan_makes_the_loss_nan_and_is_named_if_asked():
    model = Aligner({"a": nn.Identity(), "b": nn.Identity()}, dim=4)
    x, y = torch.randn(20, 4), torch.randn(20, 4)
    y[3] = torch.nan
    assert model({"a": x, "b": y}).loss.isnan()
    model.check = True
    presence = torch.ones(20, 2, dtype=torch.bool)
    presence[0, 1] = False  # rows are named by their place in the batch
    with pytest.raises(ValueError, match=r"'b' are NaN or infinite for 1 of 19 rows, samples 3 of"):
        model({"a": x, "b": y}, presence=presence)
    y[5:] = torch.inf
    with pytest.raises(ValueError, match=r"16 of 20 rows, samples 3, 5, .*, 11 and 8 more"):
        model({"a": x, "b": y})
    presence[3:, 1] = False
    assert model({"a": x, "b": y}, presence=presence).loss.isfinite()


# --- as a module ---------------------------------------------------------------------------------


def test_under_a_precision_policy_the_loss_is_float32(device):
    model = Aligner(encoders(), dim=6).to(device.torch_device)
    precision = accel.precision.Precision(model, "compute=bfloat16")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {name: one.float().to(device.torch_device) for name, one in batch(12).items()}
    with precision.autocast():
        output = model(given, presence=some_presence(12))
    assert output.loss.dtype == torch.float32
    assert {one.dtype for one in output.embeddings.values()} == {torch.float32}
    precision.backward(output.loss)
    assert precision.step(optimizer, max_norm=1.0)
    with precision.autocast():  # what the loss is of those embeddings, outside
        again = model(given)
    torch.testing.assert_close(again.loss, model.loss(again.embeddings).loss)


def test_compiled_encoders():
    plain = aligner()
    model = copy.deepcopy(plain)
    for name in MODALITIES:
        model.encoders[name] = torch.compile(model.encoders[name], backend="aot_eager")
    given, presence = batch(9), some_presence(9)
    output, expected = model(given, presence=presence), plain(given, presence=presence)
    torch.testing.assert_close(output.loss, expected.loss)
    output.loss.backward()
    expected.loss.backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("options", [{}, {"loss": "sigmoid", "unpaired": "negative"}], ids=str)
def test_without_presence_it_compiles_whole(options):
    model, given, groups = aligner(**options), batch(9), torch.tensor([0, 1, 2, 0, 0, 3, 4, 5, -1])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    output, expected = compiled(given, groups=groups), model(given, groups=groups)
    torch.testing.assert_close(output.loss, expected.loss)
    assert output.pair_counts == expected.pair_counts
    output.loss.backward()
    for name, gradient in gradients(expected.loss, model).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_a_locked_tower_stays_and_the_others_meet_it():
    model, given = aligner(), batch(9)
    locked(model.encoders["image"])
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first = model(given)
    first.loss.backward()
    optimizer.step()
    assert model(given).loss < first.loss
    changed = {
        name for name, one in model.state_dict().items() if not torch.equal(one, before[name])
    }
    assert not any("image" in name for name in changed if "encoders" in name)
    assert any("text" in name for name in changed)


def test_copies_moves_and_state(device):
    model = Aligner(encoders(), dim=6, projection={"text": nn.Linear(6, 6)}, loss="sigmoid")
    model = model.to(device.torch_device)
    given = {name: one.float().to(device.torch_device) for name, one in batch(8).items()}
    expected = model(given).loss
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(given).loss, expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(twin(given).loss, expected)
    assert all(isinstance(one, torch.Tensor) for one in twin.state_dict().values())
    model.load_state_dict(twin.state_dict())
    torch.testing.assert_close(model(given).loss, expected)


def test_pairs_that_are_not_trained_are_compared_by_what_encode_returns():
    """Audio and text meet in the image only, and still agree after training."""
    torch.manual_seed(3)
    model = Aligner(
        {name: nn.Linear(5, 4) for name in MODALITIES}, dim=4, pairs="hub:image", temperature=5.0
    )
    assert model.pairs == (("text", "image"), ("image", "audio"))
    assert model.emergent_pairs == (("text", "audio"),)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    hidden = torch.randn(64, 5)
    mixing = {name: torch.linalg.qr(torch.randn(5, 5))[0] for name in MODALITIES}
    given = {name: hidden @ mix for name, mix in mixing.items()}
    for _ in range(150):
        optimizer.zero_grad()
        model(given).loss.backward()
        optimizer.step()
    with torch.no_grad():
        text, audio = (model.encode(name, given[name]) for name in ("text", "audio"))
    nearest = (text @ audio.T).argmax(1)
    assert (nearest == torch.arange(64)).float().mean() > 0.6  # 1/64 by chance
