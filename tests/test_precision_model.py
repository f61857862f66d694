"""Precision as a whole: rules, eight bits, controller and loss scale on one model."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch
from torch import nn

import accel
from accel.precision import ControllerConfig, DynamicLossScale, NoLossScale, Policy, Precision
from accel.precision.fsdp import mixed_precision_policy
from accel_kernels.budgets import FACTOR, unit_roundoff

FP8 = "fp8_tensorwise,emulate; head=bfloat16"
MAP = "{linear: fp16, conv: bf16, embedding: fp32}"


class Model(nn.Module):
    """An embedding, a convolution and linear layers; returns a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Embedding(17, 32)
        self.mix = nn.Conv1d(32, 32, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 17)

    def forward(self, text):
        x = self.token(text)
        x = x + self.mix(x.mT).mT
        logits = self.head(x + self.body(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), text.flatten())


def text(step, device="cpu"):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(17, (2, 16), generator=generator).to(device)


def prepared(policy, device="cpu", **options):
    model = Model().to(device)
    return model, Precision(model, policy, **options), torch.optim.AdamW(model.parameters(), 1e-2)


def advance(model, precision, optimizer, steps):
    device = next(model.parameters()).device
    losses = []
    for step in steps:
        optimizer.zero_grad()
        with precision.autocast():
            loss = model(text(step, device))
        precision.backward(loss)
        precision.step(optimizer, max_norm=1.0)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "policy", ["bf16", MAP, FP8, "fp8_delayed,emulate", "fp8_block,emulate", "mxfp8,emulate"]
)
def test_learns_as_float32_does(policy):
    losses = advance(*prepared(policy), range(30))
    expected = advance(*prepared("compute=float32"), range(30))
    assert losses[-1] == pytest.approx(expected[-1], rel=0.1)
    assert losses[-1] < 0.8 * losses[0]


def test_the_map_of_three_types(device):
    """Each kind of layer computes in its own dtype, on every device the same."""
    model, precision, _ = prepared(MAP, device.torch_device)
    assert isinstance(precision.loss_scale, DynamicLossScale)
    seen = {}
    for name in ("token", "mix", "body.0", "head"):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, result, name=name: seen.update({name: result.dtype})
        )
    with precision.autocast():
        model(text(0, device.torch_device))
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    assert seen == {"token": single, "mix": brain, "body.0": half, "head": half}
    kinds = {plan.kind: plan.compute for plan in precision.resolution.values()}
    assert kinds["Embedding"] == single
    assert kinds["Conv1d"] == brain
    assert kinds["Linear"] == half


def test_the_map_trains_alike_on_every_device(device):
    """One table; losses at most twice as far from float64 as the CPU's, plus a rounding."""
    here, *others = prepared(MAP, device.torch_device)
    policy, plain = Policy.parse(MAP), Model()
    table, expected = policy.explain(here), policy.explain(plain)
    assert str(table).split("\non ")[0] == str(expected).split("\non ")[0]
    assert (table.rows, table.notes) == (expected.rows, expected.notes)

    exact = plain.double()
    optimizer = torch.optim.AdamW(exact.parameters(), 1e-2)
    truth = []
    for step in range(20):
        optimizer.zero_grad()
        loss = exact(text(step))
        loss.backward()
        nn.utils.clip_grad_norm_(exact.parameters(), 1.0)
        optimizer.step()
        truth.append(loss.item())
    found, on_cpu, truth = map(
        torch.tensor, (advance(here, *others, range(20)), advance(*prepared(MAP), range(20)), truth)
    )
    rounding = unit_roundoff(torch.bfloat16) * truth.norm()
    assert (on_cpu - truth).norm() < rounding
    assert (found - truth).norm() <= FACTOR * (on_cpu - truth).norm() + rounding


def test_close_gives_the_plain_model_back():
    model, precision, optimizer = prepared(f"{FP8}; mix=float32")
    classes = [type(module) for module in Model().modules()]
    assert [type(module) for module in model.modules()] != classes
    advance(model, precision, optimizer, range(2))
    state = copy.deepcopy(model.state_dict())
    precision.close()
    assert [type(module) for module in model.modules()] == classes
    assert precision.layers == {}
    plain = Model()
    plain.load_state_dict(state)
    assert plain(text(9)) == model(text(9))


def test_another_precision_over_a_model_in_eight_bits_is_refused():
    model, _, _ = prepared(FP8)
    with pytest.raises(TypeError, match="already"):
        Precision(model, FP8)


@pytest.mark.parametrize("policy", [FP8, "fp8_delayed,emulate", "mxfp8,emulate"])
def test_resumes_to_the_bit_in_the_middle_of_a_controlled_run(policy, tmp_path):
    def build(log):
        config = ControllerConfig(interval=2)
        return prepared(policy, controller=config, log=tmp_path / log)

    model, precision, optimizer = build("a.jsonl")
    advance(model, precision, optimizer, range(5))
    parts = {"model": model, "optimizer": optimizer, "precision": precision}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "f")
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    expected = advance(model, precision, optimizer, range(5, 12))

    twin, resumed, by_twin = build("b.jsonl")
    state = accel.load(tmp_path / "f")
    twin.load_state_dict(state["model"])
    by_twin.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["precision"])
    assert advance(twin, resumed, by_twin, range(5, 12)) == expected
    one, other = (
        torch.utils._pytree.tree_leaves([part.state_dict() for part in parts])
        for parts in ((model, optimizer, precision), (twin, by_twin, resumed))
    )
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_nan_in_the_loss_at_step_0(caplog):
    model, precision, optimizer = prepared(FP8, controller=ControllerConfig())
    before = copy.deepcopy(model.state_dict())
    with precision.autocast():
        loss = model(text(0)) * math.nan
    precision.backward(loss)
    assert not precision.step(optimizer)
    assert "step 0 skipped: the loss is nan" in caplog.text
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    assert all(math.isfinite(loss) for loss in advance(model, precision, optimizer, range(3)))


def test_two_optimizers_close_one_step():
    model, precision, _ = prepared("fp8_delayed,emulate")
    parts = [model.token, model.mix], [model.body, model.head]
    optimizers = [
        torch.optim.SGD([p for part in group for p in part.parameters()], lr=0.1) for group in parts
    ]
    for step in range(3):
        with precision.autocast():
            loss = model(text(step))
        precision.backward(loss)
        for optimizer in optimizers:
            precision.step(optimizer)
    assert {layer.steps for layer in precision.layers.values()} == {3}


@pytest.mark.parametrize(
    ("text_of", "output", "expected"),
    [("bf16", None, torch.bfloat16), ("compute=bfloat16,output=float32", None, torch.float32)],
)
def test_the_output_dtype(text_of, output, expected):
    model = nn.Linear(4, 4)
    precision = Precision(model, text_of)
    with precision.autocast():
        assert model(torch.ones(2, 4)).dtype == expected
    precision.close()
    assert not model._forward_hooks


def test_parameters_in_another_dtype_than_the_policy_names():
    with pytest.raises(ValueError, match=r"token.weight is torch.float32: call model.to"):
        Precision(Model(), "params=bfloat16")
    assert Precision(Model().bfloat16(), "params=bfloat16")


def test_a_log_without_a_controller(tmp_path):
    with pytest.raises(ValueError, match="log is where a controller writes"):
        Precision(Model(), FP8, log=tmp_path / "log")
    with pytest.raises(ValueError, match="nothing to control"):
        Precision(Model(), "bf16", controller=ControllerConfig())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "model is a Module, not None"),
        ({"policy": {"linear": "fp16"}}, r"not {'linear': 'fp16'}; Policy.load reads a file"),
        ({"loss_scale": 1024.0}, "loss_scale is a LossScale, not 1024.0"),
        ({"controller": True}, "controller is a ControllerConfig, not True"),
    ],
)
def test_arguments_of_other_kinds(arguments, message):
    with pytest.raises(TypeError, match=message):
        Precision(**{"model": Model(), "policy": FP8, **arguments})


@pytest.mark.parametrize("state", [None, [], {}, {"token.weight": torch.ones(1)}])
def test_what_is_no_state_of_precision(state):
    _, precision, _ = prepared("bf16")
    with pytest.raises(ValueError, match=r"no state of Precision, .*its state_dict"):
        precision.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {}}, r"body.0.*differ"),
        ({"layers": None}, "differ"),
        ({"controller": {"steps": 1}}, "without|with a controller|trained with"),
    ],
)
def test_a_wrong_state_changes_nothing(change, message):
    _, precision, _ = prepared(FP8)
    before = precision.state_dict()
    with pytest.raises(ValueError, match=message):
        precision.load_state_dict({**before, "steps": 7, **change})
    assert precision.state_dict()["steps"] == 0


def test_a_layer_of_a_wrong_state_leaves_the_others_alone():
    model, precision, optimizer = prepared("fp8_delayed,emulate")
    advance(model, precision, optimizer, range(2))
    state = precision.state_dict()
    bad = copy.deepcopy(state)
    bad["steps"] = 9
    bad["layers"]["body.2"]["steps"] = -1
    with pytest.raises(ValueError, match=r"steps of 'body\.2'"):
        precision.load_state_dict(bad)
    leaves = torch.utils._pytree.tree_leaves
    for a, b in zip(leaves(state), leaves(precision.state_dict()), strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_a_scale_where_any_module_computes_in_float16():
    assert isinstance(Precision(Model(), "compute=bfloat16").loss_scale, NoLossScale)
    mixed = Precision(Model(), "compute=bfloat16; head=float16")
    assert isinstance(mixed.loss_scale, DynamicLossScale)


class TestFsdpPolicy:
    def test_gathers_what_is_computed_in(self):
        found = mixed_precision_policy("compute=bfloat16,output=float32")
        assert (found.param_dtype, found.reduce_dtype) == (torch.bfloat16, torch.float32)
        assert found.output_dtype == torch.float32
        plain = mixed_precision_policy("compute=float32")
        assert (plain.param_dtype, plain.output_dtype) == (None, None)

    def test_float16_is_refused(self):
        with pytest.raises(ValueError, match="compute in bfloat16"):
            mixed_precision_policy("compute=float16")
