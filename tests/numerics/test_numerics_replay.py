"""One operator judged by its float64 replay: right kernels, wrong ones, and what has none."""

import math
import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from accel.numerics.replaying import calls, limits, yardstick
from accel.numerics.replaying.calls import bound, call_of, flattened, mapped
from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.judging import judge, judge_call
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Special

ATEN = torch.ops.aten
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def judged(op, *args, result=None, **kwargs):
    """Judge a call; what it returned is `result`, or what it does return."""
    given = bound(op, args, kwargs)

    def copied(value):
        return value.clone() if isinstance(value, Tensor) else value

    before = {name: mapped(value, copied) for name, value in given.arguments.items()}
    returned = op(*args, **kwargs) if result is None else result
    written = {name: tuple(calls.tensors_in(given.arguments[name])) for name in given.written}
    known = {id(t) for tensors in written.values() for t in tensors}
    outputs = [
        item if isinstance(item, Tensor) else None
        for item in flattened(returned)
        if id(item) not in known
    ]
    return judge_call(op, (), before, outputs, written)


def draw(*shape, dtype=F32, scale=1.0):
    return (scale * torch.randn(shape, dtype=F64)).to(dtype)


# --- right kernels ------------------------------------------------------------------------------


def right_calls(dtype):
    x, y, w = draw(65, 63, dtype=dtype), draw(65, 63, dtype=dtype), draw(63, 33, dtype=dtype)
    row, column = draw(63, dtype=dtype), draw(33, dtype=dtype)
    mean, rstd = ATEN.native_layer_norm.default(x, [63], row, row, 1e-5)[1:]
    image, kernel = draw(3, 4, 9, 9, dtype=dtype), draw(5, 4, 3, 3, dtype=dtype)
    return {
        "addmm": (ATEN.addmm.default, column, x, w),
        "bmm": (ATEN.bmm.default, x[None], w[None]),
        "softmax": (ATEN._softmax.default, 8 * x, -1, False),
        "layer_norm": (ATEN.native_layer_norm.default, x, [63], row, row, 1e-5),
        "layer_norm backward": (
            ATEN.native_layer_norm_backward.default,
            *(y, x, [63], mean, rstd, row, row, [True, False, False]),
        ),
        "gelu": (ATEN.gelu.default, x),
        "gelu backward": (ATEN.gelu_backward.default, y, x),
        "mean": (ATEN.mean.dim, x, [0]),
        "sum": (ATEN.sum.default, x),
        "div": (ATEN.div.Tensor, x, math.sqrt(32)),
        "pow": (ATEN.pow.Tensor_Scalar, x, 2.0),
        "addcmul": (ATEN.addcmul.default, x, x, y),
        "convolution": (
            ATEN.convolution.default,
            *(image, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        ),
        "batch_norm": (
            ATEN.native_batch_norm.default,
            *(image.float(), None, None, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5),
        ),
        "exp of whole numbers": (ATEN.mul.Tensor, torch.arange(9), 0.1),
    }


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", list(right_calls(F32)))
def test_a_right_kernel_is_within_the_limits(name, dtype) -> None:
    found = judged(*right_calls(dtype)[name])
    assert found.verdict == "within", found
    assert 0.0 <= found.R < 8.0
    assert found.milliseconds > 0.0


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        (lambda x: (ATEN.clone.default, x), "exact"),
        (lambda x: (ATEN.cat.default, [x, x]), "exact"),
        (lambda x: (ATEN._to_copy.default, x, BF16), "exact"),
        (lambda x: (ATEN.masked_fill.Scalar, x, x > 0, -math.inf), "exact"),
        (lambda x: (ATEN.relu.default, x), "exact"),
        (lambda x: (ATEN.embedding.default, x, torch.randint(8, (5,))), "exact"),
        (lambda x: (ATEN.gt.Scalar, x, 0.1), "exact"),
        (lambda x: (ATEN.transpose.int, x, 0, 1), "exact"),
        (lambda x: (ATEN.zeros_like.default, x), "exact"),
        (lambda x: (ATEN.rand_like.default, x), "unchecked"),
        (lambda x: (ATEN.bernoulli.default, x.sigmoid()), "unchecked"),
        (lambda x: (ATEN.empty_like.default, x), "unchecked"),
        (lambda x: (ATEN._local_scalar_dense.default, x[0, 0]), "unchecked"),
    ],
)
def test_what_is_exact_and_what_has_no_reference(call, verdict) -> None:
    op, *args = call(draw(8, 9))
    named = {"dtype": args.pop()} if op is ATEN._to_copy.default else {}
    found = judged(op, *args, **named)
    assert found.verdict == verdict, found
    assert (found.reason is not None) == (verdict == "unchecked" or op is ATEN.transpose.int)


def test_written_arguments() -> None:
    x, y = draw(40, 50), draw(40, 50)
    assert judged(ATEN.add_.Tensor, x, y, alpha=0.3).verdict == "within"
    assert judged(ATEN.copy_.default, x, y).verdict == "exact"
    assert judged(ATEN.maximum.out, x, y, out=torch.empty(40, 50)).verdict == "exact"
    assert judged(ATEN.mm.out, x, y.t().contiguous(), out=torch.empty(40, 40)).verdict == "within"
    lists = [[draw(5, 5) for _ in range(3)] for _ in range(3)]
    assert judged(ATEN._foreach_addcmul_.Scalar, *lists, 0.1).verdict == "within"
    wrong = [draw(5, 5), draw(5, 5)]
    before = bound(ATEN._foreach_mul_.Scalar, (wrong, 0.1), {})
    after = [wrong[0] * 0.1, wrong[1] * 0.11]
    found = judge(before, [], {"self": after})
    assert (found.verdict, found.output) == ("out", "self.1")


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("wrong", [None, "no weight decay", "eps in the root", "stale step"])
def test_a_fused_optimizer(dtype, wrong) -> None:
    p, g, m = draw(999, dtype=dtype, scale=0.02), draw(999, dtype=dtype), draw(999, dtype=dtype)
    v, step = draw(999, dtype=dtype).square(), torch.tensor(5.0)
    names = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1, "eps": 1e-8}
    before = dict(
        self=[p], grads=[g], exp_avgs=[m], exp_avg_sqs=[v], max_exp_avg_sqs=[], state_steps=[step],
        **names, amsgrad=False, maximize=False,
    )  # fmt: skip
    after = {
        name: [t.clone() for t in value] if isinstance(value, list) else value
        for name, value in before.items()
    }
    if wrong == "no weight decay":
        after["weight_decay"] = 0.0
    elif wrong == "eps in the root":
        after["eps"] = 1e-4
    elif wrong == "stale step":
        after["state_steps"] = [torch.tensor(4.0)]
    op = ATEN._fused_adamw_.default
    op(**after)
    call = bound(op, (), before)
    found = judge(call, [], {name: after[name] for name in call.written})
    assert found.verdict == ("within" if wrong is None else "out"), found
    assert wrong is None or found.output == "self"


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_statistics_that_no_schema_declares(dtype) -> None:
    x, mean, variance = draw(50, 7, dtype=dtype, scale=3.0), torch.zeros(7), torch.ones(7)
    before = (x, None, None, mean.clone(), variance.clone(), True, 0.1, 1e-5)
    op = ATEN.native_batch_norm.default
    outputs = op(x, None, None, mean, variance, True, 0.1, 1e-5)
    after = {"running_mean": [mean], "running_var": [variance]}
    assert judge_call(op, before, {}, outputs, after).verdict in ("within", "known")
    wrong = {**after, "running_var": [variance * 1.001]}
    found = judge_call(op, before, {}, outputs, wrong)
    assert (found.verdict, found.output) == ("out", "running_var")


def test_results_that_are_not_there_are_passed_over() -> None:
    x = draw(50, 7)
    out = ATEN.native_layer_norm.default(x, [7], None, None, 1e-5)[0]
    call = bound(ATEN.native_layer_norm.default, (x, [7], None, None, 1e-5), {})
    assert judge(call, [out, None, None], {}).verdict == "within"
    assert judge(call, [out * 1.001, None, None], {}).verdict == "out"
    found = judge(call, [None, None, None], {})
    assert found.verdict == "unchecked", found


def test_equal_elements_may_be_chosen_by_another_index() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])
    for op, args in ((ATEN.argmax.default, (1,)), (ATEN.topk.default, (2,))):
        right = list(flattened(op(x, *args)))
        other, wrong = [t.clone() for t in right], [t.clone() for t in right]
        if op is ATEN.argmax.default:
            other[0], wrong[0] = torch.tensor([2, 1]), torch.tensor([0, 1])
        else:
            other[1] = torch.tensor([[2, 1], [1, 0]])
            wrong[1] = torch.tensor([[2, 0], [1, 0]])
        assert judged(op, x, *args, result=other).verdict == "exact"
        assert judged(op, x, *args, result=wrong).verdict == "out"
    pooled, index = ATEN.max_pool2d_with_indices.default(torch.ones(1, 1, 4, 4), [2, 2])
    args = (torch.ones(1, 1, 4, 4), [2, 2])
    assert judged(
        ATEN.max_pool2d_with_indices.default, *args, result=[pooled, index + 1]
    ).verdict == ("exact")
    assert judged(
        ATEN.max_pool2d_with_indices.default, *args, result=[pooled, index - 9]
    ).verdict == ("out")


def test_the_nonfinite() -> None:
    x = draw(8, 9)
    x[2, 3], x[4, 5], x[6, 7] = math.inf, -math.inf, math.nan
    assert judged(ATEN.mul.Tensor, x, x).verdict == "within"
    out = x * x
    for wrong in (0.0, -math.inf, math.nan):
        changed = out.clone()
        changed[2, 3] = wrong
        found = judged(ATEN.mul.Tensor, x, x, result=changed)
        assert (found.verdict, found.nonfinite) == ("out", 1), wrong
    big = torch.full((3,), 300.0, dtype=F16)
    assert judged(ATEN.mul.Tensor, big, big).verdict == "within"  # overflows, as it must
    saturated = torch.full((3,), 65504.0, dtype=F16)
    assert judged(ATEN.mul.Tensor, big, big, result=saturated).verdict == "out"
    edge = torch.full((3,), 65519.0)
    assert judged(ATEN._to_copy.default, edge, dtype=F16).verdict == "exact"


def test_complex_and_integer_results() -> None:
    x = torch.randn(5, 64, dtype=torch.complex64)
    assert judged(ATEN._fft_c2c.default, x, [1], 0, True).verdict == "within"
    wrong = ATEN._fft_c2c.default(x, [1], 0, True) * (1 + 1e-4)
    assert judged(ATEN._fft_c2c.default, x, [1], 0, True, result=wrong).verdict == "out"
    ints = torch.arange(10)
    assert judged(ATEN.sum.default, ints).verdict == "exact"
    found = judged(ATEN.sum.default, ints, result=torch.tensor(46))
    assert found.verdict == "out"
    assert "1 of 1 elements differ" in str(found.reason)


# --- wrong kernels ------------------------------------------------------------------------------


def _tf32(value: Tensor) -> Tensor:
    bits = value.float().view(torch.int32) + (1 << 12)
    return bits.bitwise_and(~((1 << 13) - 1)).view(F32)


def _changed(value: Tensor, factor: float) -> Tensor:
    value = value.clone()
    value.view(-1)[int(value.abs().argsort()[value.numel() // 2 if value.dim() == 1 else 0, 0])
                   if value.dim() > 1 else 3] *= factor  # fmt: skip
    return value


def faults(dtype):
    """Operator, arguments and a wrong result, computed in float32 and rounded once."""
    x, w, b = draw(256, 128, dtype=dtype), draw(128, 64, dtype=dtype), draw(64, dtype=dtype)
    row, g = draw(128, dtype=dtype), draw(256, 128, dtype=dtype, scale=1e-4)
    wide, norm = x.float(), (128,)
    scores = draw(8, 64, 64, dtype=dtype, scale=2.0)
    hidden = torch.ones(64, 64, dtype=torch.bool).triu(1)
    masked = scores.masked_fill(hidden, -math.inf)
    product = wide @ w.float() + b.float()
    one = product.to(dtype).clone()
    one[3, 5] *= 1.03
    scale = 1 / math.sqrt(32)
    layer = ATEN.native_layer_norm.default(wide, norm, row.float(), row.float(), 1e-4)
    halves = g.float().view(16, 16, 128).sum(1).to(BF16 if dtype == F32 else F16).float().sum(0)
    leaking = scores.float().masked_fill(hidden.triu(2), -math.inf)
    leaking[:, hidden & ~hidden.triu(2)] = -14.0
    return {
        "softmax in 16 bits": (
            ATEN._softmax.default, (masked, -1, False),
            torch.softmax(masked.to(F16 if dtype == BF16 else BF16), -1).to(dtype),
        ),
        "mask leak": (
            ATEN._softmax.default, (masked, -1, False), torch.softmax(leaking, -1).to(dtype)
        ),
        "eps": (
            ATEN.native_layer_norm.default, (x, norm, row, row, 1e-5),
            [layer[0].to(dtype), *(t.to(dtype) for t in layer[1:])],
        ),
        "tanh gelu": (ATEN.gelu.default, (x,), F.gelu(wide, approximate="tanh").to(dtype)),
        "tanh gelu backward": (
            ATEN.gelu_backward.default, (g, x),
            ATEN.gelu_backward.default(g.float(), wide, approximate="tanh").to(dtype),
        ),
        "scale": (ATEN.mul.Tensor, (x, scale), (wide * (scale * 1.0001)).to(dtype)),
        "product scaled": (ATEN.addmm.default, (b, x, w), (product * 1.0005).to(dtype)),
        "one element": (ATEN.addmm.default, (b, x, w), one),
        "no bias": (ATEN.addmm.default, (b, x, w), (wide @ w.float()).to(dtype)),
        "sum in 16 bits": (ATEN.sum.dim_IntList, (g, [0]), halves.to(dtype)),
        "lost row": (ATEN.sum.dim_IntList, (g, [0]), g[1:].float().sum(0).to(dtype)),
        "wrong index": (
            ATEN.index_select.default, (x, 0, torch.arange(5)), x[torch.tensor([0, 1, 2, 3, 5])]
        ),
        "one bit of a copy": (
            ATEN.clone.default, (x,),
            torch.nextafter(x, torch.full_like(x, 9.0)).where(torch.arange(128) == 3, x),
        ),
        "lost correction": (
            ATEN._softmax_backward_data.default,
            (g, torch.softmax(x.float(), -1).to(dtype), -1, dtype),
            (torch.softmax(x.float(), -1) * g.float()).to(dtype),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", list(faults(F32)))
def test_a_wrong_kernel_is_out(name, dtype) -> None:
    op, args, wrong = faults(dtype)[name]
    assert judged(op, *args).verdict in ("within", "exact"), "the control"
    found = judged(op, *args, result=wrong)
    assert found.verdict == "out", found
    assert found.reason


@pytest.mark.parametrize("rounding", ["tf32", "bf16"])
def test_coarser_operands_of_a_product(rounding) -> None:
    x, w, b = draw(100, 512), draw(512, 63), draw(63)
    narrow = _tf32 if rounding == "tf32" else lambda t: t.bfloat16().float()
    found = judged(ATEN.addmm.default, b, x, w, result=torch.addmm(b, narrow(x), narrow(w)))
    assert found.verdict == "out"
    assert found.R > 1000


def test_partial_sums_in_16_bits_are_no_fault_of_a_product_but_of_a_sum() -> None:
    x, w = draw(100, 512, dtype=BF16), draw(512, 63, dtype=BF16)
    parts = sum((x[:, i::2].float() @ w[i::2].float()).to(BF16).float() for i in range(2))
    found = judged(ATEN.mm.default, x, w, result=parts.to(BF16))
    assert found.verdict == "within", found
    scaled = judged(ATEN.mm.default, x, w, result=(parts * 1.001).to(BF16))
    assert scaled.verdict == "out", scaled
    sums = sum(x[i::2].float().sum(0).to(BF16).float() for i in range(2))
    assert judged(ATEN.sum.dim_IntList, x, [0], result=sums.to(BF16)).verdict == "out"


def test_known_inaccurate_kernels_are_named_and_bounded() -> None:
    rows = 1000
    x, g, w = draw(rows, 64, dtype=BF16), draw(rows, 64, dtype=BF16), draw(64, dtype=BF16)
    mean, rstd = ATEN.native_layer_norm.default(x, [64], w, w, 1e-5)[1:]
    args = (g, x, [64], mean, rstd, w, w, [True, True, True])
    op = ATEN.native_layer_norm_backward.default
    found = judged(op, *args)
    assert found.verdict == "known"
    assert "known inaccurate" in str(found.reason)
    assert found.output in ("1", "2")
    right = list(op(*args))
    for index, factor in ((0, 1.01), (1, 2.0)):  # another result; beyond the bound
        wrong = list(right)
        wrong[index] = wrong[index] * factor
        assert judged(op, *args, result=wrong).verdict == "out"


def test_scalars_are_rounded_as_the_kernel_rounds_them() -> None:
    x, y = draw(33, 65), draw(33, 65)
    tenth = judged(ATEN.mul.Tensor, x, 0.1)
    assert tenth.verdict == "within"
    assert tenth.R < 0.6  # half a unit: with 0.1 in float64 it would be more
    for alpha in (0.9, 1e-4):
        a, b = x.bfloat16(), y.bfloat16()
        found = judged(ATEN.add.Tensor, a, b, alpha=alpha)
        assert found.verdict == "within", found
        wide = (a.float() + alpha * b.float()).bfloat16()
        assert judged(ATEN.add.Tensor, a, b, alpha=alpha, result=wide).verdict == "within"
        wrong = (a.float() + 2 * alpha * b.float()).bfloat16()
        assert judged(ATEN.add.Tensor, a, b, alpha=alpha, result=wrong).verdict == "out"


def test_the_wrong_shape() -> None:
    found = judged(ATEN.sum.dim_IntList, draw(4, 5), [0], result=torch.zeros(1, 5))
    assert found.verdict == "out"
    assert "shape is [1, 5] and not [5]" in str(found.reason)


# --- calls -------------------------------------------------------------------------------------


def test_specials_become_what_they_name() -> None:
    call = call_of(
        "aten::full", "default",
        {"size": [2], "fill_value": Special("float", "-inf"), "dtype": Special("dtype", "bfloat16"),
         "layout": Special("layout", "strided"), "device": Special("device", "npu:3"),
         "pin_memory": True},
    )  # fmt: skip
    assert call.arguments["fill_value"] == -math.inf
    assert call.arguments["dtype"] == BF16
    found = judge(call, [torch.full((2,), -math.inf, dtype=BF16)], {})
    assert found.verdict == "exact"


@pytest.mark.parametrize(
    ("special", "reason"),
    [
        (Special("dtype", "nosuch"), "dtype 'nosuch' means nothing"),
        (Special("dtype", "os.system"), "means nothing"),
        (Special("dtype", "Tensor"), "means nothing"),
        (Special("opaque", "SomeClass"), "cannot be given again"),
        (Special("float", "many"), "means nothing"),
        (Special("what", "ever"), "cannot be given again"),
    ],
)
def test_specials_that_mean_nothing(special, reason) -> None:
    with pytest.raises(CannotReplayError, match=reason):
        call_of("aten::clone", "default", {"self": torch.ones(1), "memory_format": special})


@pytest.mark.parametrize(
    ("name", "overload", "arguments", "reason"),
    [
        ("aten::nosuch", "default", {}, "has no operator aten::nosuch"),
        ("nosuch::relu", "default", {}, "no reference is registered for nosuch::relu"),
        ("relu", "default", {}, "no reference is registered for relu"),
        ("aten::relu", "nosuch", {}, "has no aten::relu.nosuch"),
        ("aten::relu", "__init__", {}, "has no aten::relu.__init__"),
        ("aten::relu", "default", {}, "replay failed: .*self"),
        ("npu::npu_nosuch", "default", {}, "no reference is registered for npu::npu_nosuch"),
    ],
)
def test_what_this_torch_lacks_is_unchecked(name, overload, arguments, reason) -> None:
    found = judge(call_of(name, overload, arguments), [torch.ones(2)], {}, "the key")
    assert found.operator == "the key"
    assert found.verdict == "unchecked"
    assert re.search(reason, str(found.reason)), found.reason


def test_an_argument_that_this_torch_does_not_know() -> None:
    with pytest.raises(CannotReplayError, match="has no argument 'new'"):
        call_of("aten::relu", "default", {"self": torch.ones(2), "new": 1})


def test_arguments_are_not_changed() -> None:
    x, y = draw(3, dtype=F64), draw(3, dtype=F64)
    before = x.clone()
    judge(bound(ATEN.add_.Tensor, (x, y), {}), [], {"self": [x + y]})
    assert torch.equal(x, before)
    mean, variance = torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64)
    args = (draw(5, 4, dtype=F64), None, None, mean, variance, True, 0.1, 1e-5)
    judge(bound(ATEN.native_batch_norm.default, args, {}), [torch.zeros(5, 4)], {})
    assert torch.equal(mean, torch.zeros(4, dtype=F64))


# --- the yardstick -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_half_a_unit_in_the_last_place(dtype) -> None:
    values = torch.cat([draw(500), torch.tensor([1.0, 1.5, 2.0, 65504.0, 0.1])]).to(dtype)
    up = torch.nextafter(values.abs(), torch.full_like(values, math.inf)).double()
    finite = torch.isfinite(up)
    expected = (up - values.abs().double()) / 2
    found = yardstick.half_ulp(values.double(), dtype)
    assert torch.equal(found[finite], expected[finite])
    limits = torch.finfo(dtype)
    zero = float(yardstick.half_ulp(torch.zeros(1, dtype=F64), dtype))
    assert zero == limits.smallest_normal * (limits.eps / 2 if dtype == F16 else 1.0)


def test_what_rounding_measures() -> None:
    truth = torch.randn(100_000, dtype=F64)
    none = torch.zeros_like(truth)
    rounded = yardstick.measured(truth.bfloat16(), truth, none, 2.0**-24)
    assert 0.55 < rounded.rms < 0.62  # uniform within half a unit: its root mean square over it
    assert 0.99 < rounded.worst < 1.001
    assert rounded.misrounding < 1e-4
    assert rounded.excess < 1.0
    assert limits.why_out(rounded) is None
    noisy = truth * (1 + 2.0**-17 * torch.randn(100_000, dtype=F64))
    found = yardstick.measured(noisy.bfloat16(), truth, none, 2.0**-24)
    assert 0.0005 < found.misrounding < 0.005
    assert limits.why_out(found) is not None
    scaled = yardstick.measured((truth * (1 + 1e-3)).bfloat16(), truth, none, 2.0**-24)
    assert abs(scaled.drift * 2.0**-24 - 1e-3) < 1e-4
    assert limits.drifts(scaled, 2.0**-24)
    assert not limits.drifts(rounded, 2.0**-24)


def test_nothing_to_measure() -> None:
    empty = torch.zeros(0, 3)
    assert judged(ATEN.mul.Tensor, empty, empty).verdict == "within"
    assert judged(ATEN.mm.default, torch.zeros(3, 4), torch.zeros(4, 3)).verdict == "within"
    wrong = torch.zeros(3, 3)
    wrong[0, 0] = 1e-20
    assert (
        judged(ATEN.mm.default, torch.zeros(3, 4), torch.zeros(4, 3), result=wrong).verdict == "out"
    )


# --- what is found, as plain values -------------------------------------------------------------


def test_judged_as_plain_values() -> None:
    found = judged(ATEN.mm.default, draw(9, 9), draw(9, 9))
    assert Judged.from_dict(found.to_dict()) == found
    infinite = Judged("key", "aten::mm", "matmul", "out", R=math.inf)
    assert infinite.to_dict()["R"] is None
    assert Judged.from_dict(infinite.to_dict()) == infinite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "fine"}, "verdict"),
        ({"R": "much"}, "R="),
        ({"R": True}, "R="),
        ({"nonfinite": 1.5}, "nonfinite"),
        ({"operator": None}, "operator"),
        ({"extra": 1}, "no field 'extra'"),
    ],
)
def test_plain_values_that_are_no_judgement(change, message) -> None:
    fields = {**Judged("key", "aten::mm", "matmul", "within").to_dict(), **change}
    with pytest.raises(ValueError, match=message):
        Judged.from_dict(fields)
    with pytest.raises(ValueError, match="operator"):
        Judged.from_dict({})
