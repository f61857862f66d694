"""Precision against hand-written mixed precision, bit for bit."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import accel
from accel.precision import DynamicLossScale, NoLossScale, Policy, Precision, attach
from accel.precision.autocast import portable_autocast
from accel.precision.autocast.kernels import MARK

POLICIES = ["compute=float32", "compute=bfloat16", "compute=float16"]


def make(device, layers=3):
    sizes = [16, 32, 32, 4][: layers + 1]
    steps = [nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*steps, nn.LayerNorm(sizes[layers])).to(device.torch_device)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def batches(device, count):
    return [torch.randn(8, 16, device=device.torch_device) for _ in range(count)]


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    flat = torch.utils._pytree.tree_flatten
    pairs = list(zip(flat(one)[0], flat(other)[0], strict=True))
    assert pairs
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("max_norm", [None, 0.05, 1e6])
@pytest.mark.parametrize("policy", POLICIES)
def test_trains_as_hand_written(device, policy, max_norm, accumulate):
    model, optimizer = make(device)
    twin = copy.deepcopy(model)
    by_hand = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    half = policy == "compute=float16"
    precision = Precision(model, policy, loss_scale=DynamicLossScale(1024.0) if half else None)
    dtype = precision.policy.compute
    scaler = torch.amp.GradScaler(device.torch_type, init_scale=1024.0, enabled=half)
    outcomes = []
    for step in range(5):
        data = batches(device, accumulate)
        if step == 3:
            data[-1][0, 0] = float("inf") if half else 100.0
        for batch in data:
            with precision.autocast():
                loss = (model(batch) ** 2).mean() / accumulate
            precision.backward(loss)
            with portable_autocast(device.torch_type, dtype, enabled=dtype != torch.float32):
                expected = (twin(batch) ** 2).mean() / accumulate
            assert torch.equal(loss.detach().nan_to_num(7), expected.detach().nan_to_num(7))
            scaler.scale(expected).backward()
        scaler.unscale_(by_hand)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
        before = scaler.get_scale()
        assert precision.loss_scale.value == before
        outcomes.append(bool(precision.step(optimizer, max_norm)))
        scaler.step(by_hand)
        scaler.update()
        assert outcomes[-1] == (scaler.get_scale() >= before)
        assert same(model, twin)
        assert same(optimizer, by_hand)
        optimizer.zero_grad()
        by_hand.zero_grad()
    assert outcomes == [True, True, True, not half, True]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_autocast_does(device, policy):
    model, _ = make(device)
    precision = Precision(model, policy)
    assert precision.policy == Policy.parse(policy)
    with precision.autocast():
        assert model[0](batches(device, 1)[0]).dtype == precision.policy.compute
    assert not torch.is_autocast_enabled(device.torch_type)
    with torch.autocast(device.torch_type, torch.bfloat16), precision.autocast():
        assert model[0](batches(device, 1)[0]).dtype == precision.policy.compute


def test_a_scale_only_where_the_dtype_needs_one():
    model = nn.Linear(2, 2)
    assert isinstance(Precision(model, "compute=float16").loss_scale, DynamicLossScale)
    assert isinstance(Precision(model).loss_scale, NoLossScale)
    own = DynamicLossScale(4.0)
    assert Precision(model, Policy(torch.bfloat16), loss_scale=own).loss_scale is own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_loss_of_any_dtype(dtype):
    weight = nn.Parameter(torch.tensor([300.0]))
    precision = Precision(
        nn.ParameterList([weight]), "compute=float16", loss_scale=DynamicLossScale(2.0**14)
    )
    precision.backward((weight.to(dtype) * 2).sum())  # scaled, the loss itself overflows float16
    assert weight.grad.item() == 2.0**15
    assert precision.step(torch.optim.SGD([weight], lr=1.0))
    assert weight.item() == 298.0


def test_gradients_that_float16_would_lose_survive():
    """The reason for a loss scale: 2^-27 is zero in float16."""
    weight = nn.Parameter(torch.ones(4, 4))
    precision = Precision(nn.ParameterList([weight]), "compute=float16")
    with precision.autocast():
        out = torch.ones(1, 4) @ weight
    precision.backward(out.float().sum() * 2.0**-27)
    precision.step(torch.optim.SGD([weight], lr=1.0))
    assert torch.all(weight.grad == 2.0**-27)


def test_two_optimizers_share_one_scale():
    first, second = nn.Linear(3, 1), nn.Linear(3, 1)
    model = nn.ModuleList([first, second])
    scale = DynamicLossScale(8.0, growth_interval=1)
    precision = Precision(model, "compute=float16", loss_scale=scale)
    optimizers = [torch.optim.SGD(part.parameters(), lr=1.0) for part in (first, second)]
    weights = [part.weight.detach().clone() for part in (first, second)]
    data = torch.ones(1, 3)
    precision.backward(first(data).sum() + second(data).sum())
    first.weight.grad[0, 0] = float("inf")
    assert [bool(precision.step(optimizer)) for optimizer in optimizers] == [False, True]
    assert torch.equal(first.weight, weights[0])
    assert torch.equal(second.weight, weights[1] - 1.0)  # unscaled by 8, not by a newer scale
    assert scale.value == 8.0
    precision.backward(first(data).sum())
    assert scale.value == 4.0  # one of the two overflowed


def doubling(model):
    """A scale of 8 that doubles after every step."""
    scale = DynamicLossScale(8.0, growth_interval=1)
    return Precision(model, "compute=float16", loss_scale=scale)


def test_an_optimizer_that_accumulates_over_the_steps_of_another():
    first, second = nn.Linear(3, 1), nn.Linear(3, 1)
    precision = doubling(nn.ModuleList([first, second]))
    often, rarely = (torch.optim.SGD(part.parameters(), lr=0.0) for part in (first, second))
    data = torch.ones(1, 3)
    for _ in range(3):
        precision.backward(first(data).sum() + second(data).sum())
        assert precision.step(often)
        often.zero_grad()
    assert precision.loss_scale.value == 32.0
    assert precision.step(rarely)
    assert torch.equal(second.weight.grad, torch.full((1, 3), 3.0))


def test_gradients_that_are_kept_over_a_step():
    model = nn.Linear(3, 1)
    precision = doubling(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for n in range(1, 4):
        precision.backward(model(torch.ones(1, 3)).sum())
        assert precision.step(optimizer)
        assert torch.equal(model.weight.grad, torch.full((1, 3), float(n)))


def test_a_parameter_of_two_optimizers_is_unscaled_once():
    model = nn.Linear(3, 1)
    precision = doubling(model)
    for optimizer in [torch.optim.SGD(model.parameters(), lr=0.0) for _ in range(2)]:
        if model.weight.grad is None:
            precision.backward(model(torch.ones(1, 3)).sum())
        assert precision.step(optimizer)
        assert torch.equal(model.weight.grad, torch.ones(1, 3))


@pytest.mark.parametrize("policy", POLICIES)
def test_resumes_bit_identically(device, policy, tmp_path):
    def advance(model, optimizer, precision, data):
        for batch in data:
            optimizer.zero_grad()
            with precision.autocast():
                loss = model(batch).square().mean()
            precision.backward(loss)
            precision.step(optimizer, 0.5)

    def scale():
        return DynamicLossScale(growth_interval=2) if policy.endswith("float16") else None

    model, optimizer = make(device)
    precision = Precision(model, policy, loss_scale=scale())
    data = batches(device, 7)
    data[1][:] = float("nan")
    advance(model, optimizer, precision, data[:4])
    parts = {"model": model, "optimizer": optimizer, "precision": precision}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "f")

    twin, by_twin = make(device)
    resumed = Precision(twin, policy, loss_scale=scale())
    state = accel.load(tmp_path / "f")
    twin.load_state_dict(state["model"])
    by_twin.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["precision"])
    advance(model, optimizer, precision, data[4:])
    advance(twin, by_twin, resumed, data[4:])
    assert same(model, twin)
    assert same(optimizer, by_twin)
    assert resumed.state_dict() == precision.state_dict()
    assert precision.state_dict()["steps"] == 7


def test_a_device_that_lacks_the_dtype(monkeypatch, make_family):
    from accel.devices import CpuDevice, DtypeSupport

    lacks = DtypeSupport(
        compute=frozenset({torch.float32, torch.float16}),
        storage=frozenset({torch.bfloat16}),
        refused=frozenset(),
    )
    monkeypatch.setattr(CpuDevice, "dtypes", lacks)
    with pytest.raises(accel.DeviceError, match=r"needs: bfloat16 would be .*other formats"):
        Precision(nn.Linear(1, 1), "compute=bfloat16")
    assert Precision(nn.Linear(1, 1), "compute=float16")


def test_works_where_memory_cannot_be_told(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert Precision(nn.Linear(1, 1))


def test_a_model_without_parameters_is_on_the_current_device(monkeypatch):
    monkeypatch.setenv("ACCEL_DEVICE", "cpu")
    with Precision(nn.GELU()).autocast():
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("policy", [torch.bfloat16, None, 16])
def test_what_is_no_policy(policy):
    with pytest.raises(TypeError, match="a policy is a Policy or text"):
        Precision(nn.Linear(1, 1), policy)


def test_a_model_that_was_moved_is_followed():
    model = nn.Linear(4, 4)
    precision = Precision(model, "compute=bfloat16")
    model.to("meta")
    with pytest.raises(accel.DeviceError, match="meta"):
        precision.autocast()
    model.to_empty(device="cpu")
    with precision.autocast():
        assert model(torch.ones(1, 4)).dtype == torch.bfloat16


class Checkpointed(nn.Module):
    """A layer norm between linear layers: native autocast has it in 16 bits on a CPU."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Softmax(-1), nn.Linear(16, 4)
        )
        self.how = how

    def forward(self, x):
        if self.how is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.how)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "policy", ["compute=bfloat16", "fp8_tensorwise,emulate", "fp8_delayed,emulate"]
)
def test_activation_checkpointing_changes_no_bit(device, policy, reentrant, attached):
    found = []
    for how in (None, reentrant):
        model = Checkpointed(how).to(device.torch_device)
        precision = Precision(model, policy)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if attached:
            attach(precision, optimizer)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(6, 8, generator=generator).to(device.torch_device).requires_grad_()
            if attached:
                model(x).float().square().mean().backward()
                optimizer.step()
            else:
                with precision.autocast():
                    loss = model(x).float().square().mean()
                precision.backward(loss)
                precision.step(optimizer)
            assert not torch.is_autocast_enabled(MARK)
        found.append([*model.state_dict().values(), x.grad])
        found[-1] += torch.utils._pytree.tree_leaves(precision.state_dict())
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other
