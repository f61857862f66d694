"""A policy in other people's loops: the same numbers as in one's own."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from torch import nn

from accel.precision import DynamicLossScale, Precision, attach

STEPS, SIZE = 6, 8
POLICIES = ["compute=float32", "compute=bfloat16", "compute=float16"]


class Model(nn.Module):
    """Returns a loss, as models of transformers do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, x, labels=None):
        out = self.body(x)
        return {"loss": (out - labels).float().square().mean(), "logits": out}


def samples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS * SIZE, 4, generator=generator)
    return [{"x": row, "labels": row.sum().reshape(1)} for row in x]


def batches():
    rows = samples()
    parts = [rows[n : n + SIZE] for n in range(0, len(rows), SIZE)]
    return [{key: torch.stack([row[key] for row in part]) for key in part[0]} for part in parts]


def prepared(policy, scale=1024.0):
    model = Model()
    half = policy.endswith("float16")
    precision = Precision(model, policy, loss_scale=DynamicLossScale(scale) if half else None)
    return model, precision, torch.optim.AdamW(model.parameters(), lr=1e-2)


def own_loop(policy, max_norm=None, scale=1024.0, accumulate=1):
    model, precision, optimizer = prepared(policy, scale)
    for n, batch in enumerate(batches()):
        with precision.autocast():
            loss = model(**batch)["loss"] / accumulate
        precision.backward(loss)
        if (n + 1) % accumulate == 0:
            precision.step(optimizer, max_norm)
            optimizer.zero_grad()
    return model, precision


def equal(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def close(one, other):
    """To the rounding that a loop's own arithmetic around the loss makes."""
    for x, y in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_plain_loop(policy, max_norm, accumulate):
    expected, own = own_loop(policy, max_norm, accumulate=accumulate)
    model, precision, optimizer = prepared(policy)
    attach(precision, optimizer, max_norm=max_norm)
    for n, batch in enumerate(batches()):
        (model(**batch)["loss"] / accumulate).backward()
        if (n + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert equal(model, expected)
    assert precision.state_dict() == own.state_dict()


def test_losses_and_gradients_look_unscaled():
    model, precision, optimizer = prepared("compute=float16")
    batch = batches()[0]
    with precision.autocast():
        expected = model(**batch)["loss"]
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    attach(precision, optimizer)
    loss = model(**batch)["loss"]
    assert loss == expected
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=5e-3, atol=1e-5)


def test_gradients_that_float16_would_lose_survive():
    weight = nn.Linear(4, 1, bias=False)
    precision = Precision(weight, "compute=float16")
    attach(precision, torch.optim.SGD(weight.parameters()))
    (weight(torch.ones(1, 4)).sum() * 2.0**-27).backward()
    assert torch.all(weight.weight.grad == 2.0**-27)


def test_a_step_that_is_skipped(caplog):
    model, precision, optimizer = prepared("compute=float16", scale=2.0**40)
    attach(precision, optimizer)
    before = Model()
    model(**batches()[0])["loss"].backward()
    optimizer.step()
    assert equal(model, before)
    assert precision.last_skipped.loss_scale == 2.0**40
    assert "step 0 skipped" in caplog.text
    model(**batches()[1])
    assert precision.loss_scale.value == 2.0**39


@pytest.mark.parametrize("policy", POLICIES)
def test_accelerate(policy):
    from accelerate import Accelerator

    expected, _ = own_loop(policy)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model, precision, optimizer = prepared(policy)
    attach(precision, optimizer)
    wrapped, stepping = accelerator.prepare(model, optimizer)
    for batch in batches():
        accelerator.backward(wrapped(**batch)["loss"])
        stepping.step()
        stepping.zero_grad()
    close(model, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_transformers_trainer(policy, tmp_path):
    """Its clipping acts on unscaled gradients."""
    transformers = pytest.importorskip("transformers")
    expected, own = own_loop(policy, max_norm=0.1)
    model, precision, optimizer = prepared(policy)
    attach(precision, optimizer)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=SIZE, num_train_epochs=1,
        max_grad_norm=0.1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        lr_scheduler_type="constant", train_sampling_strategy="sequential",
    )  # fmt: skip
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=samples(), optimizers=(optimizer, constant)
    )
    trainer.train()
    close(model, expected)
    assert precision.state_dict()["steps"] == own.state_dict()["steps"] == STEPS


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # its own use of torch
@pytest.mark.parametrize("policy", POLICIES)
def test_lightning(policy, tmp_path):
    """It hands the optimizer's step a closure that runs forward and backward."""
    pytest.importorskip("pytorch_lightning")
    import pytorch_lightning as lightning

    expected, _ = own_loop(policy)
    model, precision, optimizer = prepared(policy)

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            attach(precision, optimizer)
            return optimizer

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Task(), torch.utils.data.DataLoader(samples(), batch_size=SIZE))
    close(model, expected)
    assert precision.state_dict()["steps"] == STEPS


def test_detach_brings_back_what_was():
    model, precision, optimizer = prepared("compute=float16")
    attached = attach(precision, optimizer)
    attached.detach()
    attached.detach()
    assert "forward" not in vars(model)
    assert "step" not in vars(optimizer)
    batch = batches()[0]
    model(**batch)["loss"].backward()
    assert model(**batch)["logits"].dtype == torch.float32
    optimizer.step()
    assert precision.state_dict()["steps"] == 0
    attach(precision, optimizer)  # again


def test_detach_under_somebody_elses_wrapper():
    model, precision, optimizer = prepared("compute=float32")
    attached = attach(precision, optimizer)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # wraps the step
    attached.detach()
    model(**batches()[0])["loss"].backward()
    before = model.body[0].weight.detach().clone()
    optimizer.step()
    assert precision.state_dict()["steps"] == 0
    assert not torch.equal(model.body[0].weight, before)


def test_signatures_stay():
    """Trainer drops what the forward does not name."""
    model, precision, optimizer = prepared("compute=float32")
    before = inspect.signature(model.forward), inspect.signature(optimizer.step)
    attach(precision, optimizer)
    assert (inspect.signature(model.forward), inspect.signature(optimizer.step)) == before


def test_evaluation_is_autocast_and_nothing_else():
    model, precision, optimizer = prepared("compute=bfloat16")
    attach(precision, optimizer)
    with torch.no_grad():
        assert model(**batches()[0])["logits"].dtype == torch.bfloat16


def pair(scale):
    """A model with and one without a policy, the same weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    twin = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    twin.load_state_dict(model.state_dict())
    precision = Precision(model, "compute=float16", loss_scale=DynamicLossScale(scale))
    return model, twin, precision


def near(one, other):
    """To what float16 rounds."""
    torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3)


def test_gradients_that_leave_by_the_inputs_are_unscaled():
    """A generator before a discriminator, or an encoder that the policy does not know."""
    model, twin, precision = pair(1024.0)
    attach(precision, torch.optim.SGD(model.parameters()))
    found = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    expected = found.detach().clone().requires_grad_()
    model(found).square().mean().backward()
    twin(expected).square().mean().backward()
    near(found.grad, expected.grad)
    near(model[0].weight.grad, twin[0].weight.grad)


def test_a_model_that_is_called_on_its_own_output():
    model, twin, precision = pair(1024.0)
    attach(precision, torch.optim.SGD(model.parameters()))
    x = torch.ones(3, 4)
    model(model(model(x))).square().mean().backward()
    twin(twin(twin(x))).square().mean().backward()
    near(model[0].weight.grad, twin[0].weight.grad)


def test_a_scale_that_changes_between_forward_and_backward():
    model, twin, precision = pair(2.0**15)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(precision, optimizer)
    x = torch.ones(3, 4)
    early = model(x).square().mean()
    (model(x) * float("inf")).sum().backward()
    optimizer.step()  # skipped
    optimizer.zero_grad()
    late = model(x).square().mean()  # by half the scale
    assert precision.loss_scale.value == 2.0**14
    (early + late).backward()
    (2.0 * twin(x).square().mean()).backward()
    near(model[0].weight.grad, twin[0].weight.grad)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loop_may_change_what_the_model_returns(policy):
    model, precision, optimizer = prepared(policy)
    attach(precision, optimizer)
    batch = batches()[0]
    outputs = model(**batch)
    outputs["loss"].div_(2.0).backward()
    halves = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    model(**batch)["loss"].backward()
    for parameter, half in zip(model.parameters(), halves, strict=True):
        assert torch.equal(parameter.grad, 2.0 * half)


def test_a_backward_after_detach_is_unscaled():
    model, twin, precision = pair(1024.0)
    attached = attach(precision, torch.optim.SGD(model.parameters()))
    x = torch.ones(3, 4)
    loss = model(x).square().mean()
    attached.detach()
    loss.backward()
    twin(x).square().mean().backward()
    near(model[0].weight.grad, twin[0].weight.grad)


class TestMisuse:
    def test_no_optimizer(self):
        _, precision, _ = prepared("compute=float32")
        with pytest.raises(ValueError, match="takes the optimizers"):
            attach(precision)

    def test_twice(self):
        model, precision, optimizer = prepared("compute=float32")
        attach(precision, optimizer)
        with pytest.raises(ValueError, match="Model is attached already"):
            attach(precision, torch.optim.SGD(model.parameters()))
        other = Precision(Model(), "compute=float32")
        with pytest.raises(ValueError, match="AdamW is attached already"):
            attach(other, optimizer)
        assert "forward" not in vars(other.model)

    def test_float16_parameters_under_a_scale(self):
        model = nn.Linear(2, 1).half()
        precision = Precision(model, "compute=float16")
        with pytest.raises(ValueError, match="weight is in float16"):
            attach(precision, torch.optim.SGD(model.parameters()))
        assert "forward" not in vars(model)

    def test_an_optimizer_that_steps_by_a_closure_only(self):
        model, precision, _ = prepared("compute=float32")
        with pytest.raises(ValueError, match="LBFGS calls its closure"):
            attach(precision, torch.optim.LBFGS(model.parameters()))
        assert "forward" not in vars(model)
