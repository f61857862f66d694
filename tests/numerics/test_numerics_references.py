"""Where the truth of an operator comes from: registered, a formula, the vendor's, torch's."""

import math

import pytest
import torch
from torch import Tensor

from accel.numerics import register_reference
from accel.numerics.replaying import references
from accel.numerics.replaying.calls import bound, call_of, flattened
from accel.numerics.replaying.judging import judge, judge_call

ATEN = torch.ops.aten


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(references, "_REGISTERED", {})


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def tensors(returned):
    return [item if isinstance(item, Tensor) else None for item in flattened(returned)]


# --- registered ---------------------------------------------------------------------------------


def test_a_registered_reference_makes_an_unknown_operator_checkable() -> None:
    x = draw(9, 8)
    call = call_of("mylib::double", "default", {"x": x, "by": 0.5})
    assert judge(call, [2 * x], {}).verdict == "unchecked"
    seen = []

    def double(x, by):
        seen.append((x.dtype, by))
        return 2 * x

    register_reference("mylib::double", double)
    assert judge(call, [2 * x], {}).verdict == "within"
    assert judge(call, [2.001 * x], {}).verdict == "out"
    assert set(seen) == {(torch.float64, 0.5)}


def test_overloads_and_written_arguments_of_a_registered_operator() -> None:
    x = draw(9, 8)
    register_reference("mylib::halve_.inplace", lambda x: x.mul_(0.5))
    call = call_of("mylib::halve_", "inplace", {"x": x}, ["x"])
    assert judge(call, [], {"x": [x / 2]}).verdict == "within"
    assert judge(call, [], {"x": [x / 3]}).verdict == "out"
    other = call_of("mylib::halve_", "default", {"x": x}, ["x"])
    assert judge(other, [], {"x": [x / 2]}).verdict == "unchecked"


def test_a_registered_reference_replaces_torch() -> None:
    x = draw(9, 8)
    register_reference("aten::gelu", lambda self, approximate="none": self)
    assert judge_call(ATEN.gelu.default, (x,), {}, [ATEN.gelu.default(x)]).verdict == "out"
    assert judge_call(ATEN.gelu.default, (x,), {}, [x]).verdict == "within"


def test_a_reference_that_raises_is_no_verdict() -> None:
    def broken(self, approximate="none"):
        raise ValueError("no such mode\nand more")

    register_reference("aten::gelu", broken)
    found = judge_call(ATEN.gelu.default, (draw(3),), {}, [draw(3)])
    assert found.verdict == "unchecked"
    assert found.reason == "its float64 replay failed: no such mode"


@pytest.mark.parametrize(
    ("name", "function", "error"),
    [("gelu", abs, ValueError), ("::gelu", abs, ValueError), ("aten::gelu", 3, TypeError)],
)
def test_what_cannot_be_registered(name, function, error) -> None:
    with pytest.raises(error):
        register_reference(name, function)


# --- the vendor's -------------------------------------------------------------------------------


def test_operators_of_the_npu_are_replayed_by_the_vendors_references() -> None:
    x, gamma = draw(33, 64), draw(64)
    out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gamma
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    call = call_of("npu::npu_rms_norm", "default", {"input": x, "gamma": gamma, "epsilon": 1e-6})
    assert judge(call, [out, rstd], {}).verdict == "within"
    found = judge(call, [out * 1.0001, rstd], {})
    assert (found.verdict, found.kind, found.output) == ("out", "normalization", "0")


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_dropout_is_checked_by_its_mask(dtype) -> None:
    x = draw(300, 100, dtype=dtype)
    out, mask = ATEN.native_dropout.default(x, 0.3, True)
    found = judge_call(ATEN.native_dropout.default, (x, 0.3, True), {}, [out, mask])
    assert found.verdict == "within"
    unscaled = judge_call(ATEN.native_dropout.default, (x, 0.3, True), {}, [x * mask, mask])
    assert unscaled.verdict == "out"
    fewer = mask & (torch.arange(100) > 5)
    wrong = x * fewer / 0.7
    found = judge_call(ATEN.native_dropout.default, (x, 0.3, True), {}, [wrong.to(dtype), fewer])
    assert found.verdict == "out", "a mask of another share"
    out, mask = ATEN.native_dropout.default(x, 0.3, False)
    found = judge_call(ATEN.native_dropout.default, (x, 0.3, False), {}, [out, mask])
    assert found.verdict == "within"


# --- fused attention ------------------------------------------------------------------------------


def attention(dtype, mask=None, causal=True):
    query, key, value = (draw(2, 4, 33, 16, dtype=dtype) for _ in range(3))
    op = ATEN._scaled_dot_product_flash_attention_for_cpu.default
    args, kwargs = (query, key, value, 0.0, causal), {"attn_mask": mask}
    return op, args, kwargs, tensors(op(*args, **kwargs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_of_the_cpu(dtype, causal) -> None:
    mask = None if causal else draw(33, 33, dtype=dtype)
    op, args, kwargs, outputs = attention(dtype, mask, causal)
    assert judge_call(op, args, kwargs, outputs).verdict == "within"
    wrong = op(*args[:3], 0.0, causal, attn_mask=mask, scale=0.3)
    assert judge_call(op, args, kwargs, tensors(wrong)).verdict == "out"
    if causal:
        seeing = op(*args[:3], 0.0, False)
        assert judge_call(op, args, kwargs, tensors(seeing)).verdict == "out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_fused_attention(dtype) -> None:
    _, args, _, (out, lse) = attention(dtype)
    op = ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default
    grad = draw(2, 4, 33, 16, dtype=dtype)
    given = (grad, *args[:3], out, lse, 0.0, True)
    right = tensors(op(*given))
    assert judge_call(op, given, {}, right).verdict == "within"
    for index in range(3):
        wrong = list(right)
        wrong[index] = right[index] * 1.05
        found = judge_call(op, given, {}, wrong)
        assert (found.verdict, found.output) == ("out", str(index))


def fused(name, query, key, value, **more):
    """A recorded call of a CUDA or third-party operator, which a CPU cannot make."""
    arguments = {"query": query, "key": key, "value": value, **more}
    return call_of(f"aten::_scaled_dot_product_{name}", "default", arguments)


@pytest.mark.parametrize(
    ("name", "more", "extra"),
    [
        ("flash_attention", {"is_causal": True}, 7),
        ("efficient_attention", {"attn_bias": None, "compute_log_sumexp": True,
                                 "is_causal": True}, 2),
        ("cudnn_attention", {"attn_bias": None, "compute_log_sumexp": True, "is_causal": True}, 7),
        ("fused_attention_overrideable", {"attn_bias": None, "is_causal": True}, 7),
    ],
)  # fmt: skip
def test_fused_attention_of_other_backends(name, more, extra) -> None:
    query, key, value = draw(2, 4, 33, 16), draw(2, 2, 33, 16), draw(2, 2, 33, 16)
    call = fused(name, query, key, value, **more)
    wide = [query, *(t.repeat_interleave(2, 1) for t in (key, value))]
    op = ATEN._scaled_dot_product_flash_attention_for_cpu.default
    out, lse = op(*wide, 0.0, True)
    rest = [torch.zeros(1), *[None] * (extra - 1)]
    assert judge(call, [out, lse, *rest], {}).verdict == "within"
    padded = torch.cat([lse, torch.full((2, 4, 31), math.inf)], -1)
    assert judge(call, [out, padded, *rest], {}).verdict == "within"
    assert judge(call, [out * 1.001, lse, *rest], {}).verdict == "out"
    assert judge(call, [out, lse + 0.001, *rest], {}).verdict == "out"


def test_gradients_of_other_backends_with_a_bias_and_shared_keys() -> None:
    query, key, value = draw(2, 4, 33, 16), draw(2, 2, 33, 16), draw(2, 2, 33, 16)
    bias, grad = draw(33, 33), draw(2, 4, 33, 16)
    leaves = [t.double().requires_grad_() for t in (query, key, value, bias)]
    q, k, v, b = leaves
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) / 4 + b
    out = torch.softmax(scores, -1) @ v.repeat_interleave(2, 1)
    right = [g.float() for g in torch.autograd.grad(out, leaves, grad.double())]
    call = call_of(
        "aten::_scaled_dot_product_efficient_attention_backward", "default",
        {"grad_out_": grad, "query": query, "key": key, "value": value, "attn_bias": bias,
         "out": out.detach().float(), "logsumexp": torch.logsumexp(scores, -1).detach().float(),
         "philox_seed": torch.zeros(1), "philox_offset": torch.zeros(1), "dropout_p": 0.0,
         "grad_input_mask": [True, True, True, True]},
    )  # fmt: skip
    assert judge(call, right, {}).verdict == "within"
    for index in range(4):
        wrong = list(right)
        wrong[index] = right[index] * 1.01
        assert judge(call, wrong, {}).output == str(index)


def test_attention_with_dropout_is_not_checked() -> None:
    call = fused("flash_attention", draw(1, 1, 4, 4), draw(1, 1, 4, 4), draw(1, 1, 4, 4),
                 dropout_p=0.1)  # fmt: skip
    found = judge(call, [draw(1, 1, 4, 4), draw(1, 1, 4)], {})
    assert found.verdict == "unchecked"
    assert "dropout" in str(found.reason)


# --- other formulas -------------------------------------------------------------------------------


def test_batch_norm_of_cudnn() -> None:
    x, weight, bias = draw(5, 7, 6, 6), draw(7), draw(7)
    mean, variance = torch.zeros(7), torch.ones(7)
    names = {"training": True, "exponential_average_factor": 0.1, "epsilon": 1e-5}
    call = call_of(
        "aten::cudnn_batch_norm", "default",
        {"input": x, "weight": weight, "bias": bias, "running_mean": mean,
         "running_var": variance, **names},
    )  # fmt: skip
    outputs = ATEN.native_batch_norm.default(x, weight, bias, None, None, True, 0.1, 1e-5)
    reserve = torch.zeros(3, dtype=torch.uint8)
    assert judge(call, [*outputs, reserve], {}).verdict == "within"
    wrong = ATEN.native_batch_norm.default(x, weight, bias, None, None, True, 0.1, 1e-3)
    assert judge(call, [*wrong, reserve], {}).verdict == "out"
    grad = draw(5, 7, 6, 6)
    backward = call_of(
        "aten::cudnn_batch_norm_backward", "default",
        {"input": x, "grad_output": grad, "weight": weight, "running_mean": mean,
         "running_var": variance, "save_mean": outputs[1], "save_var": outputs[2],
         "epsilon": 1e-5, "reserveSpace": reserve},
    )  # fmt: skip
    right = ATEN.native_batch_norm_backward.default(
        grad, x, weight, None, None, *outputs[1:], True, 1e-5, [True, True, True]
    )
    assert judge(backward, right, {}).verdict == "within"
    assert judge(backward, [right[0] * 1.001, *right[1:]], {}).verdict == "out"


def test_scaled_products_of_float8() -> None:
    a = draw(16, 32).to(torch.float8_e4m3fn)
    b = draw(32, 48).to(torch.float8_e4m3fn)
    scale_a, scale_b, bias = torch.tensor(0.5), torch.tensor(2.0), draw(48, dtype=torch.bfloat16)
    out = (a.float() * 0.5) @ (b.float() * 2.0) + bias.float()
    arguments = {
        "self": a, "mat2": b, "scale_a": scale_a, "scale_b": scale_b, "bias": bias,
        "out_dtype": torch.bfloat16,
    }  # fmt: skip
    call = call_of("aten::_scaled_mm", "default", arguments)
    assert judge(call, [out.bfloat16()], {}).verdict == "within"
    assert judge(call, [(out * 1.01).bfloat16()], {}).verdict == "out"


def test_an_lstm_cell_of_cuda() -> None:
    gates, hidden, state = draw(5, 24), draw(5, 24), draw(5, 6)
    entry, forget, cell, leave = (gates + hidden).chunk(4, 1)
    after = forget.sigmoid() * state + entry.sigmoid() * cell.tanh()
    workspace = torch.cat([entry.sigmoid(), forget.sigmoid(), cell.tanh(), leave.sigmoid()], 1)
    call = call_of(
        "aten::_thnn_fused_lstm_cell", "default",
        {"input_gates": gates, "hidden_gates": hidden, "cx": state},
    )  # fmt: skip
    right = [leave.sigmoid() * after.tanh(), after, workspace]
    assert judge(call, right, {}).verdict == "within"
    assert judge(call, [right[0], after * 1.001, workspace], {}).output == "1"


def test_collectives_are_left_to_the_comparison_across_ranks() -> None:
    call = call_of("c10d::allreduce_", "default", {"tensors": [draw(3)]}, ["tensors"])
    found = judge(call, [], {"tensors": [draw(3)]})
    assert (found.verdict, found.kind) == ("unchecked", "collective")
    assert "across ranks" in str(found.reason)


def test_the_same_operator_of_torch() -> None:
    x = draw(4, 5)
    call = bound(ATEN.sin.default, (x,), {})
    assert judge(call, [x.sin()], {}).verdict == "within"
    assert judge(call, [x.sin() * 1.001], {}).verdict == "out"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_lstm_layer_of_onednn(dtype, reverse) -> None:
    x, hidden, cell = draw(7, 5, 9, dtype=dtype), draw(1, 5, 6, dtype=dtype), draw(1, 5, 6)
    cell = cell.to(dtype)
    weights = [draw(*shape, dtype=dtype) for shape in ((24, 9), (24, 6), (24,), (24,))]
    options = (reverse, [], 2, 6, 1, True, False, False, True)
    args = (x, *weights, hidden, cell, *options)
    op = ATEN.mkldnn_rnn_layer.default
    outputs = tensors(op(*args))
    assert judge_call(op, args, {}, outputs).verdict == "within"
    for index in range(3):
        wrong = list(outputs)
        wrong[index] = outputs[index] * 1.05
        assert judge_call(op, args, {}, wrong).verdict == "out", index
    other = (*args[:9], 3, *args[10:])  # a GRU
    assert judge_call(op, other, {}, outputs).verdict == "unchecked"


def test_gradients_of_an_lstm_layer_of_onednn() -> None:
    lstm, seen = torch.nn.LSTM(9, 6, bidirectional=True), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is ATEN.mkldnn_rnn_layer_backward.default:
                seen.append((args, tensors(out), judge_call(func, args, {}, tensors(out))))
            return out

    with Watch():
        lstm(draw(7, 5, 9).requires_grad_())[0].square().sum().backward()
    assert [found.verdict for *_, found in seen] == ["within"] * 2, "judged while it ran"
    args, right, _ = seen[0]
    for index in range(7):
        wrong = list(right)
        wrong[index] = right[index] * 1.001
        found = judge_call(ATEN.mkldnn_rnn_layer_backward.default, args, {}, wrong)
        assert (found.verdict, found.output) == ("out", str(index))
