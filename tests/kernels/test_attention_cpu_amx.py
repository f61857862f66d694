"""The compiled attention against float64, and what it promises beyond being right."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.testing import assert_backward_stable, assert_within_budget
from accel_kernels.masks import as_mask, causal, documents, key_lengths, prefix, window
from accel_kernels.segmented_attention import cpu_amx
from accel_kernels.segmented_attention.call import Call, Dropout, alibi
from accel_kernels.segmented_attention.cpu_amx import layout, library
from accel_kernels.segmented_attention.formula import whole_attention

ABSENT = cpu_amx.why_absent(torch.float32)
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=f"cpu_amx: {ABSENT}")

# (batch, heads, key heads, queries, keys, head size, value head size), mask, scale
CASES = [
    ((2, 2, 2, 64, 64, 64, 64), None, None),
    ((1, 1, 1, 1, 1, 1, 1), None, None),
    ((2, 2, 2, 63, 63, 64, 64), causal(), None),
    ((1, 4, 2, 100, 63, 80, 33), None, None),
    ((1, 4, 1, 63, 100, 33, 80), causal(), None),
    ((2, 2, 2, 100, 63, 16, 16), causal(), None),
    ((1, 3, 3, 1, 1023, 64, 64), causal(), None),
    ((1, 1, 1, 1023, 1023, 64, 64), causal(), None),
    ((1, 1, 1, 300, 1023, 128, 200), causal("top_left"), None),
    ((1, 1, 1, 500, 700, 40, 40), window(50, 20, sinks=3), None),
    ((2, 1, 1, 500, 500, 16, 16), documents([0, 100, 101, 300, 300, 450], within=causal()), None),
    ((3, 2, 2, 100, 100, 24, 24), key_lengths([0, 1, 77]) & causal(), None),
    ((1, 2, 2, 400, 400, 16, 16), causal() | prefix(130), None),
    ((1, 2, 2, 100, 100, 32, 32), causal(), 0.0),
    ((1, 2, 2, 100, 100, 32, 32), None, -0.3),
]


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def draw(request):
    """Makes query, key and value of given sizes, in either dtype."""
    if (reason := cpu_amx.why_absent(request.param)) is not None:
        pytest.skip(f"cpu_amx: {reason}")

    def inputs(sizes: tuple, size: float = 1.0) -> list[Tensor]:
        batch, heads, key_heads, queries, keys, width, value_width = sizes
        shapes = [(heads, queries, width), (key_heads, keys, width), (key_heads, keys, value_width)]
        return [(torch.randn(batch, *shape) * size).to(request.param) for shape in shapes]

    return inputs


def arguments(call: Call) -> dict:
    return {
        "mask": call.mask,
        "scale": call.scale,
        "softcap": call.softcap,
        "bias": call.bias,
        "dropout": call.dropout,
        "return_lse": True,
    }


def check(inputs: list[Tensor], call: Call) -> None:
    assert_backward_stable(
        lambda q, k, v: cpu_amx.segmented_attention(q, k, v, **arguments(call)),
        *inputs,
        reference=lambda q, k, v: whole_attention(q, k, v, call),
    )


@pytest.mark.parametrize(("sizes", "mask", "scale"), CASES, ids=str)
def test_output_lse_and_gradients_are_backward_stable(draw, sizes, mask, scale) -> None:
    scale = sizes[5] ** -0.5 if scale is None else scale
    check(draw(sizes), Call(mask, scale, return_lse=True))


@pytest.mark.parametrize(
    "shape", [(1, 1, 100, 163), (2, 1, 100, 1), (1, 2, 1, 163), (2, 2, 100, 163)], ids=str
)
def test_dense_masks(draw, shape) -> None:
    allowed = torch.rand(shape) > 0.4
    allowed[..., :1, :70] = False
    inputs = draw((2, 2, 1, 100, 163, 32, 32))
    other = allowed.new_empty(*shape[:2], shape[3], shape[2]).mT.copy_(allowed)
    for mask in (as_mask(allowed), as_mask(other) & causal(), as_mask(allowed) & window(20, 3)):
        check(inputs, Call(mask, 0.2, return_lse=True))


@pytest.mark.parametrize("softcap", [None, 1.5, 30.0])
@pytest.mark.parametrize("slopes", [None, [0.5, 0.01], [[0.1, 1.0], [0.0, -0.2]]], ids=str)
def test_softcap_and_alibi(draw, softcap, slopes) -> None:
    bias = None if slopes is None else alibi(torch.tensor(slopes))
    inputs = draw((2, 2, 1, 100, 163, 32, 32))
    for mask in (None, window(40, 60)):
        check(inputs, Call(mask, 0.4, softcap=softcap, bias=bias, return_lse=True))
    check(inputs, Call(None, 0.4, softcap=softcap, bias=bias and bias._replace(shift=7)))


@pytest.mark.parametrize("slope", [-0.3, -3.0])
@pytest.mark.parametrize("rows", [96, 100, 5])
def test_biases_that_grow_with_distance(draw, slope, rows) -> None:
    """Rows that fill up a strip see nothing, so that their scores cannot overflow."""
    bias = alibi(torch.tensor([slope]))
    check(draw((1, 1, 1, rows, 1024, 32, 32), 0.5), Call(None, 0.2, bias=bias, return_lse=True))


@pytest.mark.parametrize("softcap", [300.0, 1e4, 1e6, 1e12])
def test_a_cap_far_above_the_scores_changes_nothing(draw, softcap) -> None:
    """Where the cap's tanh is small, it must be as exact as where it is not."""
    check(draw((1, 2, 1, 100, 163, 32, 32)), Call(None, 0.3, softcap=softcap, return_lse=True))


@pytest.mark.parametrize("p", [0.1, 0.9])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("mask", [None, window(70, 20)], ids=str)
def test_dropout_is_that_of_philox(draw, p, softcap, mask) -> None:
    inputs = draw((2, 2, 1, 100, 163, 32, 32))
    part = ((5, 1003, 1 << 35), (1, 3, 901, (1 << 34) - 30))  # a carry within a panel
    for dropout in (Dropout(p, -3), Dropout(p, torch.tensor(1 << 40), *part)):
        check(inputs, Call(mask, 0.2, softcap=softcap, dropout=dropout, return_lse=True))


@pytest.mark.parametrize("size", [1e-18, 1e-3, 8.0, 30.0])
def test_small_and_large_inputs(draw, size) -> None:
    inputs, call = draw((1, 2, 2, 100, 300, 32, 32), size), Call(causal(), 0.2, return_lse=True)
    if inputs[0].dtype == torch.bfloat16 or size <= 1.0:
        check(inputs, call)
        return
    # With scores of hundreds a log-sum-exp in float32 leaves no kernel stable: torch's is as far.
    call, grad = call._replace(mask=None), torch.randn(1, 2, 100, 32)

    def torchs(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor]:
        return (scaled_dot_product_attention(query, key, value, scale=call.scale),)

    def kernel(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        return cpu_amx.segmented_attention(query, key, value, **arguments(call))

    exact = gradients(whole_attention, [t.double() for t in inputs], call, grad.double())
    by_torch = gradients(torchs, inputs, call, grad)
    found = gradients(kernel, inputs, call, grad)
    for ours, theirs, true in zip(found, by_torch, exact, strict=True):
        assert_within_budget(ours, theirs, true)


def gradients(function, inputs: list[Tensor], call: Call, grad: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves, call)[0]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def test_a_maximum_that_keeps_rising(draw) -> None:
    query, key, value = draw((1, 1, 1, 70, 700, 32, 32))
    key = (query[:, :, :1] * torch.linspace(-4, 4, 700).view(-1, 1)).to(query.dtype)
    query = query[:, :, :1].expand(-1, -1, 70, -1)
    check([query, key, value], Call(None, 1.0, return_lse=True))
    check([query, key.flip(2), value], Call(None, 1.0, return_lse=True))


def results(inputs: list[Tensor], call: Call, grads: tuple[Tensor, Tensor]) -> list[Tensor]:
    out, lse = cpu_amx.forward(*inputs, call)
    found = cpu_amx.backward(*grads, *inputs, out, lse, call)
    return [out, lse, *found[:3]]


def cotangents(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    query, _, value = inputs
    lse = torch.randn(query.shape[:3])
    return torch.randn(*query.shape[:3], value.shape[3]).to(query.dtype), lse


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("mask", [None, causal(), window(300, 0, sinks=2)], ids=str)
def test_same_bits_for_any_threads_and_batch(draw, threads, mask, monkeypatch) -> None:
    monkeypatch.setattr(layout, "_PER_THREAD", 1)
    inputs = draw((2, 4, 2, 700, 900, 32, 48))
    call, grads = Call(mask, 0.2, return_lse=True), cotangents(inputs)
    threads(1)
    alone = results(inputs, call, grads)
    for count in (2, 3, 8):
        threads(count)
        for _ in range(3):
            assert same(results(inputs, call, grads), alone), count
    for b, h in itertools.product(range(2), range(2)):
        own, pair = slice(h, h + 1), slice(2 * h, 2 * h + 2)
        one = [inputs[0][b : b + 1, pair], *(t[b : b + 1, own] for t in inputs[1:])]
        part = results(one, call, tuple(g[b : b + 1, pair] for g in grads))
        by_head = [pair, pair, pair, own, own]
        assert same(part, [t[b : b + 1, s] for t, s in zip(alone, by_head, strict=True)])


def test_any_strides(draw) -> None:
    inputs = draw((2, 4, 2, 130, 200, 33, 20))
    call, grads = Call(causal(), 0.2, return_lse=True), cotangents(inputs)
    expected = results(inputs, call, grads)

    def by_rows(t: Tensor) -> Tensor:  # [B, T, H, D] underneath, among NaN
        wide = torch.full((t.shape[0], t.shape[2], t.shape[1] + 1, t.shape[3] + 3), torch.nan)
        view = wide.to(t.dtype)[:, :, 1:, 2:-1].transpose(1, 2)
        return view.copy_(t)

    def by_columns(t: Tensor) -> Tensor:
        return t.mT.contiguous().mT

    for way in (by_rows, by_columns):
        changed = (way(grads[0]), grads[1].mT.contiguous().mT)
        assert same(results([way(t) for t in inputs], call, changed), expected)
    shared = [t[:, :1].expand(-1, 2, -1, -1) for t in inputs]
    grads = tuple(g[:, :2] for g in grads)
    copies = [t.contiguous() for t in shared]
    assert same(results(shared, call, grads), results(copies, call, grads))


def test_negative_views(draw) -> None:
    inputs = draw((1, 1, 1, 20, 30, 16, 16))
    call, grads = Call(causal(), 0.2, return_lse=True), cotangents(inputs)
    negative = [torch._neg_view(tensor) for tensor in inputs]
    found = results(negative, call, (torch._neg_view(grads[0]), grads[1]))
    assert same(found, results([-tensor for tensor in inputs], call, (-grads[0], grads[1])))


def test_the_output_is_no_view(draw) -> None:
    """Also where heads are packed as rows: nobody may change a view of autograd's in place."""
    out, lse = cpu_amx.forward(*draw((1, 8, 1, 1, 300, 16, 16)), Call(None, 0.2))
    assert not out._is_view()
    assert not lse._is_view()


def test_a_key_whose_scores_are_all_minus_infinity(draw) -> None:
    """It has no weight; of rows that only fill up a strip neither, where 0 * inf is NaN."""
    query, key, value = draw((1, 1, 1, 7, 130, 16, 16))
    query = query.abs() + 0.1
    key[:, :, 3] = -torch.inf
    inputs = [query, key, value]
    found = results(inputs, Call(None, 0.2), (cotangents(inputs)[0], None))
    assert all(found[n].isfinite().all() for n in (0, 1, 3, 4))
    assert not found[4][:, :, 3].any()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", range(4), ids=("query", "key", "value", "grad out"))
def test_what_is_not_seen_does_not_reach(draw, which, wrong) -> None:
    inputs = draw((1, 1, 1, 150, 150, 32, 32))
    call, grads = Call(causal(), 0.2, return_lse=True), cotangents(inputs)
    at = 70
    spoilt = [*(t.clone() for t in inputs), grads[0].clone()]
    expected = results(inputs, call, grads)
    spoilt[which][:, :, at] = wrong
    found = results(spoilt[:3], call, (spoilt[3], grads[1]))
    out, lse, grad_query, grad_key, grad_value = found
    if which in (1, 2):  # a key that only later queries see
        assert same([t[:, :, :at] for t in found[:3]], [t[:, :, :at] for t in expected[:3]])
        assert not out[:, :, at:].isfinite().any()
    else:  # a query that sees only keys before it
        after = slice(at + 1, None)
        assert same([t[:, :, after] for t in found], [t[:, :, after] for t in expected])
        assert not grad_query[:, :, at].isfinite().any()
        assert not grad_key[:, :, : at + 1].isfinite().any()
    assert lse[:, :, :at].isfinite().all()
    assert grad_value.shape == grad_key.shape


@pytest.mark.parametrize("sizes", [(0, 2, 2, 5, 5, 8, 8), (1, 2, 2, 0, 5, 8, 8),
                                   (1, 2, 2, 5, 0, 8, 8), (1, 0, 0, 5, 5, 8, 8),
                                   (1, 2, 2, 5, 5, 8, 0)], ids=str)  # fmt: skip
def test_empty_tensors(draw, sizes) -> None:
    inputs = draw(sizes)
    out, lse, *found = results(inputs, Call(causal(), 0.2), cotangents(inputs))
    assert out.shape == (*inputs[0].shape[:3], sizes[6])
    assert [t.shape for t in found] == [t.shape for t in inputs]
    assert all(t.isfinite().all() for t in found)
    if sizes[4] == 0:
        assert not out.any()
        assert (lse == -torch.inf).all()


def exact_key_gradients(inputs: list[Tensor], grad: Tensor, scale: float) -> list[Tensor]:
    """In float64, a block of queries at a time."""
    query, key, value, grad = (t.double() for t in (*inputs, grad))
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    for rows in range(0, query.shape[2], 512):
        q, g = query[:, :, rows : rows + 512], grad[:, :, rows : rows + 512]
        p = torch.softmax(q @ key.mT * scale, -1)
        change = p * (g @ value.mT)
        change = change - p * change.sum(-1, keepdim=True)
        grad_key += change.mT @ q * scale
        grad_value += p.mT @ g
    return [grad_key, grad_value]


def test_the_error_of_key_gradients_does_not_grow_with_length(draw) -> None:
    errors = []
    for length in (512, 8192):
        inputs = draw((1, 1, 1, length, length, 16, 16))
        grad, call = cotangents(inputs)[0], Call(None, 0.25)
        out, lse = cpu_amx.forward(*inputs, call)
        found = cpu_amx.backward(grad, None, *inputs, out, lse, call)
        truth = exact_key_gradients(inputs, grad, 0.25)
        errors.append([float((a - t).norm() / t.norm())
                       for a, t in zip(found[1:3], truth, strict=True)])  # fmt: skip
    short, long = errors
    # What is left in float32 is the rounding of the sum of 85 tiles' sums.
    most = 1.2 if inputs[0].dtype == torch.bfloat16 else 2.0
    assert all(b <= most * a for a, b in zip(short, long, strict=True)), errors


def test_lse_is_as_exact_as_in_float32(draw) -> None:
    query, key, value = draw((1, 4, 4, 200, 3000, 64, 64))
    _, lse = cpu_amx.forward(query, key, value, Call(None, 0.125))
    by_torch = torch.logsumexp(query.float() @ key.float().mT * 0.125, -1)
    exact = torch.logsumexp(query.double() @ key.double().mT * 0.125, -1)
    assert_within_budget(lse, by_torch, exact)


def fresh_reason(dtype: torch.dtype = torch.bfloat16) -> str | None:
    library.library.cache_clear()
    return cpu_amx.why_absent.__wrapped__(dtype)


FEW = [
    ((1, 8, 1, 1, 9000, 64, 64), None),
    ((1, 8, 1, 1, 9000, 64, 64), causal()),
    ((2, 6, 2, 3, 4500, 33, 40), None),
    ((1, 1, 1, 1, 4096, 128, 128), None),
    ((1, 4, 4, 20, 4160, 16, 16), causal()),
    ((1, 4, 1, 2, 5000, 32, 32), window(4300, 0)),
]


@pytest.mark.parametrize(("sizes", "mask"), FEW, ids=str)
def test_few_queries_against_many_keys(draw, sizes, mask) -> None:
    check(draw(sizes), Call(mask, 0.2, return_lse=True))


@pytest.mark.parametrize(("sizes", "mask"), FEW, ids=str)
def test_bits_of_few_queries_do_not_depend_on_threads_and_batch(
    draw, threads, sizes, mask, monkeypatch
) -> None:
    monkeypatch.setattr(layout, "_PER_THREAD", 1)
    inputs, call = draw((3, *sizes[1:])), Call(mask, 0.2)
    threads(1)
    together = cpu_amx.forward(*inputs, call)
    for count in (2, 8):
        threads(count)
        assert same(list(cpu_amx.forward(*inputs, call)), list(together)), count
    one = [tensor[1:2] for tensor in inputs]
    assert same(list(cpu_amx.forward(*one, call)), [part[1:2] for part in together])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [1, 2], ids=("key", "value"))
def test_what_is_not_finite_among_many_keys(draw, which, wrong) -> None:
    """In one split of the keys; seen by the last of two queries, or by none."""
    inputs = draw((1, 1, 1, 2, 5000, 16, 16))
    inputs[which][:, :, -1] = wrong
    mask = key_lengths([4999])
    clean = [inputs[0], *(tensor[:, :, :-1] for tensor in inputs[1:])]
    expected = cpu_amx.forward(*clean, Call(None, 0.2))
    out, lse = cpu_amx.forward(*inputs, Call(mask, 0.2))
    torch.testing.assert_close(out, expected[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5)
    out, _ = cpu_amx.forward(*inputs, Call(causal(), 0.2))
    assert out[:, :, 0].isfinite().all()
    if which == 2 or wrong is torch.nan:  # an infinite key may give a score of -inf
        assert not out[:, :, 1].isfinite().all()


def test_rows_without_a_finite_score_among_many_keys(draw) -> None:
    """All scores -inf: as if nothing were seen; of half of the splits: as if these were not."""
    query, key, value = draw((1, 1, 1, 1, 8192, 16, 16))
    query[:] = 1.0
    key[..., 1:] = 0.0
    key[:, :, :4096, 0] = -torch.inf
    out, lse = cpu_amx.forward(query, key, value, Call(None, 0.2))
    half = cpu_amx.forward(query, key[:, :, 4096:], value[:, :, 4096:], Call(None, 0.2))
    torch.testing.assert_close((out, lse), half, rtol=1e-2, atol=1e-2)
    key[..., 0] = -torch.inf
    out, lse = cpu_amx.forward(query, key, value, Call(None, 0.2))
    assert not out.any()
    assert (lse == -torch.inf).all()


def test_why_not_without_the_instructions(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert "AVX512-BF16" in fresh_reason()
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    assert "AVX-512" in fresh_reason(torch.float32)


def test_float32_needs_no_instructions_for_bfloat16(monkeypatch) -> None:
    """The compiler refuses them without its flag."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert fresh_reason(torch.float32) is None
    assert "-mavx512bf16" not in library._FLAGS[torch.float32]


def test_code_that_names_it_is_refused_without_the_instructions(draw, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    library.library.cache_clear()
    with pytest.raises(RuntimeError, match=r"needs a CPU with AVX-512.*backend='cpu'"):
        cpu_amx.forward(*draw((1, 1, 1, 5, 5, 8, 8)), Call(None, 0.2))


def test_why_not_without_a_compiler(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "CC names the C compiler 'no-such-compiler'" in fresh_reason()
    monkeypatch.undo()
    assert fresh_reason() is None


def test_structures_are_alike() -> None:
    """A field that C knows by another place would be read as another."""
    text = (Path(cpu_amx.__file__).parent / "native" / "call.h").read_text()
    for name in ("rows", "dense", "dropout", "call"):
        body = re.sub(r"//.*", "", re.search(rf"struct {name} \{{(.*?)\}};", text, re.S)[1])
        fields = (layout.Memory if name == "call" else getattr(layout, f"_{name.title()}"))._fields_
        assert re.findall(r"(\w+)\s*[,;]", body) == [field for field, _ in fields]
