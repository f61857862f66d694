"""Steps that the controller withholds: what spoilt them, that they change nothing, what follows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accel.precision import ControllerConfig, DynamicLossScale, Precision
from accel.precision.controller import Operand
from accel.precision.controller.tripwire import Tripwire
from accel.precision.operand import ROLES
from tests.precision_controller_faults import Outlier, Underflow

# A layer's input or gradient is in two of its three products: a third of the work of two layers.
CONFIG = ControllerConfig(interval=100, budget=0.7)
FP8 = "fp8_tensorwise,emulate"


class Run:
    """Two linear layers whose input and gradient can be spoilt."""

    def __init__(
        self, device: torch.device | str = "cpu", policy: str = FP8, **options: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(32, 48, bias=False), nn.GELU(), nn.Linear(48, 16, bias=False)
        )
        self.outlier, self.underflow = Outlier(self.model[0]), Underflow(self.model[2])
        self.model.to(device)
        options = {"controller": CONFIG, **options}
        self.precision = Precision(self.model, FP8, **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)

    def backward(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        first = next(self.model.parameters())
        x = torch.randn(64, 32, generator=generator).to(first.device)
        self.optimizer.zero_grad()
        with self.precision.autocast():
            loss = (self.model(x).float() - x[:, :16]).square().mean()
        self.precision.backward(loss)
        return loss

    def step(self, step: int) -> Any:
        self.backward(step)
        return self.precision.step(self.optimizer, max_norm=1.0)

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        )

    def formats(self) -> dict[str, str]:
        assert self.precision.controller is not None
        return {str(one): name for one, name in self.precision.controller.formats().items()}


def test_a_leap_between_readings_withholds_steps_until_the_operand_is_promoted(device) -> None:
    run = Run(device.torch_device)
    for step in range(5):
        assert run.step(step)
    before = run.state()
    run.outlier.active = True
    skips = []
    while not run.step(5):
        skips.append(run.precision.last_skipped)
        torch.testing.assert_close(run.state(), before, rtol=0, atol=0)
    assert [(one.parameter, one.value) for one in skips] == [
        ("0/input", "leap"), ("0/input", "error")
    ]  # fmt: skip
    assert "far beyond its usual magnitude" in str(skips[0])
    assert run.formats()["0/input"] == "bfloat16"
    assert {name for one, name in run.formats().items() if one != "0/input"} <= {
        "float8_e4m3fn", "float8_e5m2"
    }  # fmt: skip
    assert all(run.step(step) for step in range(6, 20))


def test_what_is_spoilt_in_a_reading_is_withheld_as_well() -> None:
    run = Run()
    run.underflow.active = True
    outcomes = [bool(run.step(step)) for step in range(4)]
    assert outcomes == [False, False, True, True], "the second step measures the whole ladder"
    skipped = run.precision.last_skipped
    assert (skipped.step, skipped.parameter, skipped.value) == (1, "2/gradient", "error")
    assert "loses its values in its format" in str(skipped)


def test_a_run_that_repeats_withheld_batches_never_learns_from_a_spoilt_step() -> None:
    """It is to the bit the run in which the operand was wide before the fault came."""
    spoilt, wide = Run(), Run()
    for step in range(5):
        assert spoilt.step(step)
        assert wide.step(step)
    spoilt.outlier.active = True
    while not spoilt.step(5):
        pass
    layer = wide.precision.layers["0"]
    layer.formats = dict(spoilt.precision.layers["0"].formats)
    assert wide.step(5)
    torch.testing.assert_close(spoilt.state(), wide.state(), rtol=0, atol=0)


def test_the_loss_scale_does_not_take_it_for_an_overflow() -> None:
    run = Run(loss_scale=DynamicLossScale(initial=256.0))
    assert run.step(0)
    run.outlier.active = True
    assert not run.step(1)
    run.precision.begin()
    assert float(run.precision.loss_scale.factor) == 256.0


def test_a_gradient_that_is_not_finite_is_named_before_an_operand() -> None:
    run = Run()
    assert run.step(0)
    run.outlier.active = True
    run.backward(1)
    run.model[0].weight.grad.fill_(torch.inf)
    assert not run.precision.step(run.optimizer)
    assert run.precision.last_skipped.parameter == "0.weight"
    assert not run.precision.last_skipped.is_withheld


def test_all_optimizers_of_a_backward_are_withheld() -> None:
    run = Run()
    both = [torch.optim.SGD([run.model[place].weight], 0.1) for place in (0, 2)]
    run.backward(0)
    taken = [bool(run.precision.step(one)) for one in both]
    assert taken == [True, True]
    run.outlier.active = True
    run.backward(1)
    taken = [bool(run.precision.step(one)) for one in both]
    assert taken == [False, False]
    assert run.precision.last_skipped.value == "leap"


def test_magnitudes_that_come_and_go_cost_one_step() -> None:
    """Scales of the moment follow them: nothing is spoilt, and no step is withheld for it again."""
    run = Run()
    taken = []
    for step in range(30):
        run.optimizer.zero_grad()
        with run.precision.autocast():
            size = 1000.0 if step % 2 else 1.0
            loss = run.model(size * torch.randn(64, 32)).float().mean()
        run.precision.backward(loss)
        taken.append(bool(run.precision.step(run.optimizer, max_norm=1.0)))
    assert taken.count(False) == 1
    assert not taken[1], "the first leap"


@pytest.mark.parametrize("at", [4, 6, 7, 8])
def test_a_run_goes_on_to_the_bit_around_a_leap(at) -> None:
    """Before it, behind the withheld step, behind the reading, and later."""
    whole, parts = Run(), Run()
    for step in range(12):
        whole.outlier.active = parts.outlier.active = step >= 5
        if step == at:
            saved = {**parts.state(), "precision": copy.deepcopy(parts.precision.state_dict())}
            parts = Run()
            parts.model.load_state_dict(saved["model"])
            parts.optimizer.load_state_dict(saved["optimizer"])
            parts.precision.load_state_dict(saved["precision"])
            parts.outlier.active = step >= 5
        assert bool(whole.step(step)) == bool(parts.step(step))
    torch.testing.assert_close(parts.state(), whole.state(), rtol=0, atol=0)
    mine, other = (one.precision.state_dict() for one in (parts, whole))
    torch.testing.assert_close(mine.pop("layers"), other.pop("layers"), rtol=0, atol=0)
    assert mine == other


def test_a_leap_that_the_host_hears_of_late_is_measured_one_step_later() -> None:
    run = Run()
    for step in range(3):
        assert run.step(step)
    controller, withholding = run.precision.controller, run.precision._withholding
    watched, after_step = [], withholding.after_step
    withholding.after_step = lambda outcome, taken, known: after_step(outcome, taken, False)
    run.outlier.active = True
    for step in range(3, 6):
        assert not run.step(step)
        watched.append(any(layer.collect for layer in run.precision.layers.values()))
    assert watched[:2] == [False, True]
    assert controller.formats()[Operand("0", "input")] == "bfloat16"


# --- the tripwire alone --------------------------------------------------------------------------


class Layer:
    """What a tripwire sees of one."""

    def __init__(self, history: int = 0) -> None:
        self.guarded = False
        self.pending = {role: torch.zeros(()) for role in ROLES}
        self.history = {role: torch.zeros(history) for role in ROLES}


def tripwire_of(layer: Layer) -> Tripwire:
    operands = [Operand("a", role) for role in ROLES]
    return Tripwire({"a": layer}, operands, 64.0, None)


def shown(wire: Tripwire, layer: Layer, value: float, *, taken: bool = True) -> bool:
    layer.pending["input"].fill_(value)
    found = wire.leapt([True] * len(wire.operands))
    wire.learn(torch.tensor(taken))
    return bool(found[wire.operands.index(Operand("a", "input"))])


def test_a_tripwire_knows_nothing_at_first_and_watches_no_weights() -> None:
    layer = Layer()
    wire = tripwire_of(layer)
    assert layer.guarded
    assert [one.role for one in wire.operands] == ["input", "gradient"]
    assert not shown(wire, layer, 1e30)
    assert float(layer.pending["input"]) == 0.0


@pytest.mark.parametrize(("value", "leaps"), [(64.0, False), (64.1, True), (1e-30, False)])
def test_from_which_magnitude_on_it_is_a_leap(value, leaps) -> None:
    layer = Layer()
    wire = tripwire_of(layer)
    shown(wire, layer, 1.0)
    assert shown(wire, layer, value) == leaps


def test_what_was_not_taken_teaches_nothing_and_what_was_accepted_does() -> None:
    layer = Layer()
    wire = tripwire_of(layer)
    shown(wire, layer, 1.0)
    assert shown(wire, layer, 1e6, taken=False)
    assert shown(wire, layer, 1e6, taken=False)
    wire.accept()
    assert not shown(wire, layer, 1e6)
    wire.forget(Operand("a", "input"))
    assert not shown(wire, layer, 1e12)


def test_the_usual_is_forgotten_by_half_in_69_steps() -> None:
    layer = Layer()
    wire = tripwire_of(layer)
    shown(wire, layer, 1.0)
    for _ in range(69):
        shown(wire, layer, 1e-3)
    usual = wire.state_dict()["a/input"][0]
    assert usual == pytest.approx(0.5, rel=1e-2)


def test_magnitudes_of_delayed_scaling_are_left_to_it() -> None:
    layer = Layer(history=2)
    shown(tripwire_of(layer), layer, 3.0)
    assert float(layer.pending["input"]) == 3.0


@pytest.mark.parametrize(
    "state", [{}, {"a/input": [1.0, 1.0]}, {"a/input": [1.0], "a/gradient": [1.0, -1.0]}, None]
)
def test_a_tripwires_state_of_something_else_is_refused(state) -> None:
    with pytest.raises(ValueError, match="usual magnitudes"):
        tripwire_of(Layer()).load_state_dict(state)
