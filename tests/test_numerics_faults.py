"""Planted faults: each must be named, and by the right name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.numerics import Comparison, compare, record
from accel_kernels.budgets import Budget
from tests.numerics_zoo import (
    Attention,
    Case,
    LanguageModel,
    case,
    made,
    one_thread,  # noqa: F401
    recorded,
    step,
    threads,
)


class Scaled(torch.autograd.Function):
    """A kernel that is wrong forward, backward or both; right in float64, as engines' faults are.

    With `everywhere` it is wrong in float64 too, as a fault of the program is.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ahead: float, back: float, everywhere: bool) -> Tensor:
        ctx.back, ctx.everywhere = back, everywhere
        return x * (ahead if everywhere or x.dtype != torch.float64 else 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        wrong = ctx.everywhere or gradient.dtype != torch.float64
        return gradient * (ctx.back if wrong else 1.0), None, None, None


def scaled(x: Tensor, ahead: float = 1.0, back: float = 1.0, *, everywhere: bool = False) -> Tensor:
    return Scaled.apply(x, ahead, back, everywhere)


class WrongLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(super().forward(x), 1.001)


class WrongProgramLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.001


class WrongWeightGradient(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, scaled(self.weight, back=1.01), self.bias)


class CoarseLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        low = [t.to(torch.bfloat16) for t in (x, self.weight, self.bias)]
        return F.linear(*low).to(x.dtype)


class CoarseOutLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*(t.to(torch.bfloat16) for t in (x, self.weight, self.bias)))


class Gelu(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.change(x))


class WrongAttention(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled(super().attend(query, key, value), 1.001)


class WrongBackwardAttention(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled(super().attend(query, key, value), back=1.01)


def as_class(path: str, kind: type[nn.Module]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.get_submodule(path).__class__ = kind

    return change


def instead(path: str, module: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda model: model.set_submodule(path, module())


def with_eps(model: nn.Module) -> None:
    model.get_submodule("blocks.1.norm2").eps = 1e-3


def with_nan(model: nn.Module) -> None:
    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if output.dtype == torch.float64:
            return None
        output = output.clone()
        output[0, 0, 0] = torch.nan
        return output

    model.get_submodule("blocks.1.mlp.1").register_forward_hook(spoil)


MLP0, GELU, MLP2 = "blocks.1.mlp.0", "blocks.1.mlp.1", "blocks.1.mlp.2"
FAULTS: dict[str, tuple[Callable[[nn.Module], None], str, str]] = {
    "scaled kernel": (as_class(MLP0, WrongLinear), MLP0, "out of budget"),
    "scaled program": (as_class(MLP0, WrongProgramLinear), MLP0, "computes another function"),
    "tanh gelu": (instead(GELU, lambda: nn.GELU("tanh")), GELU, "computes another function"),
    "eps": (with_eps, "blocks.1.norm2", "computes another function"),
    "nan": (with_nan, GELU, "1 elements are NaN"),
    "bf16 inside": (as_class(MLP0, CoarseLinear), MLP0, "out of budget"),
    "bf16 out": (as_class(MLP2, CoarseOutLinear), MLP2, "computes in bfloat16 where"),
    "functional kernel": (
        as_class("blocks.1.attention", WrongAttention),
        "blocks.1.attention",
        "its own code before blocks.1.attention.out",
    ),
    "backward kernel": (
        instead(GELU, lambda: Gelu(lambda x: scaled(x, back=1.01))),
        GELU,
        "its backward",
    ),
    "backward program": (
        instead(GELU, lambda: Gelu(lambda x: scaled(x, back=1.01, everywhere=True))),
        GELU,
        "computes another function",
    ),
    "functional backward": (
        as_class("blocks.1.attention", WrongBackwardAttention),
        "blocks.1.attention",
        "the backward of its own code after blocks.1.attention.qkv",
    ),
    "weight gradient": (
        as_class(MLP0, WrongWeightGradient),
        MLP0,
        "the gradient of its weight in step 0",
    ),
}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "r"
    with threads(1):  # the autouse fixture has not begun yet
        recorded(path, case("language"))
    return path


def compared(
    reference: Path, path: Path, change: Callable[[nn.Module], None], one: Case | None = None
) -> Comparison:
    one = one or case("language")
    model = made(one.model)
    change(model)
    recorded(path, one, model=model)
    return compare(reference, path)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(language: Path, tmp_path: Path, name: str) -> None:
    change, module, words = FAULTS[name]
    found = compared(language, tmp_path / "r", change)
    assert not found.ok
    assert found.first_divergence is not None
    assert found.first_divergence.module == module
    assert found.verdict.startswith(f"{module} (")
    assert words in found.verdict
    assert "reference_failed" not in found.verdict


def test_the_same_again_is_the_same(language: Path, tmp_path: Path) -> None:
    found = compared(language, tmp_path / "r", lambda model: None)
    assert found.ok
    assert found.first_divergence is None
    assert found.verdict.startswith("They are the same: all ")
    assert found.environment == {}
    assert {one.status for one in found.entries} == {"equal"}


@torch.no_grad()
def transpose(model: nn.Module) -> None:
    weight = model.get_parameter("blocks.1.attention.out.weight")
    weight.copy_(weight.t().clone())


@torch.no_grad()
def nudge(model: nn.Module) -> None:
    model.get_parameter("blocks.0.norm1.weight")[3] += 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (transpose, "Different parameters: blocks.1.attention.out.weight is transposed"),
        (nudge, "Different parameters: blocks.0.norm1.weight differs by"),
        (lambda model: model.eval(), "Different arguments: call 0 is in eval mode"),
    ],
)
def test_other_beginnings_blame_no_module(
    language: Path, tmp_path: Path, change: Callable[[nn.Module], None], words: str
) -> None:
    found = compared(language, tmp_path / "r", change)
    assert not found.ok
    assert words in found.verdict


def test_another_input_and_another_target(language: Path, tmp_path: Path) -> None:
    one = case("language")
    tokens = one.inputs.clone()
    tokens[1, 4] = (tokens[1, 4] + 1) % 50
    found = compared(language, tmp_path / "a", lambda m: None, one._replace(inputs=tokens))
    assert not found.ok
    assert "Different input: input 0 of call 0 of the model differs in 1 of 48" in found.verdict
    other = one._replace(loss=lambda out: one.loss(out) * 1.1)
    found = compared(language, tmp_path / "b", lambda m: None, other)
    assert not found.ok
    assert found.verdict.startswith("Probably a different loss: the gradients that reach")


def test_structure(language: Path, tmp_path: Path) -> None:
    with_more = instead(GELU, lambda: nn.Sequential(nn.GELU(), nn.Identity()))
    found = compared(language, tmp_path / "a", with_more)
    assert not found.ok
    assert found.first_divergence is not None
    assert found.first_divergence.module == f"{GELU}.0"
    assert "is only in the candidate" in found.verdict
    found = compare(tmp_path / "a", language)
    assert found.first_divergence is not None
    assert found.first_divergence.module == f"{GELU}.0"
    assert "is missing in the candidate" in found.verdict
    found = compared(language, tmp_path / "b", instead("head", lambda: nn.Linear(32, 50)))
    assert not found.ok
    assert "Different parameters: head.weight" in found.verdict


class Count(nn.Module):
    def __init__(self, more: int, width: int = 4) -> None:
        super().__init__()
        self.more, self.width = more, width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.arange(self.width) + self.more


@pytest.mark.parametrize(
    ("other", "words"),
    [(Count(1), "differs in 4 elements"), (Count(0, 5), "has shape [5] against [4]")],
)
def test_integers_must_be_equal_and_shapes_too(tmp_path: Path, other: Count, words: str) -> None:
    for name, model in (("a", Count(0)), ("b", other)):
        with record(model, tmp_path / name):
            model(torch.ones(3))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert not found.ok
    assert words in found.verdict


def test_a_fault_that_bfloat16_hides_in_float32_is_found_in_bfloat16_if_large(
    tmp_path: Path,
) -> None:
    one = case("language")
    recorded(tmp_path / "a", one, autocast=True)
    model = made(one.model)
    instead(GELU, lambda: Gelu(lambda x: scaled(x, back=1.05)))(model)
    recorded(tmp_path / "b", one, model=model, autocast=True)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.first_divergence is not None
    assert found.first_divergence.module == GELU


def test_the_candidate_may_come_without_truth(language: Path, tmp_path: Path) -> None:
    one = case("language")
    model = made(one.model)
    with (
        record(model, tmp_path / "good", reference=False),
        torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None),
    ):
        step(model, one)
    found = compare(language, tmp_path / "good")
    assert found.ok, found.verdict
    model = made(one.model)
    as_class(MLP0, WrongLinear)(model)
    with record(model, tmp_path / "bad", reference=False):
        step(model, one)
    found = compare(language, tmp_path / "bad")
    assert found.first_divergence is not None
    assert found.first_divergence.module == MLP0


def test_an_explicit_budget_measures_the_distance_of_the_runs(tmp_path: Path) -> None:
    one = case("language")
    for name, change in (("a", lambda m: None), ("b", as_class(MLP0, WrongLinear))):
        model = made(one.model)
        change(model)
        with record(model, tmp_path / name, reference=False):
            step(model, one)
    with pytest.raises(ValueError, match="carries no float64 reference: record it with"):
        compare(tmp_path / "a", tmp_path / "b")
    assert compare(tmp_path / "a", tmp_path / "b", budget=Budget(0.1, 1.0)).ok
    found = compare(tmp_path / "a", tmp_path / "b", budget=Budget(5e-4, 1.0))
    assert found.first_divergence is not None
    assert found.first_divergence.module == MLP0
    assert "rms error 0.001 exceeds its budget 0.0005" in found.verdict


def test_what_was_not_checked_is_never_passed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    x = torch.randn(3, 4)
    for name, scale in (("a", 1.0), ("b", 1.01)):
        with record(model, tmp_path / name):
            out = model(x)
            # the loss uses a parameter behind the model's back
            (out.sum() + 100 * scale * model[0].weight.square().sum()).backward()
    found = compare(tmp_path / "a", tmp_path / "b")
    assert not found.ok
    assert found.count("unchecked") == 1
    assert found.verdict.startswith("Cannot decide: 1 tensors differ and could not be checked")
    assert "does the loss use the model other than through its outputs?" in found.verdict


def test_other_dtypes_of_the_whole_run(tmp_path: Path) -> None:
    one = case("language")
    single = recorded(tmp_path / "single", one)
    mixed = recorded(tmp_path / "mixed", one, autocast=True)
    model = made(lambda: LanguageModel().to(torch.bfloat16))
    half = recorded(tmp_path / "half", one, model=model)
    for reference, candidate in ((single, mixed), (mixed, single), (single, half), (half, single)):
        found = compare(reference, candidate)
        assert found.ok, found.verdict
        assert any("computes in other dtypes" in note for note in found.notes)
    assert any("is rounded to bfloat16 against float32" in n for n in compare(single, half).notes)
    wrong = made(one.model)
    as_class(MLP0, WrongLinear)(wrong)
    wrong.get_submodule(MLP0).forward = lambda x: scaled(  # type: ignore[method-assign]
        nn.Linear.forward(wrong.get_submodule(MLP0), x), 1.5
    )
    recorded(tmp_path / "wrong", one, model=wrong, autocast=True, gradients=False)
    assert not compare(single, tmp_path / "wrong").ok
