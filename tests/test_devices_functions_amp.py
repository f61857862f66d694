"""Mixed precision of the flat functions: on a CPU none, to the bit; elsewhere the device's own."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import accel
from accel.devices import functions
from accel.simulate import Machine, active
from accel.simulate.machine import VARIABLE

# torch says of its older names that they are deprecated, and on a CPU that they do nothing.
OLD_NAMES = [
    "ignore:.*torch.cuda.amp.*:FutureWarning",
    "ignore:.*CUDA is not available.*:UserWarning",
]


def with_torch_cuda():
    return (
        torch.cuda.amp.autocast,
        torch.cuda.amp.GradScaler,
        torch.cuda.amp.custom_fwd,
        torch.cuda.amp.custom_bwd,
    )


def with_accel():
    return (
        functions.autocast,
        functions.GradScaler,
        functions.custom_fwd,
        functions.custom_bwd,
    )


def squared(custom_fwd, custom_bwd, cast_inputs):
    class Squared(torch.autograd.Function):
        @staticmethod
        @custom_fwd(cast_inputs=cast_inputs)
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @custom_bwd
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 2 * x * gradient

    return Squared.apply


def train(names, device, *, cast_inputs=None, outer=False, steps=6):
    """The idiom of torch's amp recipe; returns losses and parameters."""
    autocast, grad_scaler, custom_fwd, custom_bwd = names
    torch.manual_seed(7)
    square = squared(custom_fwd, custom_bwd, cast_inputs)
    model = nn.Sequential(nn.Linear(7, 33), nn.GELU(), nn.LayerNorm(33), nn.Linear(33, 3))
    x, y = torch.randn(9, 7).to(device), torch.randn(9, 3).to(device)
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scaler = grad_scaler()
    evaluate = autocast(enabled=True)(lambda: model(x).sum())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", enabled=outer), autocast():
            loss = square(model(x) - y).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach().float().cpu())
    losses.append(evaluate().detach().float().cpu())
    return torch.stack(losses), [p.detach().cpu() for p in model.parameters()], scaler


@pytest.mark.filterwarnings(*OLD_NAMES)
@pytest.mark.skipif("torch.cuda.is_available()", reason="there torch.cuda.amp is not disabled")
@pytest.mark.parametrize("cast_inputs", [None, torch.float16], ids=str)
@pytest.mark.parametrize("outer", [False, True], ids=["alone", "in the CPU's own autocast"])
def test_training_on_a_cpu_is_the_same_to_the_bit(monkeypatch, cast_inputs, outer):
    monkeypatch.setenv("ACCEL_DEVICE", "cpu")
    options = {"cast_inputs": cast_inputs, "outer": outer}
    losses, parameters, _ = train(with_torch_cuda(), "cpu", **options)
    ours, our_parameters, scaler = train(with_accel(), "cpu", **options)
    assert torch.equal(losses, ours)
    assert all(map(torch.equal, parameters, our_parameters))
    assert losses[-2] < losses[0]
    assert not scaler.is_enabled()
    assert scaler.get_scale() == 1.0
    plain, _, _ = train(with_accel(), "cpu", cast_inputs=cast_inputs)
    assert torch.equal(plain, losses) != outer  # the CPU's autocast is left in force


def test_autocast_on_a_cpu(monkeypatch):
    monkeypatch.setenv("ACCEL_DEVICE", "cpu")
    x = torch.randn(3, 3)
    for block in (
        functions.autocast(),
        functions.autocast(True, torch.bfloat16),
        functions.autocast(dtype=torch.bfloat16, cache_enabled=False),
        functions.autocast(torch.bfloat16),
        functions.autocast(torch.bfloat16, True, True),
    ):
        assert isinstance(block, torch.autocast)
        with block:
            assert (x @ x).dtype == torch.float32
            assert not torch.is_autocast_enabled()
    with functions.autocast(enabled_on_cpu=True):
        assert (x @ x).dtype == torch.bfloat16
    with functions.autocast(False, enabled_on_cpu=True):
        assert (x @ x).dtype == torch.float32
    scaler = functions.GradScaler(4.0, enabled_on_cpu=True)
    assert scaler.scale(torch.tensor(1.5)) == 6.0


@pytest.mark.parametrize("arguments", [("cuda",), ("cuda", torch.float16), (True, "float16")])
def test_a_device_type_is_left_out(arguments):
    with pytest.raises(TypeError, match="the device type is left out"):
        functions.autocast(*arguments)
    with pytest.raises(TypeError, match="leave out the device 'cuda'"):
        functions.GradScaler("cuda")


def test_autocast_is_the_devices(device):
    if device.family == "cpu":
        pytest.skip("what a CPU does is above")
    with accel.use_device(device):
        x = torch.randn(3, 3, device=device.torch_device)
        with functions.autocast():
            assert torch.is_autocast_enabled(device.torch_type)
            assert (x @ x).dtype == device.autocast_dtype
        for block in (functions.autocast(torch.bfloat16), functions.autocast(True, torch.bfloat16)):
            with block:
                assert (x @ x).dtype == torch.bfloat16
        with functions.autocast(), functions.autocast(enabled=False):
            assert (x @ x).dtype == torch.float32
        assert functions.autocast()(lambda: x @ x)().dtype == device.autocast_dtype
        assert functions.autocast(torch.bfloat16, False)(lambda: x @ x)().dtype == torch.float32


@pytest.mark.parametrize("cast_inputs", [None, torch.float32], ids=str)
def test_training_on_an_accelerator_casts_and_scales(device, cast_inputs):
    if device.family == "cpu":
        pytest.skip("what a CPU does is above")
    with accel.use_device(device):
        losses, _, scaler = train(with_accel(), device.torch_device, cast_inputs=cast_inputs)
    kind = device.torch_type
    same = (
        lambda *a, **k: torch.autocast(kind, *a, **k),
        lambda: torch.amp.GradScaler(kind),
        lambda **k: torch.amp.custom_fwd(device_type=kind, **k),
        lambda backward: torch.amp.custom_bwd(backward, device_type=kind),
    )
    expected, _, reference = train(same, device.torch_device, cast_inputs=cast_inputs)
    assert torch.equal(losses, expected)
    assert scaler.is_enabled()
    assert scaler.get_scale() == reference.get_scale() > 1
    assert losses[-2] < losses[0]


def parameter_with_gradient(place, value):
    parameter = nn.Parameter(torch.ones(3, device=place))
    parameter.grad = torch.full_like(parameter, value)
    return parameter


def test_a_step_with_infinite_gradients_is_left_out(device):
    enabled = {"enabled_on_cpu": True}
    with accel.use_device(device):
        scaler = functions.GradScaler(8.0, growth_interval=2, **enabled)
        loss = torch.ones((), device=device.torch_device)
        for value, scale in [(float("inf"), 4.0), (1.0, 4.0), (1.0, 8.0)]:
            parameter = parameter_with_gradient(device.torch_device, value)
            optimizer = torch.optim.SGD([parameter], 0.1)
            scaler.scale(loss)
            scaler.step(optimizer)
            scaler.update()
            assert bool((parameter == 1).all()) == (value == float("inf"))
            assert scaler.get_scale() == scale
        restored = functions.GradScaler(**enabled)
        restored.load_state_dict(scaler.state_dict())
        assert restored.get_scale() == 8.0
        assert pickle.loads(pickle.dumps(scaler)).get_scale() == 8.0
        assert copy.deepcopy(scaler).get_scale() == 8.0


def test_an_overflow_that_left_no_infinity_is_found(device, monkeypatch):
    """As on a chip that saturates; its flag is cleared once before the losses of a step."""
    calls, flag = [], [False]
    place = device.torch_device
    monkeypatch.setattr(type(device), "clear_overflow", lambda self: calls.append("clear"))
    monkeypatch.setattr(
        type(device),
        "overflow",
        lambda self: calls.append("ask") or torch.tensor(flag[0]).to(place),
    )
    with accel.use_device(device):
        scaler = functions.GradScaler(8.0, enabled_on_cpu=True)
        loss = torch.ones((), device=place)
        for overflow, scale in [(True, 4.0), (False, 4.0)]:
            flag[0] = overflow
            parameter = parameter_with_gradient(place, 1.0)
            scaler.scale(loss)
            scaler.scale(loss)
            scaler.step(torch.optim.SGD([parameter], 0.1))
            scaler.update()
            assert bool((parameter == 1).all()) == overflow
            assert scaler.get_scale() == scale
        assert calls == ["clear", "ask"] * 2
        assert functions.GradScaler(enabled=False).scale(loss) is loss
    assert len(calls) == 4


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_it_is_traced_into_one_graph(device, dtype):
    """As `torch.autocast` and `torch.cuda.amp.autocast` are."""

    def multiply(x):
        with functions.autocast(dtype=dtype):
            x = functions.to_accelerator(x)
            return x @ x if functions.is_available() or functions.on_accelerator(x) else x @ x.T

    with accel.use_device(device):
        x = torch.randn(4, 4, device=device.torch_device)
        traced = torch.compile(multiply, backend="eager", fullgraph=True)(x)
        assert torch.equal(traced, multiply(x))
        assert traced.dtype == (x.dtype if device.family == "cpu" else dtype or torch.float16)
    torch.compiler.reset()


SATURATING = """
import torch
from accel.devices import functions as accel

def skipped(scaler):
    weight = torch.nn.Parameter(torch.ones(4, 4, device=accel.device()))
    x = torch.full((4, 4), 6e4, dtype=torch.float16, device=accel.device())
    with accel.autocast():
        loss = (x @ weight).float().mean()
    scaler.scale(loss).backward()
    scaler.step(torch.optim.SGD([weight], 1e-3))
    scaler.update()
    return bool((weight == 1).all()), scaler.get_scale(), bool(weight.grad.isfinite().all())

print(*skipped(torch.amp.GradScaler("npu")))
print(*skipped(accel.GradScaler()))
"""


@pytest.mark.skipif(not active(), reason="needs a simulated Ascend")
@pytest.mark.parametrize("chip", ["910A", pytest.param("910B2", marks=pytest.mark.long)])
def test_overflow_on_a_simulated_chip(tmp_path, chip):
    """Where it saturates, torch's scaler takes a step with wrong gradients."""
    result = subprocess.run(
        [sys.executable, "-c", SATURATING],
        env={**os.environ, VARIABLE: Machine(chip=chip, faithful=True).to_text()},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    theirs, ours = (line.split() for line in result.stdout.splitlines())
    saturates = chip == "910A"
    assert ours == ["True", "32768.0", str(saturates)]
    assert theirs == (["False", "65536.0", "True"] if saturates else ours)
