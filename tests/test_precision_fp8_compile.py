"""Layers in eight bits under `torch.compile(fullgraph=True)`, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from accel.precision.fp8 import advance, convert_linears, linear_states
from accel.precision.operand import Slot
from tests.precision_fp8_cases import BF16, RECIPES, plan_of, states_equal


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(device, recipe, layers=1, collect=False):
    steps = [nn.Linear(200, 24), nn.Linear(24, 24)][:layers]
    model = nn.Sequential(*steps).to(device.torch_device)
    plan = {**RECIPES[recipe], "compute": torch.bfloat16}
    plans = [plan_of(**plan, name=str(place)) for place in range(layers)]
    for state in convert_linears(model, plans).values():
        state.collect = collect
    return model, copy.deepcopy(model)


def run(call, model, x, gradient):
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = call(x)
    out.backward(gradient.to(out.dtype))
    return [out.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]


def data_of(device, rows=36):
    x = torch.randn(rows, 200) * torch.logspace(-2, 2, rows)[:, None]
    return x.to(device.torch_device), torch.randn(rows, 24, device=device.torch_device)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        # The bias's gradient may be summed in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_graph_forward_and_backward(device, recipe):
    model, eager = model_of(device, recipe, collect=recipe in ("tensorwise", "blocks"))
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, gradient = data_of(device)
        found, expected = run(call, model, x, gradient), run(eager, eager, x, gradient)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        for name, state in linear_states(model).items():
            twin = linear_states(eager)[name]
            assert states_equal(state.pending, twin.pending)
            assert state.rows == twin.rows == 36
            for role, measured in state.statistics.items():
                torch.testing.assert_close(measured, twin.statistics[role])
        advance(linear_states(model).values())
        advance(linear_states(eager).values())


@pytest.mark.without_npu
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("recipe", ["blocks", "delayed"])
def test_inductor_gives_the_same(device, recipe):
    """Sizes are no multiples of a block, where Inductor splits a loop wrongly."""
    model, eager = model_of(device, recipe)
    call = torch.compile(model, fullgraph=True)
    x, gradient = data_of(device)
    assert_same(run(call, model, x, gradient), run(eager, eager, x, gradient))


def test_a_change_compiles_once_and_going_back_does_not(device):
    model, _ = model_of(device, "tensorwise", layers=2)
    call = torch.compile(model, fullgraph=True, backend="eager")
    state = linear_states(model)["1"]
    slot = Slot("forward", "input")
    x, gradient = data_of(device)
    graphs = torch._dynamo.utils.counters["stats"]

    def run_and_count():
        before = graphs["unique_graphs"]
        found = run(call, model, x, gradient)
        return found[0], graphs["unique_graphs"] - before

    first, made = run_and_count()
    assert made == 1
    kept = state.formats[slot]
    state.formats[slot] = BF16
    wider, made = run_and_count()
    assert made == 1
    assert not torch.equal(wider, first)
    state.formats[slot] = copy.copy(kept)  # equal, not the same object
    again, made = run_and_count()
    assert torch.equal(again, first)
    assert made <= 1
    state.formats[slot] = kept
    counts = []
    for collect in (True, False, True, False):
        state.collect = collect
        counts.append(run_and_count()[1])
    assert counts == [1, 0, 0, 0]


def test_several_forwards_before_a_backward(device):
    model, eager = model_of(device, "delayed", layers=2)
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    batches = [data_of(device), data_of(device)]
    for one, forward in ((model, call), (eager, eager)):
        outs = [forward(x) for x, _ in batches]
        for out, (_, gradient) in reversed(list(zip(outs, batches, strict=True))):
            out.backward(gradient.to(out.dtype))
        assert one[0].weight.grad is not None
    for one, other in zip(model.parameters(), eager.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for name, state in linear_states(model).items():
        assert states_equal(state.pending, linear_states(eager)[name].pending)


def test_other_batch_sizes_and_evaluation(device):
    model, eager = model_of(device, "rowwise")
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    for rows in (36, 20, 7):
        x, gradient = data_of(device, rows)
        found, expected = run(call, model, x, gradient), run(eager, eager, x, gradient)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert type(linear_states(model)["0"].rows) is int
        with torch.no_grad():
            assert torch.equal(call(x), eager(x))
