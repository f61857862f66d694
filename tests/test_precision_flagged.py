"""Steps that an optimizer skips by itself: no word from the host, and the same bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.precision import DynamicLossScale, Precision
from accel.precision.flagged import takes_flag

OPTIMIZERS = {
    "AdamW": lambda parameters, fused: torch.optim.AdamW(parameters, lr=0.1, fused=fused),
    "SGD": lambda parameters, fused: torch.optim.SGD(parameters, lr=0.1, fused=fused),
    "momentum": lambda parameters, fused: torch.optim.SGD(
        parameters, lr=0.1, momentum=0.9, fused=fused
    ),
}


class Reads(TorchDispatchMode):
    """Counts how often the host reads a value of the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        to_host = name == "aten::_to_copy" and (kwargs or {}).get("device") == torch.device("cpu")
        blocking = to_host and not (kwargs or {}).get("non_blocking")
        there = isinstance(args[0], torch.Tensor) and args[0].device.type != "cpu"
        self.count += there and (name == "aten::_local_scalar_dense" or blocking)
        return function(*args, **(kwargs or {}))


def build(device, name, fused=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).to(device.torch_device)
    scale = DynamicLossScale(1024.0, growth_interval=3)
    precision = Precision(model, "compute=float32", loss_scale=scale)
    return model, precision, OPTIMIZERS[name](model.parameters(), fused)


def advance(device, model, precision, optimizer, step, bad=(), max_norm=None):
    generator = torch.Generator().manual_seed(step)
    data = torch.randn(5, 4, generator=generator).to(device.torch_device)
    if step in bad:
        data[0, 0] = float("nan")
    optimizer.zero_grad()
    precision.backward(model(data).square().mean())
    return precision.step(optimizer, max_norm)


@pytest.mark.parametrize("max_norm", [None, 0.05])
@pytest.mark.parametrize("bad", [(), (0,), (2, 3)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_as_when_the_host_decides(device, monkeypatch, name, bad, max_norm):
    runs = []
    for flagged in (True, False):
        if not flagged:
            monkeypatch.setattr("accel.precision.training.takes_flag", lambda *_: False)
        model, precision, optimizer = build(device, name)
        outcomes = [
            advance(device, model, precision, optimizer, step, bad, max_norm) for step in range(7)
        ]
        assert [bool(outcome) for outcome in outcomes] == [step not in bad for step in range(7)]
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        runs.append((model.state_dict(), optimizer.state_dict()["state"], precision.state_dict()))
    flat = [torch.utils._pytree.tree_leaves(run) for run in runs]
    for one, other in zip(*flat, strict=True):
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other


def test_the_host_reads_nothing_unless_asked(device):
    if device.torch_type == "cpu":
        pytest.skip("a CPU's values are the host's: ci/test runs this on the simulated Ascend")
    model, precision, optimizer = build(device, "AdamW")
    advance(device, model, precision, optimizer, 0)
    with Reads() as reads:
        outcomes = [
            advance(device, model, precision, optimizer, step, bad=(2,), max_norm=0.1)
            for step in range(1, 5)
        ]
    assert reads.count <= 1  # the scale of the step that was skipped
    assert [bool(outcome) for outcome in outcomes] == [True, False, True, True]


def test_who_is_asked(device):
    model, precision, optimizer = build(device, "AdamW")
    parameters = list(model.parameters())
    assert not takes_flag(optimizer, parameters)  # there is no state yet
    advance(device, model, precision, optimizer, 0)
    assert takes_flag(optimizer, parameters)
    assert not takes_flag(torch.optim.AdamW(parameters), parameters)
    assert not takes_flag(torch.optim.SGD(parameters, momentum=0.9, fused=True), parameters)
    assert takes_flag(torch.optim.SGD(parameters, fused=True), parameters)


class AsksAScaler(torch.optim.SGD):
    """As torch's contract was before `found_inf`, and as GradScaler still serves it."""

    _step_supports_amp_scaling = True

    def step(self, closure=None, grad_scaler=None):
        assert grad_scaler is None
        return super().step(closure)


def test_an_optimizer_that_asks_a_scaler_is_not_called_for_a_bad_step():
    weight = nn.Parameter(torch.ones(2))
    precision = Precision(nn.ParameterList([weight]), "compute=bfloat16")
    precision.backward(weight.sum() * float("inf"))
    assert not precision.step(AsksAScaler([weight], lr=0.1))
    assert torch.equal(weight, torch.ones(2))


def test_the_flag_does_not_stay(device):
    model, precision, optimizer = build(device, "AdamW")
    for step in range(3):
        advance(device, model, precision, optimizer, step)
    assert not hasattr(optimizer, "found_inf")
    assert not hasattr(optimizer, "grad_scale")


def test_a_norm_that_overflows(device):
    """Clipped without a look by the host, to the same bits as with one."""
    found = []
    for fused in (True, False):
        weight = nn.Parameter(torch.zeros(3, device=device.torch_device))
        precision = Precision(nn.ParameterList([weight]), "compute=float32")
        optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
        assert takes_flag(optimizer, [weight]) == fused
        gradient = torch.tensor([3e38, -2e38, 0.0], device=device.torch_device)
        precision.backward((weight * gradient).sum())
        assert precision.step(optimizer, max_norm=1.0)
        found.append(copy.deepcopy(weight.detach()))
    assert torch.equal(*found)
    assert torch.linalg.vector_norm(found[0].cpu().double()).item() == pytest.approx(1.0)


def test_last_skipped_tells_of_steps_nobody_asked_about(device, caplog):
    model, precision, optimizer = build(device, "AdamW")
    for step in range(4):
        advance(device, model, precision, optimizer, step, bad=(2,))
    skipped = precision.last_skipped
    assert (skipped.step, skipped.parameter, skipped.value) == (2, "the loss", "nan")
    assert skipped.loss_scale == 1024.0
    assert caplog.text.count("step 2 skipped: the loss is nan") == 1
