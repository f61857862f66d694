"""Several steps: what rounding carries from one to the next is no other weight or input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accel.numerics import Comparison, compare, record
from accel.numerics.comparing.drift import DRIFT, UNSEEN
from tests.numerics.compared_steps import Program, Run, normal, run
from tests.numerics.numerics_zoo import case, made, one_thread, threads  # noqa: F401
from tests.numerics.test_numerics_compare_runs import onednn_off

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
}
WEIGHT = "blocks.1.attention.out.weight"
Edit = Callable[[Tensor], Any]


def trained(
    path: Path,
    name: str = "language",
    *,
    precision: str = "float32",
    optimizer: str = "adamw",
    edits: dict[int, Edit] | None = None,
    every: int = 1,
    steps: int = 5,
    seed: int = 3,
) -> Path:
    """Record `steps` steps of training; `edits` change a weight before a step."""
    one = case(name)
    model = made(one.model, seed)
    inputs = one.inputs
    if precision == "bfloat16":
        model.bfloat16()
        inputs = inputs.bfloat16() if inputs.is_floating_point() else inputs
    stepper = OPTIMIZERS[optimizer](model.parameters())
    edits = edits or {}
    if 0 in edits:  # before the recording looks at the parameters
        edited(model, edits[0])
    with record(model, path, every=every):
        for index in range(steps):
            if index and index in edits:
                edited(model, edits[index])
            torch.manual_seed(index)
            stepper.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                loss = one.loss(model(inputs))
            torch.autograd.backward(loss)
            stepper.step()
    return path


def edited(model: nn.Module, edit: Edit) -> None:
    with torch.no_grad():
        edit(model.get_parameter(WEIGHT))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("name", ["cnn", "dropout", "language", "checkpoint", "lstm"])
def test_rounding_is_carried(tmp_path: Path, name: str, precision: str, optimizer: str) -> None:
    a = trained(tmp_path / "a", name, precision=precision, optimizer=optimizer)
    with threads(2):
        b = trained(tmp_path / "b", name, precision=precision, optimizer=optimizer)
    assert compare(a, b).ok
    if (name, precision) == ("lstm", "autocast"):
        return  # without oneDNN autocast casts something else
    with onednn_off():
        c = trained(tmp_path / "c", name, precision=precision, optimizer=optimizer)
    found = compare(a, c)
    assert found.ok, found.to_text()
    assert len(found.steps) == 5


def shuffle(weight: Tensor) -> None:
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))
    weight.copy_(weight[order].clone())


def transpose(weight: Tensor) -> None:
    weight.copy_(weight.t().clone())


def touch(weight: Tensor) -> None:
    weight[3, 4] += 1e-3


@pytest.mark.parametrize("edit", [shuffle, transpose, touch])
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_changed_weight_is_none(tmp_path: Path, at: int, precision: str, edit: Edit) -> None:
    a = trained(tmp_path / "a", precision=precision, steps=3)
    with onednn_off():
        b = trained(tmp_path / "b", precision=precision, steps=3, edits={at: edit})
    found = compare(a, b)
    assert found.verdict.kind == "different weight/input"
    assert found.step == at
    assert f"parameter {WEIGHT}" in found.verdict.sentence
    assert "more" not in found.verdict.sentence  # nothing else is accused
    if at:
        assert "the candidate's was changed after the optimizer's step 1" in found.verdict.sentence


# --- steps between that were not recorded ---------------------------------------------------------


def test_a_drift_over_steps_that_were_not_recorded(tmp_path: Path) -> None:
    a = trained(tmp_path / "a", every=4)
    with onednn_off():
        b = trained(tmp_path / "b", every=4)
    found = compare(a, b)
    assert found.ok, found.to_text()
    assert [one.step for one in found.steps] == [0, 4]
    (note,) = (note for note in found.notes if "before step 4" in note)
    assert "rounding carried from earlier steps explains" in note
    alone = compare(a, b, step=4)
    assert alone.verdict.kind == "rounding only"


def test_another_training_is_more_than_drift(tmp_path: Path) -> None:
    a = trained(tmp_path / "a", every=4)
    b = trained(tmp_path / "b", every=4, edits={2: lambda weight: weight.mul_(-1)})
    found = compare(a, b)
    assert found.verdict.kind == "cannot decide"
    assert found.step == 4
    assert "more than rounding carried from earlier steps is known to make" in (
        found.verdict.sentence
    )
    assert "record every step from 0" in found.verdict.sentence
    assert WEIGHT in found.verdict.evidence[1]  # the one that is furthest apart
    assert found.zoom == ()  # no elements would help


# --- the rule, by hand ----------------------------------------------------------------------------

W, X = normal(16, 16, seed=2), normal(4, 16, seed=3)


def steps(*weights: tuple[Tensor, Tensor | None], first: int = 0) -> list[Any]:
    """Steps that begin with a weight and leave another (or do not say)."""
    made = []
    for index, (before, after) in enumerate(weights):
        p = Program(keep=False, index=first + index)
        x, w = p.source("input", "0", X), p.source("parameter", "w", before)
        p.op("mm", self=x, mat2=w)
        if after is not None:
            p.update("w", p.value(after))
        made.append(p.step())
    return made


def moved(by: float, seed: int = 9) -> Any:
    return W + by * W.norm() / 16 * normal(16, 16, seed=seed)


def of(*weights: tuple[Tensor, Tensor | None], first: int = 0) -> Run:
    return run(*steps(*weights, first=first))


def test_what_the_step_before_left_is_not_new() -> None:
    after = moved(0.1)
    drifted = after + 1e-6
    a, b = of((W, after), (after, None)), of((W, drifted), (drifted, None))
    found = compare(a, b)
    assert [one.kind for one in found.steps] == ["rounding only", "rounding only"]
    assert found.notes == ()
    # Without the step before there is only its size, which fits too.
    assert compare(a, b, step=1).ok


def test_what_only_one_run_changed_between_steps_is_new() -> None:
    after = moved(0.1)
    a, b = of((W, after), (after, None)), of((W, after), (after + 1e-6, None))
    found = compare(a, b)
    assert found.verdict.kind == "different weight/input"
    assert "the candidate's was changed after the optimizer's step 0" in found.verdict.sentence


@pytest.mark.parametrize(("share", "kind"), [(0.5, "rounding only"), (2.0, "cannot decide")])
def test_a_change_in_both_runs_is_judged_by_what_they_moved(share: float, kind: str) -> None:
    clamped, other = moved(0.1), moved(0.1) + share * DRIFT * (moved(0.1, 5) - W)
    found = compare(of((W, W), (clamped, None)), of((W, W), (other, None)))
    assert found.verdict.kind == ("same" if kind == "same" else kind)
    assert found.step == 1


@pytest.mark.parametrize(("share", "kind"), [(0.4, "rounding only"), (2.5, "cannot decide")])
def test_the_first_step_that_was_recorded_may_have_drifted(share: float, kind: str) -> None:
    other = moved(share * UNSEEN * math.sqrt(9.0))
    found = compare(of((W, None), first=9), of((other, None), first=9))
    assert found.verdict.kind == kind
    assert "before step 9" in " ".join((*found.notes, *found.verdict.evidence))


def test_training_neither_scales_nor_transposes() -> None:
    for other in (W * 1.001, W.t()):
        found = compare(of((W, None), first=9), of((other, None), first=9))
        assert found.verdict.kind == "different weight/input"


def test_state_alone_does_not_drift() -> None:
    def state(by: float) -> Run:
        p = Program(keep=False, index=7)
        x, w = p.source("input", "0", X), p.source("parameter", "w", W)
        p.op("mm", self=x, mat2=w)
        p.source("state", "w.exp_avg", W + by)
        return run(p.step())

    found: Comparison = compare(state(0.0), state(1e-3))
    assert found.verdict.kind == "different weight/input"
    assert "state w.exp_avg" in found.verdict.sentence


def test_steps_that_only_one_run_has_are_named() -> None:
    a = of((W, None), (W, None), (W, None))
    found = compare(a, of((W, None)))
    assert found.verdict.kind == "same"
    assert "only the reference has steps 1 and 2: not compared" in found.notes


# --- operators ------------------------------------------------------------------------------------


def test_a_gate_flips_where_activations_are_near_zero() -> None:
    def gated(by: float) -> Run:
        p = Program(keep=False)
        x = normal(64, 64)
        shifted = p.source("input", "0", x)
        y = p.op("add", overload="Tensor", self=shifted, other=p.value(by * normal(64, 64, seed=1)))
        out = p.op("relu", self=y)
        g = p.value(normal(64, 64, seed=2))
        p.op("threshold_backward", phase="backward", origin="relu#0", grad_output=g, self=out,
             threshold=0)  # fmt: skip
        return run(p.step())

    found = compare(gated(0.0), gated(0.003))
    row = next(row for row in found.rows if row.op == "threshold_backward")
    assert row.distance is not None
    assert row.input_distance is not None
    assert row.distance > 48 * 2**-24 * 100  # far more than its inputs differ
    assert row.distance > 5 * row.input_distance
    assert row.status == "carried"


def test_a_workspace_is_no_result() -> None:
    def layer(seed: int) -> Run:
        p = Program(keep=False)
        x = p.source("input", "0", X)
        noise = torch.randint(256, (64,), generator=torch.Generator().manual_seed(seed))
        outputs = [p.value(X * 2), p.value(noise.to(torch.uint8))]
        p.note("mkldnn_rnn_layer", [one.id for one in outputs], input=x)
        return run(p.step())

    found = compare(layer(0), layer(1))
    assert found.verdict.kind == "same"
    assert len(found.rows) == 1
