"""Recording must not change a bit of the run it records."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from accel.numerics import load_recording, record
from tests.numerics.numerics_zoo import (
    Case,
    Encoder,
    case,
    first_step,
    made,
    one_thread,  # noqa: F401
    step,
)

NAMES = ["mlp", "cnn", "lstm", "shared", "reentrant", "checkpoint", "dropout", "language"]


def trained(one: Case, path: Path | None, *, autocast: bool, **options: Any) -> list[Any]:
    """Everything that three steps leave behind, with or without a recording of them."""
    model = made(one.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    random.seed(1)
    np.random.seed(1)
    left: list[Any] = []

    def train() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            left.append(step(model, one, autocast=autocast))
            left.extend(parameter.grad for parameter in model.parameters())
            left.append([p.grad.stride() for p in model.parameters() if p.grad is not None])
            optimizer.step()

    if path is None:
        train()
    else:
        with record(model, path, **options):
            train()
    left.extend(model.state_dict().values())
    left += [torch.get_rng_state(), random.getstate(), repr(np.random.get_state(legacy=False))]
    return left


def assert_same(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            # view: NaN and the sign of zero count too
            assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        else:
            assert a == b


@pytest.mark.parametrize("level", ["sketch", "full", "check"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_three_steps_are_the_same_bit_for_bit(
    tmp_path: Path, name: str, autocast: bool, level: str
) -> None:
    plain = trained(case(name), None, autocast=autocast)
    path = tmp_path / "r"
    assert_same(trained(case(name), path, autocast=autocast, level=level, every=2), plain)
    recording = load_recording(path)
    assert recording.manifest.complete
    assert sorted(recording.ranks[0].steps) == [0, 2]


def test_the_check_above_can_fail(tmp_path: Path) -> None:
    plain = trained(case("mlp"), None, autocast=False)
    other = [value.clone() if isinstance(value, torch.Tensor) else value for value in plain]
    other[0] = torch.nextafter(other[0], torch.tensor(torch.inf))
    with pytest.raises(AssertionError):
        assert_same(other, plain)


def test_the_fused_inference_path_stays_taken(tmp_path: Path) -> None:
    # nn.TransformerEncoderLayer leaves it where it sees a hook on itself or below.
    model, inputs = made(Encoder).eval(), case("encoder").inputs
    with torch.no_grad():
        plain = model(inputs)
        with record(model, tmp_path / "r"):
            recorded = model(inputs)
        called: list[nn.Module] = []
        inner = model.encoder.layers[0].linear1
        handle = inner.register_forward_hook(lambda module, *_: called.append(module))
        model(inputs)
        handle.remove()
    assert called == [inner]  # an ordinary hook does make it leave, or this test proves nothing
    assert torch.equal(plain, recorded)
    modules = {call.module for call in first_step(tmp_path / "r").modules}
    assert modules == {"", "encoder", "encoder.layers.0", "encoder.layers.1", "head"}


def test_nothing_stays_behind(tmp_path: Path) -> None:
    one = case("dropout")
    model = made(one.model)
    with record(model, tmp_path / "r", level="full"):
        loss = one.loss(model(one.inputs))
    optimizers = sys.modules["torch.optim.optimizer"]  # torch.optim hides it
    index = tmp_path / "r" / "rank-0" / "step-0" / "index.jsonl"
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_always_called
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert not optimizers._global_optimizer_pre_hooks
    assert not optimizers._global_optimizer_post_hooks
    assert all(not parameter._backward_hooks for parameter in model.parameters())
    assert _get_current_dispatch_mode() is None
    closed = index.stat().st_size
    loss.backward()  # the graph outlives the recording: its hooks must be silent
    assert index.stat().st_size == closed


def test_steps_that_are_not_recorded_run_without_the_recorder(tmp_path: Path) -> None:
    one = case("mlp")
    model = made(one.model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen: list[bool] = []
    model.layers[1].register_forward_hook(
        lambda *_: seen.append(_get_current_dispatch_mode() is not None)
    )
    with record(model, tmp_path / "r", every=3) as recorder:
        for _ in range(5):
            step(model, one)
            hooks = sum(len(module._forward_hooks) for module in model.modules())
            assert (hooks > 1) == recorder.is_recording
            optimizer.step()
    assert seen == [True, False, False, True, False]


def test_users_hooks_and_default_dtype_are_left_alone(tmp_path: Path) -> None:
    model = made(case("mlp").model)
    calls: list[torch.dtype] = []
    handle = model.layers[0].register_forward_hook(lambda m, i, o: calls.append(o.dtype))
    with record(model, tmp_path / "r"):
        model(case("mlp").inputs)
    assert torch.float32 in calls
    assert handle.id in model.layers[0]._forward_hooks
    assert torch.get_default_dtype() == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
