"""What a layer in eight bits keeps between steps: histories and measurements."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from accel.precision.controller.statistics import cast_statistics, rounding_statistics
from accel.precision.fp8 import advance, convert_linear, convert_linears, linear_states
from accel.precision.operand import ROLES, OperandFormat, Slot
from accel_kernels.fp8 import E4M3, E5M2, Scaling, dequantize, quantize
from tests.precision_fp8_cases import BF16, RECIPES, TENSOR, plan_of, results_of, states_equal

HISTORY = 3


def delayed_layer(device, **changes):
    layer = nn.Linear(40, 24, device=device.torch_device)
    recipe = {**RECIPES["delayed"], **changes}
    return layer, convert_linear(layer, plan_of(**recipe))


def batch_of(device, size=1.0):
    x = torch.randn(9, 40, device=device.torch_device) * size
    return x, torch.randn(9, 24, device=device.torch_device) * size


# --- delayed scaling ---------------------------------------------------------------------------


def test_scales_come_from_the_largest_of_the_steps_before(device):
    layer, state = delayed_layer(device, history=HISTORY)
    sizes = [1.0, 8.0, 0.5, 0.25, 0.125, 0.0625]
    seen = {"input": [], "gradient": []}
    for size in sizes:
        x, gradient = batch_of(device, size)
        known = {role: max(past[-HISTORY:], default=None) for role, past in seen.items()}
        tensors = {"input": x, "gradient": gradient, "weight": layer.weight.detach()}
        rounded = {}
        for role, tensor in tensors.items():
            amax = tensor.abs().amax() if known.get(role) is None else known[role]
            scaling = Scaling(E5M2 if role == "gradient" else E4M3)
            rounded[role] = dequantize(quantize(tensor, scaling, amax))
        found = results_of(layer, x, gradient)
        torch.testing.assert_close(
            found.out, rounded["input"] @ rounded["weight"].t() + layer.bias.detach()
        )
        torch.testing.assert_close(found.x, rounded["gradient"] @ rounded["weight"])
        torch.testing.assert_close(found.weight, rounded["gradient"].t() @ rounded["input"])
        advance([state])
        for role, past in seen.items():
            past.append(tensors[role].abs().amax())
    assert state.history["input"].shape == (HISTORY,)
    assert state.supposed["input"] == max(seen["input"][-HISTORY:])


def test_micro_batches_share_scales_and_count_as_one_step(device):
    layer, state = delayed_layer(device)
    first, second = batch_of(device, 2.0), batch_of(device, 7.0)
    results_of(layer, *batch_of(device))
    advance([state])
    supposed = {role: state.supposed[role].clone() for role in ROLES}
    before = results_of(layer, *first)
    results_of(layer, *second)
    again = results_of(layer, *first)
    assert all(torch.equal(one, other) for one, other in zip(again, before, strict=True))
    assert states_equal(state.supposed, supposed)
    assert state.pending["input"] == second[0].abs().amax()
    assert state.pending["gradient"] == second[1].abs().amax()
    advance([state])
    assert state.steps == 2
    assert state.history["input"].count_nonzero() == 2


def test_evaluation_leaves_no_trace(device):
    layer, state = delayed_layer(device)
    x, _ = batch_of(device)
    with torch.no_grad():
        layer(x)
    assert all(not state.pending[role] for role in ROLES)
    state.collect = True
    with torch.no_grad():
        layer(x)
    assert bool((state.statistics["input"] == -1).all())


def test_what_is_not_finite_enters_no_history(device):
    layer, state = delayed_layer(device)
    x, gradient = batch_of(device)
    x[2, 3], gradient[0, 0] = float("inf"), float("nan")
    results_of(layer, x, gradient)
    advance([state])
    assert state.supposed["input"] == x.nan_to_num(posinf=0.0).abs().amax()
    assert state.supposed["gradient"] == gradient.nan_to_num(nan=0.0).abs().amax()


def test_a_step_without_the_layer_ages_its_history(device):
    layer, state = delayed_layer(device, history=2)
    results_of(layer, *batch_of(device))
    for expected in (1, 1, 0, 0):
        advance([state])
        assert bool(state.supposed["input"] > 0) == bool(expected)


def test_only_what_the_policy_delays_can_be_delayed(device):
    layer, state = delayed_layer(device, history=0)
    results_of(layer, *batch_of(device))
    advance([state])
    assert state.steps == 0  # nothing to keep
    state.formats[Slot("forward", "input")] = OperandFormat(scaling=TENSOR, history=4)
    with pytest.raises(ValueError, match="the input of 'layer' was given delayed scaling"):
        layer(batch_of(device)[0])


def test_a_saved_state_goes_on_to_the_bit(device):
    layer, state = delayed_layer(device)
    data = [batch_of(device, size) for size in (1.0, 3.0, 0.3, 5.0, 0.1)]
    for x, gradient in data[:2]:
        results_of(layer, x, gradient)
        advance([state])
    results_of(layer, *data[2])  # in the middle of a step
    saved = copy.deepcopy(state.state_dict())
    twin = nn.Linear(40, 24, device=device.torch_device)
    twin.load_state_dict(layer.state_dict())
    other = convert_linear(twin, state.plan)
    other.load_state_dict(saved)
    for x, gradient in data[3:]:
        advance([state])
        advance([other])
        one, two = results_of(layer, x, gradient), results_of(twin, x, gradient)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert states_equal(state.history, other.history)
    assert states_equal(state.pending, other.pending)


def test_a_state_of_something_else_is_refused_whole(device):
    _, state = delayed_layer(device)
    good = state.state_dict()
    good["history"]["input"].fill_(3.0)
    bad = {
        "is not one of LinearState": [{}, None, {**good, "more": 1}],
        "are a count": [{**good, "steps": -1}, {**good, "steps": "2"}],
        "history of weight must be torch.float32": [
            {**good, "history": {**good["history"], "weight": torch.zeros(5)}},
            {**good, "history": {**good["history"], "weight": torch.zeros(HISTORY).double()}},
            {**good, "history": {"input": good["history"]["input"]}},
        ],
        "pending of input must be": [{**good, "pending": 7}],
    }
    for message, states in bad.items():
        for one in states:
            with pytest.raises(ValueError, match=message):
                state.load_state_dict(one)
            assert not state.history["input"].any()
    state.load_state_dict(good)
    assert state.history["input"].all()


# --- activation checkpointing ------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_checkpointing_changes_no_bit_and_counts_nothing_twice(device, recipe, reentrant):
    def model_of():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(40, 48), nn.GELU(), nn.Linear(48, 24))
        model.to(device.torch_device)
        plans = [plan_of(**RECIPES[recipe], name=name) for name in ("0", "2")]
        states = convert_linears(model, plans)
        for state in states.values():
            state.collect = True
        return model, states

    (plain, states), (saving, twins) = model_of(), model_of()
    for size in (1.0, 6.0, 0.2):
        x, gradient = batch_of(device, size)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        plain(one).backward(gradient)
        checkpoint(saving, two, use_reentrant=reentrant).backward(gradient)
        assert torch.equal(one.grad, two.grad)
        for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        for name, state in states.items():
            assert states_equal(state.pending, twins[name].pending)
            assert states_equal(state.statistics, twins[name].statistics)
        advance(states.values())
        advance(twins.values())


# --- measurements ------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "blocks", "hifloat8"])
def test_each_operand_is_measured_in_its_format(device, recipe):
    layer = nn.Linear(40, 24, device=device.torch_device)
    state = convert_linear(layer, plan_of(**RECIPES[recipe]))
    x, gradient = batch_of(device)
    results_of(layer, x, gradient)
    assert all(bool((found == -1).all()) for found in state.statistics.values())
    state.collect = True
    results_of(layer, x, gradient)
    tensors = {"input": x, "weight": layer.weight.detach(), "gradient": gradient}
    for role, tensor in tensors.items():
        (form,) = state.probes[role]
        assert (
            form
            == state.plan.slots[Slot("data_gradient" if role == "gradient" else "forward", role)]
        )
        rounded = dequantize(quantize(tensor, form.scaling))
        expected = rounding_statistics(tensor, rounded, float("inf"))
        torch.testing.assert_close(state.statistics[role], expected[None])
        assert 0.0 < state.statistics[role][0, 0] < 0.1


def test_measurements_are_the_largest_since_they_were_reset(device):
    layer = nn.Linear(40, 24, device=device.torch_device)
    state = convert_linear(layer, plan_of(TENSOR))
    state.collect = True
    parts = []
    for size in (1.0, 5.0):
        x, gradient = batch_of(device)
        x[0] *= 10.0**size
        state.reset_statistics()
        results_of(layer, x, gradient)
        parts.append((x, gradient, state.statistics["input"].clone()))
    state.reset_statistics()
    for x, gradient, _ in parts:
        results_of(layer, x, gradient)
    assert torch.equal(state.statistics["input"], torch.maximum(parts[0][2], parts[1][2]))


def test_other_formats_are_measured_whatever_is_computed(device):
    layer = nn.Linear(40, 24, device=device.torch_device)
    state = convert_linear(layer, plan_of(TENSOR))
    for slot in state.formats:
        state.formats[slot] = BF16
    blocks = OperandFormat(scaling=Scaling(E4M3, "1x128"))
    state.set_probes("input", (OperandFormat(scaling=TENSOR), blocks, BF16))
    state.set_probes("weight", ())
    state.collect = True
    x, gradient = batch_of(device)
    x[0] *= 1e5
    found = results_of(layer, x, gradient)
    plain = nn.functional.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    assert torch.equal(found.out, plain.float())
    errors = state.statistics["input"][:, 0].tolist()
    assert errors[0] > 0.2 > errors[1] > errors[2] > 0.0
    assert torch.equal(state.statistics["input"][2], cast_statistics(x, torch.bfloat16))
    assert state.statistics["weight"].shape == (0, 6)


def test_saturation_by_an_old_scale_is_measured(device):
    layer, state = delayed_layer(device)
    x, gradient = batch_of(device)
    results_of(layer, x, gradient)
    advance([state])
    state.collect = True
    results_of(layer, x * 1.5, gradient)
    overflow = state.statistics["input"][0, 3]
    assert 0.0 < overflow < 0.2
    assert overflow == ((x * 1.5).abs() > x.abs().amax() * 464 / 448).float().mean()
    assert state.statistics["gradient"][0, 3] == 0.0


def test_non_finite_values_are_counted(device):
    layer = nn.Linear(40, 24, device=device.torch_device)
    state = convert_linear(layer, plan_of(TENSOR))
    state.collect = True
    x, gradient = batch_of(device)
    x[0, :3], gradient[1, 1] = float("inf"), float("nan")
    results_of(layer, x, gradient)
    assert [state.statistics[role][0, 4].item() for role in ROLES] == [3.0, 0.0, 1.0]


def test_flops_of_the_last_forward(device):
    layer = nn.Linear(40, 24, device=device.torch_device)
    state = convert_linear(layer, plan_of(TENSOR))
    layer(torch.randn(2, 5, 40, device=device.torch_device))
    assert state.flops == 2 * 10 * 40 * 24
    assert linear_states(layer) == {"": state}
