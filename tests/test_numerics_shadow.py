"""The float64 reference of a recording."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.numerics import compare, load_recording, record
from accel.numerics.entries import Key
from accel_kernels import budgets
from tests.numerics_zoo import case, made, one_thread, recorded, step  # noqa: F401


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "reentrant", "encoder", "language"])
def test_truths_are_those_of_a_float64_model(tmp_path: Path, name: str, autocast: bool) -> None:
    one = case(name)
    recording = recorded(tmp_path / "r", one, autocast=autocast)
    assert recording.failures == []
    model = made(one.model).double()
    inputs = one.inputs.double() if one.inputs.is_floating_point() else one.inputs
    out = model(inputs)
    truth = recording.tensor(recording.truths[Key("forward", "", 0, "0")])
    torch.testing.assert_close(truth, out, rtol=1e-12, atol=1e-14)
    cotangent = recording.tensor(recording.entries[Key("gradient", "", 0, "0")]).double()
    out.backward(cotangent)
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for path, parameter in model.named_parameters():
        module, _, leaf = path.rpartition(".")
        key = Key("parameter_gradient", module, 0, leaf)
        truth = recording.tensor(recording.truths[key])
        torch.testing.assert_close(truth, parameter.grad, rtol=1e-10, atol=1e-13 * largest)


def test_every_float_of_the_run_has_a_truth_near_it(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", case("language"))
    phases = set()
    for key, entry in recording.entries.items():
        if key.phase == "parameter" or not entry.dtype.startswith("float"):
            assert key not in recording.truths
            continue
        truth = recording.tensor(recording.truths[key])
        error = budgets.deviation(recording.tensor(entry), truth)
        assert error.rms < 1e-5, key
        phases.add(key.phase)
    assert phases == {"input", "forward", "input_gradient", "gradient", "parameter_gradient"}


def test_each_step_has_its_own_parameters_and_buffers(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", case("cnn"), steps=3)
    for call in range(3):
        key = Key("forward", "", call, "0")
        truth = recording.tensor(recording.truths[key])
        assert budgets.deviation(recording.tensor(recording.entries[key]), truth).rms < 1e-6
    assert len({call.parameters for call in recording.calls}) == 3


class Stubborn(nn.Module):
    """Casts, creates and holds tensors that are not float64 and not parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.scale = torch.rand(6)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x) * self.scale
        x = x.to(torch.bfloat16).float().softmax(-1, dtype=torch.float32)
        mask = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -1.0)
        return x @ mask + torch.full((6,), 0.1, dtype=torch.float32)


def test_casts_and_new_tensors_are_exact_in_the_shadow(tmp_path: Path) -> None:
    model, x = Stubborn(), torch.randn(3, 6)
    with record(model, tmp_path / "r"):
        model(x).sum().backward()
    recording = load_recording(tmp_path / "r")
    assert recording.failures == []
    double = copy.deepcopy(model).double()
    hidden = (double.linear(x.double()) * model.scale.double()).softmax(-1)
    mask = torch.ones(6, 6, dtype=torch.float64).triu(1).neg()
    expected = hidden @ mask + torch.full((6,), 0.1, dtype=torch.float64)
    truth = recording.tensor(recording.truths[Key("forward", "", 0, "0")])
    torch.testing.assert_close(truth, expected, rtol=1e-13, atol=1e-15)


class InPlace(nn.Module):
    """Changes its input and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, extra: list[Tensor]) -> Tensor:
        self.count += 1
        extra[0].mul_(2)
        return x.add_(1) * self.count + extra.pop()


def test_the_shadow_starts_from_what_was_before_the_call(tmp_path: Path) -> None:
    model, x, y = InPlace(), torch.randn(4), torch.randn(4)
    before, extra = x.clone(), [y]
    with record(model, tmp_path / "r"):
        out = model(x, extra=extra)
    assert extra == []
    assert model.count == 1
    torch.testing.assert_close(x, before + 1)
    recording = load_recording(tmp_path / "r")
    truth = recording.tensor(recording.truths[Key("forward", "", 0, "0")])
    torch.testing.assert_close(truth.float(), out)
    assert torch.equal(recording.tensor(recording.entries[Key("input", "", 0, "0")]), before)


def noisy_recording(path: Path, model: nn.Module) -> None:
    with record(model, path):
        model(torch.randn(4, 3)).sum().backward()


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)),
        lambda: Drawing(lambda x: x + random.random()),
        lambda: Drawing(lambda x: x + __import__("numpy").random.rand()),
    ],
    ids=["torch", "python", "numpy"],
)
def test_drawing_random_numbers_leaves_no_reference(
    tmp_path: Path, model: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "accel"):
        noisy_recording(tmp_path / "r", model())
    assert "it drew random numbers (dropout?)" in caplog.text
    recording = load_recording(tmp_path / "r")
    assert [failure.root for failure in recording.failures] == [0]
    assert recording.truths == {}
    with pytest.raises(ValueError, match=r"model\.eval\(\) or p=0, .*reference=True, or pass an"):
        compare(recording, recording)
    assert compare(recording, recording, budget=budgets.Budget(1e-6, 1e-6)).ok


class Drawing(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(3, 3), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.linear(x))


def test_dropout_that_is_off_is_no_randomness(tmp_path: Path) -> None:
    one = case("dropout")
    model = made(one.model).eval()
    with record(model, tmp_path / "r"):
        step(model, one)
    assert load_recording(tmp_path / "r").failures == []


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


def only_float32(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise NotImplementedError("no such kernel")
    return x * 2


class Choosing(nn.Module):
    """Calls one layer or another, depending on the dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.single, self.double_ = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.single(x) if x.dtype == torch.float32 else self.double_(x)


class NoDoubleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return only_float32(gradient)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: Uncopyable(3, 3), "cannot be copied: TypeError: no copies"),
        (lambda: Drawing(only_float32), "does not run in float64 .* no such kernel"),
        (Choosing, "called other modules"),
        (lambda: Drawing(NoDoubleBackward.apply), "its backward does not run in float64"),
    ],
)
def test_a_reference_that_fails_disturbs_nothing_and_is_said(
    tmp_path: Path, model: Callable[[], nn.Module], reason: str
) -> None:
    watched = model()
    plain = watched(torch.ones(4, 3)).sum()
    with record(watched, tmp_path / "r"):
        loss = watched(torch.ones(4, 3)).sum()
        loss.backward()
    assert torch.equal(loss, plain)
    recording = load_recording(tmp_path / "r")
    assert recording.manifest.complete
    assert len(recording.failures) == 1
    assert torch._C._current_autograd_node() is None
    with pytest.raises(ValueError, match=reason):
        compare(recording, recording)


def test_the_shadow_runs_without_autocast_and_hooks_of_its_own(tmp_path: Path) -> None:
    seen: list[tuple[torch.dtype, bool]] = []
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_forward_hook(
        lambda m, i, o: seen.append((o.dtype, torch.is_autocast_enabled("cpu")))
    )
    with record(model, tmp_path / "r"), torch.autocast("cpu", torch.bfloat16):
        model(torch.ones(2, 3))
    # the call, its float64 repetition, and that through the call's own values
    assert seen == [(torch.bfloat16, True), (torch.float64, False), (torch.float64, False)]


def test_no_graph_no_backward(tmp_path: Path) -> None:
    model, one = made(case("mlp").model), case("mlp")
    with record(model, tmp_path / "r"):
        with torch.no_grad():
            model(one.inputs)
        with torch.inference_mode():
            model(one.inputs)
        F.relu(model(one.inputs))  # a graph that nothing goes back through
    recording = load_recording(tmp_path / "r")
    assert recording.failures == []
    assert {key.phase for key in recording.truths} == {"input", "forward"}
    assert {key.call for key in recording.truths} == {0, 1, 2}
