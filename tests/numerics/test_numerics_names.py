"""Operators have names that do not change when something else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accel.numerics import record
from tests.numerics.numerics_zoo import (
    Mlp,
    case,
    first_step,
    made,
    names,
    one_thread,  # noqa: F401
    recorded,
    step,
)


def run(model: nn.Module, x: Tensor, path: Path, **options: Any) -> list[str]:
    with record(model, path, **options):
        model(x).square().mean().backward()
    return names(first_step(path))


def test_names_of_a_small_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    found = run(model, torch.randn(3, 4), tmp_path / "r")
    assert found == [
        "forward:0/t#0",
        "forward:0/addmm#0",
        "forward:1/gelu#0",
        "forward:(outside)/pow#0",
        "forward:(outside)/mean#0",
        "forward:(outside)/ones_like#0",
        "backward:(outside)/mean#0/expand#0",
        "backward:(outside)/mean#0/div#0",
        "backward:(outside)/pow#0/pow#0",
        "backward:(outside)/pow#0/mul#0",
        "backward:(outside)/pow#0/mul#1",
        "backward:1/gelu#0/gelu_backward#0",
        "backward:0/addmm#0/t#0",
        "backward:0/addmm#0/mm#0",
        "backward:0/addmm#0/t#1",
        "backward:0/addmm#0/sum#0",
        "backward:0/addmm#0/view#0",
        "backward:0/t#0/t#0",
    ]


class Extra(nn.Module):
    """A linear layer that computes more than it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul(2).div(2) + 0.0)


def test_more_operators_elsewhere_rename_nothing(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self, first: nn.Module) -> None:
            super().__init__()
            self.first, self.second = first, nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    x = torch.randn(3, 4)
    plain = run(Two(nn.Linear(4, 4)), x, tmp_path / "a")
    more = run(Two(Extra()), x, tmp_path / "b")
    second = [name for name in plain if ":second" in name]
    assert len(second) > 8
    assert second == [name for name in more if ":second" in name]


@pytest.mark.parametrize("name", ["checkpoint", "reentrant"])
def test_checkpointing_renames_nothing_in_forward_and_backward(tmp_path: Path, name: str) -> None:
    plain = recorded(tmp_path / "a", case("shared"))
    again = recorded(tmp_path / "b", case(name))
    assert set(names(plain, "forward")) <= set(names(again, "forward"))
    # Sums of gradients that arrive from several sides belong to no operator of the forward.
    kernels = [n for n in names(plain, "backward") if "/add" not in n]
    assert set(kernels) <= set(names(again, "backward"))
    # The blocks' forward, once more, under the same call numbers.
    assert set(names(again, "recompute")) == {
        n.replace("forward:", "recompute:") for n in names(plain, "forward") if ":block" in n
    }
    assert {call.call for call in again.modules if call.phase == "recompute"} == {0, 1, 2}


def test_each_call_of_a_shared_module_counts(tmp_path: Path) -> None:
    found = names(recorded(tmp_path / "r", case("shared")))
    for call in ("", "[1]", "[2]"):
        assert f"forward:block.0{call}/addmm#0" in found
        assert f"backward:block.0{call}/addmm#0/mm#1" in found


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.mul(3).sub(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.mul(2)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(Doubled.apply(self.linear(x)))


def test_custom_functions_go_by_their_own_names_in_the_backward(tmp_path: Path) -> None:
    found = run(Custom(), torch.randn(3, 4), tmp_path / "r")
    assert "forward:/mul#1" in found
    assert "backward:/DoubledBackward#0/mul#0" in found
    assert "backward:/DoubledBackward#1/mul#0" in found
    assert "backward:linear/addmm#0/mm#0" in found


def test_a_gradient_inside_the_forward_is_a_backward(tmp_path: Path) -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            (force,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
            return force

    found = run(Force(), torch.randn(5, 3, requires_grad=True), tmp_path / "r")
    assert "backward:net.1/tanh#0/tanh_backward#0" in found
    # and the gradient of that gradient goes by the backward operator that it belongs to
    assert any(name.startswith("backward:net.1/tanh#0/tanh_backward#0/") for name in found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_optimizers(tmp_path: Path, how: dict[str, bool]) -> None:
    one = case("mlp")
    model = made(Mlp)
    optimizer = torch.optim.AdamW(model.parameters(), **how)
    with record(model, tmp_path / "r", every=1):
        for _ in range(2):
            step(model, one)
            optimizer.step()
    from accel.numerics import load_recording

    steps = load_recording(tmp_path / "r").ranks[0].steps
    for number in (0, 1):
        found = names(steps[number], "optimizer")
        assert found
        assert all(name.startswith("optimizer:AdamW/") for name in found)
        updated = {(one.name, one.slot) for one in steps[number].updates}
        parameters = {name for name, _ in model.named_parameters()}
        assert updated == {
            (name, slot)
            for name in parameters
            for slot in ("parameter", "exp_avg", "exp_avg_sq", "step")
        }
    # What the optimizer starts from in step 1 is named too.
    states = [s.name for s in steps[1].sources.values() if s.kind == "state"]
    assert "layers.0.weight.exp_avg" in states


def test_places_are_lines_of_the_program(tmp_path: Path) -> None:
    found = recorded(tmp_path / "r", case("mlp"))
    gelu = next(o for o in found.operators if str(o.key) == "forward:layers.1/relu_#0")
    assert gelu.place is not None
    assert gelu.place.file.endswith("numerics_zoo.py")
    assert gelu.place.function == "forward"
    assert not Path(gelu.place.file).is_absolute()
    backward = next(o for o in found.operators if o.key.phase == "backward" and o.key.module)
    assert backward.place is not None


def test_a_call_that_raises_does_not_confuse_the_next(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")
    with record(model, tmp_path / "r"):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(2, 3))
        step(model, one)
    found = first_step(tmp_path / "r")
    assert "forward:layers.4[0]/addmm#0" not in names(found)
    assert "forward:layers.4/addmm#0" in names(found)
    assert [call.call for call in found.modules if call.module == ""] == [0, 1]


def test_functional_calls_outside_of_the_model(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    with record(model, tmp_path / "r"):
        F.cross_entropy(model(torch.randn(3, 4)), torch.tensor([0, 1, 2])).backward()
    assert "backward:(outside)/nll_loss_forward#0/nll_loss_backward#0" in names(
        first_step(tmp_path / "r")
    )


def test_recomputed_functions_without_a_module(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda y: self.linear(y).tanh(), x, use_reentrant=False)

    found = run(Net(), torch.randn(3, 4), tmp_path / "r")
    assert "recompute:linear/addmm#0" in found
    assert "backward:/tanh#0/tanh_backward#0" in found
    assert len(found) == len(set(found))
