"""Pairs of runs that people make by mistake, and what is said of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.numerics import Comparison, compare, record
from tests.numerics.numerics_zoo import Case, case, made, one_thread, threads  # noqa: F401

Optimizer = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-3)


def ran(
    path: Path,
    *,
    one: Case | None = None,
    optimizer: Optimizer = adamw,
    edit: Callable[[Any], Any] = lambda model: None,
    training: bool = True,
    steps: int = 2,
    seed: int = 3,
    drawn: int = 0,
    clip: float | None = None,
    zeroed: bool = True,
    calls: int = 1,
    killed: bool = False,
    **options: Any,
) -> Path:
    """Record some steps of a training that has one thing or another of its own."""
    one = case("language") if one is None else one
    model = made(one.model, seed).train(training)
    edit(model)
    stepper = optimizer(model.parameters())
    with record(model, path, **({"every": 1} | options)):
        for index in range(steps):
            torch.manual_seed(drawn + index)
            if zeroed:
                stepper.zero_grad()
            for _ in range(calls):
                out = model(one.inputs)
                if killed and index == steps - 1:
                    os._exit(0)
                torch.autograd.backward(one.loss(out))
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            stepper.step()
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with threads(1):
        return ran(tmp_path_factory.mktemp("odd") / "base")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-3)


def coupled(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3, weight_decay=1e-2)


def faster(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 2e-3)


def frozen(model: Any) -> None:
    model.head.weight.requires_grad_(False)


def another_norm(model: Any) -> None:
    model.norm = nn.Sequential(model.norm, nn.LayerNorm(32))


def a_block_less(model: Any) -> None:
    del model.blocks[1]


def smaller() -> Case:
    targets = torch.arange(32).mul(7).remainder(50)

    def loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out.reshape(-1, 50), targets)

    whole = case("language")
    return Case(whole.model, whole.inputs[:2], loss)


PAIRS: dict[str, tuple[dict[str, Any], str, str]] = {
    "another optimizer": ({"optimizer": sgd}, "different program",
                          "the candidate's optimizer is SGD, in the reference AdamW"),
    "coupled decay": ({"optimizer": coupled}, "different program",
                      "the candidate's optimizer is Adam, in the reference AdamW"),
    "another rate": ({"optimizer": faster}, "different program",
                     "of the optimizer AdamW"),
    "clipped": ({"clip": 0.1}, "different program",
                "the candidate changes the gradient of parameter head.weight once more than the "
                "reference, by _foreach_mul_ in no module"),
    "gradients kept": ({"zeroed": False}, "different program",
                       "the candidate changes the gradient of parameter head.weight once more than "
                       "the reference, by add_ in the backward of AccumulateGrad.weight in head"),
    "a frozen parameter": ({"edit": frozen}, "different program",
                           "the candidate has no gradient of head.weight, which the reference has"),
    "another norm": ({"edit": another_norm}, "different weight/input",
                     "the candidate has no parameter norm.bias, which the reference has"),
    "a block less": ({"edit": a_block_less}, "different weight/input",
                     "the candidate has no parameter blocks.1."),
    "another seed": ({"seed": 4}, "different weight/input",
                     "the parameter token.weight differs by"),
    "two batches a step": ({"calls": 2}, "different program",
                           "the model is called 2 times, in the reference called once"),
    "a smaller batch": ({"one": smaller()}, "different weight/input",
                        "the input 0 is of another shape: int64 [2, 16], in the reference int64 "
                        "[3, 16]"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_an_odd_pair_is_called_by_its_name(base: Path, tmp_path: Path, name: str) -> None:
    options, kind, said = PAIRS[name]
    found = compare(base, ran(tmp_path / "b", **options))
    assert found.verdict.kind == kind
    assert said in found.verdict.sentence
    assert found.exit_status == 1
    # Nothing that only follows from it; a smaller batch has fewer targets.
    assert len(found.findings) == (2 if name == "a smaller batch" else 1)
    assert re.findall(r"\b1 (?:more )?(?:value|operator|parameter|cast)s\b", found.to_text()) == []


def test_what_makes_no_difference(base: Path, tmp_path: Path) -> None:
    assert compare(base, base).verdict.kind == "same"

    def idle(model: Any) -> None:
        model.blocks[1].mlp.append(nn.Identity())
        model.blocks[1].mlp.append(nn.Dropout(0.0))

    assert compare(base, ran(tmp_path / "idle", edit=idle)).verdict.kind == "same"
    full = ran(tmp_path / "full", level="full", steps=1)
    check = ran(tmp_path / "check", level="check", steps=1)
    for pair in ((base, full), (full, base), (check, base), (base, check)):
        assert compare(*pair, replay=False).verdict.kind == "same"


def test_a_fused_optimizer_is_no_other(base: Path, tmp_path: Path) -> None:
    def fused(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, 1e-3, fused=True)

    found = compare(base, ran(tmp_path / "b", optimizer=fused))
    assert found.verdict.kind == "rounding only"


def test_evaluation_against_training(tmp_path: Path) -> None:
    for name in ("dropout", "cnn"):
        a = ran(tmp_path / f"{name}-a", one=case(name), steps=1)
        b = ran(tmp_path / f"{name}-b", one=case(name), steps=1, training=False)
        found = compare(a, b)
        assert found.verdict.kind == "different switch"
        assert found.verdict.sentence == (
            "the model runs in evaluation mode, in the reference in training mode"
        )
        assert len(found.findings) == 1


def test_other_dropout_is_no_rounding(tmp_path: Path) -> None:
    a = ran(tmp_path / "a", one=case("dropout"), steps=1)
    found = compare(a, ran(tmp_path / "b", one=case("dropout"), steps=1, drawn=99))
    assert found.verdict.kind == "different weight/input"
    assert found.verdict.sentence.startswith("other random numbers are drawn by bernoulli_ in enc")
    assert compare(a, ran(tmp_path / "c", one=case("dropout"), steps=1)).verdict.kind == "same"


def test_other_steps(base: Path, tmp_path: Path) -> None:
    def notes(found: Comparison) -> str:
        assert found.verdict.kind == "same"
        return " ".join(found.notes)

    longer = compare(base, ran(tmp_path / "longer", steps=3))
    assert "only the candidate has step 2: not compared" in notes(longer)
    b = ran(tmp_path / "only", every=200)
    assert "only the reference has step 1: not compared" in notes(compare(base, b))


def test_a_run_that_was_killed_in_a_step(base: Path, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        ran(tmp_path / "killed", killed=True)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    found = compare(base, tmp_path / "killed")
    assert found.verdict.kind == "same"
    assert "the candidate's step 1 was cut short: what is there is compared" in found.notes
    assert any(note.startswith("the candidate is incomplete") for note in found.notes)


def test_another_reduction_of_a_collective_is_another_argument() -> None:
    from accel.numerics.comparing.arguments import changed
    from accel.numerics.storage.entries import Key, Operator, Special

    def reduced(by: str) -> Operator:
        key = Key("collective", "", 0, "", "c10d::allreduce_", 0)
        given = {"reduce_op": Special("opaque", by), "timeout": Special("opaque", by)}
        return Operator(0, key, "c10d::allreduce_", "default", given)

    assert changed(reduced("sum"), reduced("sum"), 1) == []
    (one,) = changed(reduced("sum"), reduced("avg"), 1)
    assert str(one) == "reduce_op is avg where the reference has sum"
