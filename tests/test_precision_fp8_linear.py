"""The linear layer in eight bits against its formula in float64, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from accel.precision.autocast import portable_autocast
from accel.precision.fp8 import (
    Fp8Linear,
    convert_linear,
    convert_linears,
    linear_states,
    restore_linears,
)
from accel.precision.operand import ModulePlan, OperandFormat, Slot
from accel_kernels.fp8 import E4M3, E5M2, Scaling
from tests.precision_fp8_cases import (
    BF16,
    FLOAT32,
    RECIPES,
    TENSOR,
    assert_near,
    plan_of,
    results_of,
    truth,
)

SIZES = [(96, 128, 64), (1, 63, 100), (100, 1, 7), (33, 300, 129), (130, 257, 1)]
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def layer_of(inputs, outputs, device, bias=True, dtype=torch.float32):
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype, device=device.torch_device)


def batch_of(rows, inputs, outputs, device, dtype=torch.float32):
    """Rows of very different magnitude, one of zeros, and a gradient like a loss's."""
    x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
    x[rows // 2] = 0.0
    gradient = torch.randn(rows, outputs) * 1e-4
    return x.to(device.torch_device, dtype), gradient.to(device.torch_device, dtype)


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_output_and_gradients_are_those_of_rounded_operands(device, recipe, size):
    rows, inputs, outputs = size
    plan = plan_of(**RECIPES[recipe])
    layer = layer_of(inputs, outputs, device)
    x, gradient = batch_of(*size, device)
    convert_linear(layer, plan)
    found = results_of(layer, x, gradient)
    expected = truth(plan, x, layer.weight.detach(), layer.bias.detach(), gradient)
    assert_near(found.out, expected["forward"], inputs)
    assert_near(found.x, expected["data_gradient"], outputs)
    rounded = plan.slots[Slot("weight_gradient", "input")].dtype or torch.float32
    assert_near(found.weight, expected["weight_gradient"], rows, ROUNDING[rounded])
    torch.testing.assert_close(found.bias.double(), gradient.double().sum(0), rtol=1e-5, atol=1e-9)
    assert found.weight.dtype == found.bias.dtype == torch.float32


def _e4m3_by_hand(values, high, wide):
    """Scale blocks by powers of two and round, in float64 arithmetic that shares no code."""
    rows, columns = values.shape
    high, wide = high or rows, wide or columns
    result = torch.empty(rows, columns, dtype=torch.float64)
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            block = values[top : top + high, left : left + wide].double()
            largest = max(block.abs().max().item(), 1e-12)
            factor = 2.0 ** math.floor(math.log2(448.0 / largest))
            scaled = block * factor
            exponent = torch.frexp(scaled).exponent.clamp(min=-5) - 1
            step = torch.ldexp(torch.ones_like(scaled), exponent - 3)
            result[top : top + high, left : left + wide] = (
                torch.round(scaled / step) * step / factor
            )
    return result


@pytest.mark.parametrize(
    ("granularity", "block"),
    [("tensor", (0, 0)), ("row", (1, 0)), ("1x128", (1, 128)), ("128x128", (128, 128)),
     ("1x32", (1, 32))],
)  # fmt: skip
def test_each_product_rounds_along_its_own_sum(device, granularity, block):
    plan = plan_of(Scaling(E4M3, granularity, "power_of_two"))
    layer = layer_of(200, 150, device)
    x, gradient = batch_of(140, 200, 150, device)
    convert_linear(layer, plan)
    found = results_of(layer, x, gradient)
    expected = truth(
        plan, x.cpu(), layer.weight.detach().cpu(), layer.bias.detach().cpu(), gradient.cpu(),
        rounded=lambda values, form: _e4m3_by_hand(values, *block),
    )  # fmt: skip
    assert_near(found.out.cpu(), expected["forward"], 200)
    assert_near(found.x.cpu(), expected["data_gradient"], 150)
    assert_near(found.weight.cpu(), expected["weight_gradient"], 140)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_input_weight_and_output(device, dtype, compute):
    plan = plan_of(**RECIPES["rowwise"], compute=compute)
    layer = layer_of(96, 64, device, dtype=dtype)
    x, gradient = torch.randn(40, 96), torch.randn(40, 64)
    x, gradient = (one.to(device.torch_device, dtype) for one in (x, gradient))
    convert_linear(layer, plan)
    found = results_of(layer, x, gradient)
    assert found.out.dtype == compute
    assert found.x.dtype == found.weight.dtype == found.bias.dtype == dtype
    expected = truth(plan, x, layer.weight.detach(), layer.bias.detach(), gradient.to(compute))
    assert_near(found.out, expected["forward"], 96, ROUNDING[compute])
    assert_near(found.x, expected["data_gradient"], 64, ROUNDING[dtype])
    assert_near(found.weight, expected["weight_gradient"], 40, ROUNDING[dtype])


@pytest.mark.parametrize("shape", [(5,), (2, 3, 7), (2, 0, 4), (0,), ()])
@pytest.mark.parametrize("recipe", RECIPES)
def test_leading_dimensions(device, recipe, shape):
    layer = layer_of(40, 24, device)
    convert_linear(layer, plan_of(**RECIPES[recipe]))
    x = torch.randn(*shape, 40, device=device.torch_device)
    gradient = torch.randn(*shape, 24, device=device.torch_device)
    found = results_of(layer, x, gradient)
    flat = results_of(layer, x.reshape(-1, 40), gradient.reshape(-1, 24))
    assert found.out.shape == (*shape, 24)
    assert found.x.shape == x.shape
    assert torch.equal(found.out.reshape(-1, 24), flat.out)
    assert torch.equal(found.x.reshape(-1, 40), flat.x)
    assert torch.equal(found.weight, flat.weight)
    if 0 in shape:
        assert not found.weight.any()
        assert not found.bias.any()


def test_layout_does_not_matter(device):
    layer = layer_of(40, 24, device)
    convert_linear(layer, plan_of(**RECIPES["blocks"]))
    x = torch.randn(40, 30, device=device.torch_device).t()
    gradient = torch.ones(1, 1, device=device.torch_device).expand(30, 24)
    strided = results_of(layer, x, gradient)
    plain = results_of(layer, x.contiguous(), gradient.contiguous())
    assert all(torch.equal(one, other) for one, other in zip(strided, plain, strict=True))


def test_without_bias(device):
    layer = layer_of(40, 24, device, bias=False)
    plan = plan_of(**RECIPES["tensorwise"])
    convert_linear(layer, plan)
    x, gradient = batch_of(9, 40, 24, device)
    found = results_of(layer, x, gradient)
    assert_near(found.out, truth(plan, x, layer.weight.detach(), None, gradient)["forward"], 40)


def test_sums_in_parts_by_promote(device):
    layer = layer_of(512, 24, device)
    state = convert_linear(layer, plan_of(**RECIPES["tensorwise"]))
    x, gradient = batch_of(9, 512, 24, device)
    whole = results_of(layer, x, gradient)
    state.promote = 128
    parts = results_of(layer, x, gradient)
    torch.testing.assert_close(parts.out, whole.out, rtol=1e-4, atol=1e-4)
    expected = truth(state.plan, x, layer.weight.detach(), layer.bias.detach(), gradient)
    assert_near(parts.out, expected["forward"], 512)


# --- which products are in eight bits ----------------------------------------------------------


def test_a_product_with_one_operand_in_eight_bits_is_computed_in_the_others_dtype(device):
    plan = plan_of(TENSOR, weight=BF16, gradient=FLOAT32)
    layer = layer_of(40, 24, device)
    x, gradient = batch_of(9, 40, 24, device)
    plain = copy.deepcopy(layer)
    convert_linear(layer, plan)
    found = results_of(layer, x, gradient)
    rounded = nn.functional.linear(x.bfloat16(), plain.weight.bfloat16(), plain.bias.bfloat16())
    assert torch.equal(found.out, rounded.float())
    # float32, which is wider than bfloat16; to its rounding, as threads may sum in other orders.
    expected = (gradient @ plain.weight).detach()
    torch.testing.assert_close(
        found.x, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())
    )
    torch.testing.assert_close(found.weight, gradient.t() @ x)


def test_formats_change_between_steps(device):
    layer = layer_of(40, 24, device)
    state = convert_linear(layer, plan_of(TENSOR))
    x, gradient = batch_of(9, 40, 24, device)
    before = results_of(layer, x, gradient)
    for role in ("input", "weight"):
        state.formats[Slot("forward", role)] = FLOAT32
    exact = results_of(layer, x, gradient)
    assert torch.equal(exact.out, nn.functional.linear(x, layer.weight, layer.bias))
    assert torch.equal(exact.x, before.x)
    state.formats.update(state.plan.slots)
    again = results_of(layer, x, gradient)
    assert all(torch.equal(one, other) for one, other in zip(again, before, strict=True))


# --- what needs no gradient --------------------------------------------------------------------


def test_frozen_weight_and_input_without_gradient(device, monkeypatch):
    layer = layer_of(40, 24, device)
    convert_linear(layer, plan_of(TENSOR))
    x, gradient = batch_of(9, 40, 24, device)
    whole = results_of(layer, x, gradient)
    from accel.precision.fp8 import function

    made = []
    product = function.product
    monkeypatch.setattr(function, "product", lambda *a, **k: made.append(1) or product(*a, **k))
    layer.weight.requires_grad_(False)
    frozen = results_of(layer, x, gradient)
    assert len(made) == 2
    assert torch.equal(frozen.x, whole.x)
    assert torch.equal(frozen.bias, whole.bias)
    assert frozen.weight is None
    layer.weight.requires_grad_(True)
    layer.zero_grad()
    out = layer(x)
    out.backward(gradient)
    assert len(made) == 4
    assert torch.equal(layer.weight.grad, whole.weight)
    with torch.no_grad():
        assert torch.equal(layer(x), out)
    assert len(made) == 5


def test_the_input_is_kept_in_eight_bits_for_the_backward(device):
    layer = layer_of(64, 32, device)
    convert_linear(layer, plan_of(Scaling(E4M3, "row")))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(50, 64, device=device.torch_device))
    sizes = sum(one.numel() * one.element_size() for one in kept if one.shape != layer.weight.shape)
    assert sizes <= 50 * 64 + 64 * 4 + 4


def test_tied_weights_get_both_gradients(device):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 16)
            self.head = nn.Linear(16, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    model = Tied().to(device.torch_device)
    convert_linear(model.head, plan_of(TENSOR, name="head"))
    assert model.head.weight is model.embedding.weight
    tokens = torch.arange(6, device=device.torch_device)
    weights = torch.randn(6, 20, device=device.torch_device)
    (model(tokens) * weights).sum().backward()
    whole = model.head.weight.grad.clone()
    x = model.embedding(tokens).detach().requires_grad_()
    model.zero_grad()
    (model.head(x) * weights).sum().backward()
    whole[:6] -= x.grad
    torch.testing.assert_close(whole, model.head.weight.grad)


# --- values that are no numbers ----------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_not_finite_is_never_hidden(device, recipe, bad):
    layer = layer_of(130, 24, device)
    convert_linear(layer, plan_of(**RECIPES[recipe]))
    x, gradient = batch_of(9, 130, 24, device)
    x[3, 77] = bad
    out = layer(x)
    assert not out[3].isfinite().any()
    assert out[[0, 8]].isfinite().all()
    found = results_of(layer, x, gradient)
    assert not found.weight[:, 77].isfinite().any()
    x[3, 77] = 0.0
    gradient[5, 2] = bad
    found = results_of(layer, x, gradient)
    assert not found.x[5].isfinite().any()
    assert found.x[[0, 8]].isfinite().all()
    assert not found.weight[2].isfinite().any()
    with torch.no_grad():
        layer.weight[7, 3] = bad
    out = layer(x)
    assert not out[:, 7].isfinite().any()
    assert out[:, 8].isfinite().all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_zeros_and_the_smallest_numbers(device, recipe):
    layer = layer_of(130, 24, device)
    convert_linear(layer, plan_of(**RECIPES[recipe]))
    x, gradient = batch_of(9, 130, 24, device)
    zero = results_of(layer, torch.zeros_like(x), torch.zeros_like(gradient))
    assert torch.equal(zero.out, layer.bias.detach().expand(9, 24))
    assert not zero.x.any()
    assert not zero.weight.any()
    tiny = results_of(layer, torch.full_like(x, 1e-42), torch.full_like(gradient, 1e-42))
    assert all(one.isfinite().all() for one in tiny)
    assert layer(torch.full_like(x, 1e20)).isfinite().all()


# --- refusals ----------------------------------------------------------------------------------


def test_float64_and_wrong_shapes_are_refused():
    layer = nn.Linear(8, 4)  # not on an NPU, which has no float64
    convert_linear(layer, plan_of(TENSOR))
    with pytest.raises(TypeError, match=r"takes float32, .* its input is torch\.float64"):
        layer(torch.zeros(2, 8, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"its input is torch\.int64"):
        layer(torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[2, 9\] does not end in the 8 features"):
        layer(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"\[\] does not end in the 8 features"):
        layer(torch.zeros(()))
    layer.double()
    with pytest.raises(TypeError, match=r"its weight is torch\.float64"):
        layer(torch.zeros(2, 8))


def test_the_derivative_of_a_gradient_is_refused(device):
    layer = layer_of(8, 4, device)
    convert_linear(layer, plan_of(TENSOR))
    x = torch.randn(3, 8, device=device.torch_device, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    expected = torch.autograd.grad(layer(x).sum(), x)[0]
    assert torch.equal(gradient, expected)
    # A penalty on the gradient would get a derivative by the weight, from nowhere else.
    with pytest.raises(ValueError, match="have no derivative themselves"):
        (layer(x).sum() + gradient.square().sum()).backward()
    weights = torch.ones(3, 4, device=device.torch_device, requires_grad=True)
    (gradient,) = torch.autograd.grad((layer(x) * weights).sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="have no derivative themselves"):
        torch.autograd.grad(gradient.sum(), weights)


def test_only_plain_linear_layers_are_converted(device):
    class Own(nn.Linear):
        def forward(self, input):  # noqa: A002
            return super().forward(input) * 2

    with pytest.raises(TypeError, match=r"'layer' is Own, not an nn\.Linear with its own forward"):
        convert_linear(Own(2, 2), plan_of(TENSOR))
    with pytest.raises(TypeError, match="is Conv1d"):
        convert_linear(nn.Conv1d(2, 2, 1), plan_of(TENSOR))
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(TypeError, match="reads its weight and never"):
        convert_linear(attention.out_proj, plan_of(TENSOR))
    with pytest.raises(ValueError, match=r"is torch\.float64"):
        convert_linear(nn.Linear(2, 2, dtype=torch.float64), plan_of(TENSOR))
    layer = nn.Linear(2, 2)
    convert_linear(layer, plan_of(TENSOR))
    with pytest.raises(TypeError, match="converted already"):
        convert_linear(layer, plan_of(TENSOR))
    partial = ModulePlan("layer", "Linear", torch.float32, {Slot("forward", "input"): BF16}, {})
    with pytest.raises(ValueError, match="no format to forward/weight, data_gradient/gradient"):
        convert_linear(nn.Linear(2, 2), partial)


# --- conversion --------------------------------------------------------------------------------


def model_and_plans(device):
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).to(device.torch_device)
    return model, [plan_of(TENSOR, name="0"), plan_of(BF16, name="2")]


def test_a_model_is_converted_and_restored(device):
    model, plans = model_and_plans(device)
    names, before = str(model), list(model.state_dict())
    x = torch.randn(3, 8, device=device.torch_device)
    plain = model(x)
    states = convert_linears(model, plans)
    assert list(states) == ["0"] == list(linear_states(model))
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[0], Fp8Linear)
    assert not isinstance(model[2], Fp8Linear)
    assert str(model) == names
    assert list(model.state_dict()) == before
    assert not torch.equal(model(x), plain)
    restore_linears(model)
    assert type(model[0]) is nn.Linear
    assert not hasattr(model[0], "fp8")
    assert torch.equal(model(x), plain)


def test_a_model_that_cannot_be_converted_whole_stays_as_it_is(device):
    model, _ = model_and_plans(device)
    plans = [plan_of(TENSOR, name="0"), plan_of(TENSOR, name="1")]
    with pytest.raises(TypeError, match="'1' is GELU"):
        convert_linears(model, plans)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="no module 'head'"):
        convert_linears(model, [plan_of(TENSOR, name="0"), plan_of(TENSOR, name="head")])
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("recipe", RECIPES)
def test_copies_and_pickles_compute_the_same(device, recipe):
    layer = layer_of(40, 24, device)
    convert_linear(layer, plan_of(**RECIPES[recipe]))
    x, gradient = batch_of(9, 40, 24, device)
    expected = results_of(layer, x, gradient)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.fp8 is not layer.fp8
        found = results_of(twin, x, gradient)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        twin.fp8.formats[Slot("forward", "input")] = FLOAT32
        twin.fp8.pending["input"].fill_(7.0)
    assert layer.fp8.formats[Slot("forward", "input")] != FLOAT32
    assert layer.fp8.pending["input"] != 7.0


def test_the_state_dict_is_that_of_the_plain_layer(device, tmp_path):
    layer = layer_of(8, 4, device)
    convert_linear(layer, plan_of(**RECIPES["delayed"]))
    results_of(layer, *batch_of(5, 8, 4, device))
    torch.save(layer.state_dict(), tmp_path / "plain.pt")
    plain = nn.Linear(8, 4)
    plain.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True))
    assert torch.equal(plain.weight, layer.weight.cpu())
    layer.load_state_dict(plain.state_dict())


def test_a_cast_of_the_layer_casts_no_state(device):
    layer = layer_of(8, 4, device)
    state = convert_linear(layer, plan_of(**RECIPES["delayed"]))
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert state.pending["input"].dtype == state.history["input"].dtype == torch.float32
    layer.to("meta")
    assert state.device.type == state.history["input"].device.type == "meta"


# --- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [torch.autocast, portable_autocast])
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise, weight gradient in bfloat16"])
def test_autocast_changes_nothing_inside(device, recipe, autocast):
    layer = layer_of(40, 24, device)
    convert_linear(layer, plan_of(**RECIPES[recipe], compute=torch.bfloat16))
    x, gradient = batch_of(9, 40, 24, device)
    expected = results_of(layer, x, gradient)
    layer.fp8.collect = True
    with autocast(device.torch_type, dtype=torch.bfloat16):
        found = results_of(layer, x, gradient)
    assert found.out.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_of_e5m2(device):
    """E5M2 keeps a range of gradients within one tensor that E4M3 does not."""
    gradient = torch.full((64, 32), 1e-6, device=device.torch_device)
    gradient[0] = 1.0
    x = torch.randn(64, 48, device=device.torch_device)
    kept = {}
    for item in (E4M3, E5M2):
        layer = layer_of(48, 32, device)
        convert_linear(layer, plan_of(TENSOR, gradient=Scaling(item)))
        kept[item] = results_of(layer, x, gradient).x[1:].abs().sum().item()
    assert kept[E4M3] == 0.0
    assert kept[E5M2] > 0.0


def test_formats_are_values():
    """What a guard of compiled code compares."""
    assert OperandFormat(scaling=Scaling(E4M3)) == OperandFormat(scaling=Scaling(E4M3))
    assert hash(OperandFormat(scaling=Scaling(E4M3))) == hash(OperandFormat(scaling=TENSOR))
