"""Runs compared with themselves and with the same run again; what is counted of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.cli import main
from accel.numerics import compare, record, replay
from tests.numerics.numerics_zoo import case, made, one_thread, recorded  # noqa: F401

ZOO = (
    "mlp", "cnn", "lstm", "shared", "reentrant", "checkpoint", "encoder", "dropout", "autoencoder",
    "language",
)  # fmt: skip


class Mixed(nn.Module):
    """Operators with and without a place for their result, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        doubled = x * 2.0
        other = x.clone()
        other.mul_(2.0).add_(1.0)
        tail = torch.relu_(other[:, 8:].clone()).sum(1, keepdim=True)
        return self.last(doubled.add(other).mul(0.5).add_(0.25)) + tail * torch.relu(other[:, :1])


def mixed(path: Path, level: str) -> None:
    torch.manual_seed(3)
    model, x = Mixed(), torch.randn(5, 16)
    with record(model, path, level=level):
        model(x).square().mean().backward()


def scaled_fp16(path: Path, level: str) -> None:
    """Half precision on the CPU under a gradient scaler."""
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 4)), torch.randn(5, 16)
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with record(model, path, level=level):
        with torch.autocast("cpu", torch.float16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


class Momentum(torch.optim.Optimizer):
    """An optimizer of one's own, written with both kinds of operators."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {"lr": 0.1})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for one in group["params"]:
                state = self.state.setdefault(one, {})
                mean = state.setdefault("mean", torch.zeros_like(one))
                mean.mul_(0.9).add_(one.grad * 0.1)
                one.add_(mean.mul(-group["lr"]))


def own_optimizer(path: Path, level: str) -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)), torch.randn(5, 16)
    optimizer = Momentum(model.parameters())
    with record(model, path, level=level):
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()


def two_updates(path: Path, level: str) -> None:
    """Two optimizers that update the same parameters in one step."""
    torch.manual_seed(3)
    model, x = nn.Linear(16, 4), torch.randn(5, 16)
    one, two = (torch.optim.SGD(model.parameters(), rate) for rate in (0.1, 0.01))
    with record(model, path, level=level):
        model(x).square().mean().backward()
        one.step()
        two.step()


def eight_bits(path: Path, level: str) -> None:
    torch.manual_seed(3)
    model, x = nn.Linear(16, 16), torch.randn(16, 16)
    with record(model, path, level=level):
        out = model(x)
        narrow, weight = (t.detach().to(torch.float8_e4m3fn) for t in (out, model.weight))
        one = torch.ones(())
        product = torch._scaled_mm(
            narrow, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
        (out * narrow.float() + product.float()).mean().backward()


PROGRAMS = (mixed, scaled_fp16, own_optimizer, two_updates, eight_bits)


@pytest.mark.parametrize("level", ["sketch", "full"])
@pytest.mark.parametrize("name", ZOO)
def test_a_run_is_the_same_as_itself(tmp_path: Path, name: str, level: str) -> None:
    recorded(tmp_path / "a", case(name), level=level)
    found = compare(tmp_path / "a", tmp_path / "a")
    assert found.verdict.kind == "same", found.verdict
    assert not found.unmatched
    assert len(found.findings) == 1


@pytest.mark.parametrize("level", ["sketch", "full"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.__name__)
def test_a_program_is_the_same_as_itself_and_as_itself_again(
    tmp_path: Path, program: Callable[[Path, str], None], level: str
) -> None:
    for run in ("a", "b"):
        program(tmp_path / run, level)
    for run in ("a", "b"):
        found = compare(tmp_path / "a", tmp_path / run)
        assert {one.kind for one in found.steps} == {"same"}, found.verdict
        assert not found.unmatched
        found.to_text(), found.to_json(), found.to_html()


class Doubling(TorchDispatchMode):
    """Doubles a hundredfold, but not in place."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        is_it = str(func) == "aten.mul.Tensor" and not isinstance(args[1], Tensor) and args[1] == 2
        return func(found, 50.0) if is_it else found


@pytest.mark.parametrize("longest", [2000, 1])
def test_a_wrong_operator_is_not_hidden_by_its_in_place_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    """Both ways to align: by sequence, and by counting where there are too many operators."""
    monkeypatch.setattr("accel.numerics.comparing.alignment._LONGEST", longest)
    mixed(tmp_path / "a", "full")

    with Doubling():
        mixed(tmp_path / "b", "full")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.verdict.kind == "faulty operator"
    assert str(found.verdict.operator) == "forward:/mul#0"


def test_operators_are_counted_anew_where_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operator is matched twice."""
    from accel.numerics.comparing.alignment import _by_count
    from tests.numerics.numerics_zoo import first_step

    mixed(tmp_path / "a", "sketch")
    step = first_step(tmp_path / "a")
    root = [o for o in step.operators if o.key[:2] == ("forward", "")]
    pairs = list(_by_count(root, root[:-1]))
    assert len({pair.b.id for pair in pairs}) == len(pairs) == len(root) - 1
    assert all(pair.a.id == pair.b.id for pair in pairs)


# --- other names ----------------------------------------------------------------------------------


class Named(nn.Module):
    """The same as a sequence of layers, with names."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def layers(path: Path, kind: type[nn.Module], level: str, change: float = 0.0) -> None:
    torch.manual_seed(3)
    model = kind(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    x = torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += change
    with record(model, path, level=level, steps=[0, 1]):
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()


@pytest.mark.parametrize("level", ["sketch", "full"])
def test_modules_with_other_names_are_the_same(tmp_path: Path, level: str) -> None:
    layers(tmp_path / "a", nn.Sequential, level)
    layers(tmp_path / "b", Named, level)
    for pair in (("a", "b"), ("b", "a")):
        found = compare(tmp_path / pair[0], tmp_path / pair[1])
        assert [one.kind for one in found.steps] == ["same", "same"], found.verdict
        assert not found.unmatched
        assert [one.relation for one in found.preconditions] == ["renamed"] * 3
    assert "0 is fc1, 1 is act and 2 is fc2" in " ".join(found.notes)
    assert found.to_html()


def test_another_model_is_not_taken_for_a_renamed_one(tmp_path: Path) -> None:
    layers(tmp_path / "a", nn.Sequential, "sketch")
    layers(tmp_path / "b", Named, "sketch", change=0.1)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.verdict.kind == "different weight/input"
    assert "the candidate has no parameter" in found.verdict.sentence


# --- scaled losses --------------------------------------------------------------------------------


def two_layers(
    path: Path, factor: float | None, loss: Callable[[Tensor], Tensor], level: str = "sketch"
) -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2)), torch.randn(4, 8)
    with record(model, path, level=level):
        found = loss(model(x))
        (found if factor is None else found * factor).backward()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda y: F.mse_loss(y, torch.zeros(4, 2)),
    "square": lambda y: y.square().mean(),
    "cube": lambda y: (y**3).mean(),
    "sigmoid": lambda y: (y.sigmoid() * y).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("factor", [None, 1.0])
def test_a_loss_scale_is_divided_out(tmp_path: Path, loss: str, factor: float | None) -> None:
    """Of gradients only: not of weights and activations that the backward looks at again."""
    two_layers(tmp_path / "a", factor, LOSSES[loss])
    two_layers(tmp_path / "b", 1024.0, LOSSES[loss])
    found = compare(tmp_path / "a", tmp_path / "b", scale=1024.0)
    assert found.verdict.kind in ("same", "rounding only"), found.verdict
    assert not [row.name for row in found.rows if row.status not in ("equal", "rounding")]
    assert sum(row.phase == "backward" for row in found.rows) >= 10
    unscaled = compare(tmp_path / "a", tmp_path / "b")
    assert not unscaled.ok
    if factor is None:  # else another argument is the finding
        assert "--scale 1024" in unscaled.verdict.evidence[1]
    assert not compare(tmp_path / "a", tmp_path / "b", scale=512.0).ok


# --- what was checked -----------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["full", "check"])
@pytest.mark.parametrize("name", ["language", "dropout"])
def test_compare_and_replay_count_alike(
    tmp_path: Path, name: str, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "a", case(name), level=level)
    alone = replay(tmp_path / "a")
    for found in compare(tmp_path / "a", tmp_path / "a").coverage:
        assert sum(found.checked.values()) == alone.replayed
        assert sum(found.by_signature.values()) == alone.by_signature
        assert sum(found.unchecked.values()) == alone.not_checked
        assert found.unneeded == sum(found.nothing.values()) == alone.nothing_to_check
        assert set(found.reasons) == set(found.unchecked)
        assert "a view computes nothing" in found.nothing
        assert ("it draws random numbers" in found.nothing) == (name == "dropout")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert f"{alone.replayed} operators of the reference replayed" in said
    assert (f"{alone.by_signature} judged by another of the same signature" in said) == (
        level == "check"
    )
    assert "a view computes nothing" in said


def test_a_known_inaccurate_kernel_is_neither_right_nor_at_fault() -> None:
    from accel.numerics.comparing.isolated import accuracy_of
    from accel.numerics.replaying.judged import Judged

    judged = Judged(
        "forward:/sin#0", "aten::sin", "elementwise", "known", R=20.0, M=90.0, reason="so it is",
        dtype="float32", limit_R=25.0, limit_M=120.0,
    )  # fmt: skip
    found = accuracy_of(judged)
    assert found.verdict == "known inaccurate"
    assert not found.is_own_fault
    assert (found.limit_rms, found.limit_worst, found.reason) == (25.0, 120.0, "so it is")
