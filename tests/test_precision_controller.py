"""The decisions of the controller, from synthetic measurements: no tensor is needed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Mapping

import pytest

from accel.precision.controller import ControllerConfig, Decision, Operand, OperandStatistics
from accel.precision.controller.decision import Controlled
from accel.precision.controller.ladder import Rung
from accel.precision.controller.machine import Machine

E4M3, E5M2, BF16 = 0.211 / 8, 0.211 / 4, 0.211 / 128
RUNGS = (
    Rung("e4m3", E4M3, True),
    Rung("e4m3:1x128", E4M3, True),
    Rung("e5m2:1x128", E5M2, True),
    Rung("bfloat16", BF16, False),
    Rung("float32", 0.0, False),
)
CONFIG = ControllerConfig(interval=10, confirm=3, calm=2, cooldown=30, budget=1.0)
FLOPS = {f"layer{i}": 100 for i in range(4)}
A, B, C = (Operand(f"layer{i}", "gradient") for i in range(3))
GEMMS = ("data_gradient", "weight_gradient")


def found(error: float = 0.0, **others: float) -> OperandStatistics:
    return OperandStatistics(error, 0.0, 0.0, 0.0, 0.0, 1000.0)._replace(**others)


def ladder(*errors: float) -> dict[int, OperandStatistics]:
    return {rung: found(error) for rung, error in enumerate(errors)}


GOOD = ladder(E4M3, E4M3, E5M2, BF16, 0.0)
BLOCKS_HELP = ladder(0.2, E4M3, E5M2, BF16, 0.0)
RANGE_HELPS = ladder(0.2, 0.2, E5M2, BF16, 0.0)
NO_FP8 = ladder(0.2, 0.2, 0.2, BF16, 0.0)
Source = Callable[[Operand, int], Mapping[int, OperandStatistics]]


def machine_of(config: ControllerConfig = CONFIG, count: int = 3) -> Machine:
    operands = [Operand(f"layer{i}", "gradient") for i in range(count)]
    return Machine([Controlled(one, RUNGS, GEMMS) for one in operands], config)


def run(machine: Machine, source: Source, steps: range) -> list[Decision]:
    """Measure what the machine asks for."""
    decided = []
    for step in steps:
        watched = machine.watch(step)
        readings = {
            operand: {rung: source(operand, step)[rung] for rung in rungs}
            for operand, rungs in watched.items()
        }
        if readings:
            decided += machine.observe(step, readings, FLOPS)
    return decided


def only(operand: Operand, ladder_of_it: Mapping[int, OperandStatistics]) -> Source:
    return lambda one, step: ladder_of_it if one == operand else GOOD


@pytest.mark.parametrize(("reading", "rung"), [(BLOCKS_HELP, 1), (RANGE_HELPS, 2), (NO_FP8, 3)])
def test_the_lowest_format_that_passes_is_taken(reading, rung) -> None:
    machine = machine_of()
    decided = run(machine, only(B, reading), range(20))
    assert [(one.operand, one.kind, one.after) for one in decided] == [(B, "promote", rung)]
    assert decided[0].step == 2, "a suspicion is read every step"
    assert {one: state.rung for one, state in machine.states.items()} == {A: 0, B: rung, C: 0}
    assert "relative error" in decided[0].reason
    assert "(3 readings)" in decided[0].reason


def test_a_healthy_model_is_read_once_in_an_interval_in_its_own_format() -> None:
    machine = machine_of()
    for step in range(40):
        expected = dict.fromkeys((A, B, C), (0,)) if step % 10 == 0 else {}
        assert machine.watch(step) == expected
        if expected:
            assert machine.observe(step, {one: {0: GOOD[0]} for one in expected}, FLOPS) == []


def test_a_single_bad_reading_changes_nothing() -> None:
    machine = machine_of()
    decided = run(machine, lambda one, step: NO_FP8 if step % 10 < 2 else GOOD, range(100))
    assert decided == []


def test_what_fails_by_far_is_promoted_as_soon_as_the_ladder_is_measured() -> None:
    """The first reading is of its own format alone; nothing waits for more than the second."""
    machine = machine_of()
    far = ladder(0.5, 0.5, 0.5, BF16, 0.0)
    (decision,) = run(machine, only(A, far), range(20))
    assert (decision.step, decision.after) == (1, 3)
    assert "(2 readings)" in decision.reason


def test_a_step_is_withheld_for_what_fails_by_far_unless_the_budget_refused_it() -> None:
    machine = machine_of(dataclasses.replace(CONFIG, budget=0.0))
    far = {0: found(0.3), 1: found(0.3), 2: found(0.5), 3: found(BF16), 4: found()}
    readings = {A: {0: GOOD[0]}, B: far}
    assert machine.severe(0, {A: GOOD}) is None
    assert machine.severe(0, {A: {0: found(0.2)}}) is None, "it fails, but not by far"
    assert machine.severe(0, {A: {0: found(0.3, measured=0.0)}}) is None, "nothing is known"
    assert machine.severe(0, readings) == B
    (refused,) = machine.observe(0, readings, FLOPS)
    assert refused.kind == "refuse"
    assert machine.severe(1, readings) is None


def test_an_alarm_has_everything_measured_once_in_all_formats() -> None:
    machine = machine_of()
    run(machine, lambda one, step: GOOD, range(1))
    machine.alarm()
    assert machine.watch(1) == dict.fromkeys((A, B, C), tuple(range(len(RUNGS))))
    assert run(machine, lambda one, step: GOOD, range(1, 2)) == []
    assert machine.watch(2) == {}


def test_float32_is_the_last_resort() -> None:
    machine = machine_of()
    half_fails = ladder(0.5, 0.5, 0.5, 0.02, 0.0)
    (first,) = run(machine, only(A, half_fails), range(10))
    assert RUNGS[first.after].name == "float32"


def test_between_both_thresholds_nothing_moves_in_either_direction() -> None:
    between = ladder(1.75 * E4M3, 1.75 * E4M3, E5M2, BF16, 0.0)
    machine = machine_of()
    assert run(machine, only(A, between), range(200)) == []
    run(machine, only(A, BLOCKS_HELP), range(200, 210))
    assert machine.states[A].rung == 1
    assert run(machine, only(A, between), range(210, 600)) == []
    assert machine.states[A].rung == 1


def test_it_comes_back_when_the_cause_is_gone_and_not_before_the_cool_down() -> None:
    machine = machine_of()
    run(machine, only(A, NO_FP8), range(10))
    moved = machine.states[A].moved
    decided = run(machine, only(A, GOOD), range(10, 100))
    assert [(one.operand, one.kind, one.before, one.after) for one in decided] == [
        (A, "demote", 3, 0)
    ]
    assert decided[0].step - moved >= CONFIG.cooldown
    assert "would have relative error" in decided[0].reason


def test_it_comes_back_as_far_as_the_measurements_allow() -> None:
    machine = machine_of()
    run(machine, only(A, NO_FP8), range(10))
    (decision,) = run(machine, only(A, BLOCKS_HELP), range(10, 60))
    assert (decision.kind, decision.after) == ("demote", 1)


def test_the_cool_down_doubles_while_it_flaps_and_recovers() -> None:
    """The operand is good whenever it is promoted, and bad as soon as it is back."""
    machine = machine_of(dataclasses.replace(CONFIG, max_doublings=3))

    def relapsing(operand: Operand, step: int) -> Mapping[int, OperandStatistics]:
        return NO_FP8 if operand == A and machine.states[A].rung == 0 else GOOD

    decided = run(machine, relapsing, range(3000))
    ups = [one.step for one in decided if one.kind == "promote"]
    downs = [one.step for one in decided if one.kind == "demote"]
    waits = [down - up for up, down in zip(ups, downs, strict=False)]
    assert waits[:4] == sorted(waits[:4])
    assert all(wait >= 30 * 2 ** min(i, 3) for i, wait in enumerate(waits))
    assert max(waits) < 30 * 2**3 + 40, "the doubling is bounded"
    assert machine.states[A].doublings == 3
    run(machine, only(A, GOOD), range(3000, 6000))
    run(machine, only(A, NO_FP8), range(6000, 6010))
    assert machine.states[A].rung == 3
    assert machine.states[A].doublings == 0, "long quiet ends the flapping"


def test_overflow_underflow_and_non_finite_values_are_causes_too() -> None:
    for bad, word in (
        ({"overflow": 0.01}, "beyond the scale"),
        ({"underflow": 0.4}, "vanish"),
        ({"nonfinite": 2.0}, "non-finite"),
    ):
        machine = machine_of()
        reading = {rung: one._replace(**bad) if rung == 0 else one for rung, one in GOOD.items()}
        (decision,) = run(machine, only(A, reading), range(10))
        assert decision.after == 1
        assert word in decision.reason


def test_non_finite_values_lead_out_of_eight_bits_and_no_further() -> None:
    machine = machine_of()
    reading = {rung: one._replace(nonfinite=1.0) for rung, one in GOOD.items()}
    decided = run(machine, only(A, reading), range(200))
    assert [RUNGS[one.after].name for one in decided] == ["bfloat16"]


def test_a_tensor_that_was_not_measured_is_left_alone() -> None:
    machine = machine_of()
    nothing = {rung: found(measured=0.0) for rung in GOOD}
    run(machine, only(A, NO_FP8), range(10))
    assert run(machine, only(A, nothing), range(10, 500)) == []
    assert machine.states[A].rung == 3


# --- the budget --------------------------------------------------------------------------------


def test_the_worst_go_above_fp8_and_the_least_bad_stay() -> None:
    """Each gradient is in both products that its layer has here: a third of three layers'."""
    machine = machine_of(dataclasses.replace(CONFIG, budget=0.34))
    errors = {A: 0.3, B: 0.9, C: 0.6}
    decided = run(machine, lambda one, step: ladder(1.0, 1.0, errors[one], BF16, 0.0), range(10))
    assert [(one.operand, one.kind, one.after) for one in decided] == [
        (B, "promote", 3), (C, "refuse", 2), (A, "refuse", 2)
    ]  # fmt: skip
    assert all(one.share == pytest.approx(1 / 3) for one in decided)
    assert machine.share() <= 0.34
    assert "the budget is 34 %" in decided[1].reason


def test_nothing_goes_above_fp8_without_a_budget() -> None:
    machine = machine_of(dataclasses.replace(CONFIG, budget=0.0))
    decided = run(machine, lambda one, step: NO_FP8, range(300))
    assert {one.kind for one in decided} == {"refuse"}
    assert machine.share() == 0.0
    per_operand = [one.step for one in decided if one.operand == A]
    assert all(b - a >= CONFIG.cooldown for a, b in itertools.pairwise(per_operand))


def test_a_much_worse_operand_takes_the_place_of_another() -> None:
    machine = machine_of(dataclasses.replace(CONFIG, budget=0.34))
    mild, bad = ladder(0.3, 0.3, 0.2, BF16, 0.0), ladder(1.0, 1.0, 0.9, BF16, 0.0)
    run(machine, only(A, mild), range(10))
    assert machine.states[A].rung == 3
    decided = run(machine, lambda one, step: {A: mild, B: bad}.get(one, GOOD), range(10, 20))
    assert [(one.operand, one.kind, one.after) for one in decided] == [
        (A, "displace", 2), (B, "promote", 3)
    ]  # fmt: skip
    assert "layer1/gradient" in decided[0].reason
    again = run(machine, lambda one, step: {A: mild, B: bad}.get(one, GOOD), range(20, 300))
    assert all(one.kind == "refuse" for one in again), "no see-saw"


def test_a_slightly_worse_operand_does_not() -> None:
    machine = machine_of(dataclasses.replace(CONFIG, budget=0.34))
    bad, worse = ladder(0.6, 0.6, 0.6, BF16, 0.0), ladder(0.8, 0.8, 0.8, BF16, 0.0)
    run(machine, only(A, bad), range(10))
    decided = run(machine, lambda one, step: {A: bad, B: worse}.get(one, GOOD), range(10, 20))
    assert [(one.operand, one.kind) for one in decided] == [(B, "refuse")]


def test_a_way_back_makes_room_in_the_same_step() -> None:
    machine = machine_of(dataclasses.replace(CONFIG, budget=0.34, interval=1, calm=3))
    run(machine, only(A, NO_FP8), range(10))
    waited = machine.states[A].moved + CONFIG.cooldown
    decided = run(
        machine,
        lambda one, step: NO_FP8 if one == B and step > waited - 3 else GOOD,
        range(10, waited + 1),
    )
    assert [(one.operand, one.kind) for one in decided] == [(A, "demote"), (B, "promote")]
    assert decided[0].step == decided[1].step


# --- determinism, checkpoints ------------------------------------------------------------------


def noisy(seed: int) -> Source:
    """Errors that cross every threshold, the same whenever they are asked for."""

    def source(operand: Operand, step: int) -> Mapping[int, OperandStatistics]:
        draw = random.Random(f"{seed} {operand.module} {step // 25}")
        return {
            rung: found(
                draw.choice((0.5, 1.7, 6.0)) * one.error,
                underflow=draw.choice((0.0, 0.0, 0.2, 0.5)),
                nonfinite=float(draw.random() < 0.02),
            )
            for rung, one in GOOD.items()
        }

    return source


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_is_broken_off_anywhere_decides_the_same(seed) -> None:
    config = dataclasses.replace(CONFIG, budget=0.5)
    whole = machine_of(config)
    expected = run(whole, noisy(seed), range(400))
    assert len({one.kind for one in expected}) >= 3
    for cut in range(1, 400, 37):
        first, second = machine_of(config), machine_of(config)
        decided = run(first, noisy(seed), range(cut))
        second.load_state_dict(first.state_dict())
        decided += run(second, noisy(seed), range(cut, 400))
        assert decided == expected
        assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("seed", range(5))
def test_readings_that_are_idle_change_nothing(seed) -> None:
    """What a log leaves out."""
    config = dataclasses.replace(CONFIG, budget=0.5)
    whole, sparse = machine_of(config), machine_of(config)
    left_out = 0
    for step in range(400):
        readings = {
            operand: {rung: noisy(seed)(operand, step)[rung] for rung in rungs}
            for operand, rungs in whole.watch(step).items()
        }
        kept = {one: found for one, found in readings.items() if not sparse.is_idle(one, found)}
        left_out += len(readings) - len(kept)
        expected = whole.observe(step, readings, FLOPS)
        assert sparse.observe(step, kept, FLOPS) == expected
        assert sparse.states == whole.states
    assert left_out > 10


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_holds_after_every_step(seed) -> None:
    config = dataclasses.replace(CONFIG, budget=0.4)
    machine = machine_of(config, count=4)
    for step in range(400):
        run(machine, noisy(seed), range(step, step + 1))
        assert machine.share() <= 0.4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("step"), "step, flops and operands"),
        (lambda s: s["operands"].pop("layer0/gradient"), "other operands"),
        (lambda s: s["operands"]["layer0/gradient"].update(rung=7), "no such rung"),
        (lambda s: s["operands"]["layer0/gradient"].update(bad=0.5), "whole numbers"),
        (lambda s: s["operands"]["layer0/gradient"].pop("bad"), "whole numbers"),
    ],
)
def test_a_state_that_is_not_one_is_refused(change, words) -> None:
    machine = machine_of()
    state = machine.state_dict()
    change(state)
    before = machine.state_dict()
    with pytest.raises(ValueError, match=words):
        machine.load_state_dict(state)
    assert machine.state_dict() == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"interval": 0}, "interval must be a whole number from 1"),
        ({"confirm": 2.0}, "confirm"),
        ({"cooldown": -1}, "cooldown"),
        ({"promote": math.nan}, "promote must be finite"),
        ({"promote": "2"}, "promote must be a number"),
        ({"promote": 1.0}, "demote < promote"),
        ({"demote_overflow": 0.0}, "demote_overflow"),
        ({"budget": 1.5}, "share from 0 to 1"),
        ({"displace": 0.5}, "displace must be at least 1"),
        ({"withhold": 0.9}, "withhold must be at least 1"),
        ({"leap": 0.0}, "leap must be at least 1"),
    ],
)
def test_a_configuration_out_of_range_is_refused(given, words) -> None:
    with pytest.raises(ValueError, match=words):
        ControllerConfig(**given)


def test_a_configuration_survives_its_plain_values() -> None:
    config = ControllerConfig(interval=7, budget=0.5)
    assert ControllerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"wrong: \['speed'\]"):
        ControllerConfig.from_dict({**config.to_dict(), "speed": 1})
