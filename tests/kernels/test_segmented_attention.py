"""Every kernel of segmented attention, generated from its specs, against float64."""

import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor

from accel.testing import assert_backward_stable, assert_within_budget
from accel.testing.cases import attention_formula
from accel_kernels.segmented_attention import OPERATION, SPECS
from accel_kernels.segmented_attention import request as make_request
from accel_kernels.spec import REFERENCE

# (query heads, key heads, queries, keys, causal, segment size)
CASES = [
    (2, 2, 64, 64, False, None),
    (2, 2, 64, 64, True, None),
    (2, 2, 63, 63, True, 16),
    (4, 2, 100, 63, False, 32),
    (4, 1, 63, 100, True, 32),
    (2, 2, 100, 63, True, 16),
    (3, 3, 1, 1023, True, 100),
    (6, 3, 37, 37, True, 1),
    (2, 2, 65, 129, False, 1024),
]
NAMES = ("out", "grad query", "grad key", "grad value")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SMALLEST = torch.finfo(torch.float32).tiny


def draw(case: tuple, dtype: torch.dtype, head_size: int = 16) -> list[Tensor]:
    heads, key_heads, queries, keys, _, _ = case
    shapes = [(heads, queries), (key_heads, keys), (key_heads, keys), (heads, queries)]
    return [torch.randn(4, h, t, head_size, dtype=torch.float64).to(dtype) for h, t in shapes]


def able(spec, *tensors: Tensor, **options) -> bool:
    return not spec.why_not(make_request(*tensors, **options))


def gradients(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_output_and_gradients_are_backward_stable(spec, case, dtype, device) -> None:
    *_, causal, segment = case
    there = [tensor.to(device.torch_device) for tensor in draw(case, dtype)[:3]]
    options = {"is_causal": causal, "segment_size": segment}
    if not able(spec, *there, **options):
        # What a spec declines is covered by the test of its reasons.
        assert spec.name != REFERENCE
        return
    kernel = spec.load()

    def out(*tensors: Tensor) -> Tensor:
        result, _ = kernel(*tensors, **options)
        assert result.dtype == dtype
        return result

    def formula(*tensors: Tensor) -> Tensor:
        return attention_formula(*tensors, is_causal=causal)

    assert_backward_stable(out, *there, reference=formula)


def mean_of_segments(query: Tensor, key: Tensor, value: Tensor, segment: int) -> Tensor:
    """The published formula, repaired just enough to run: each segment with its own softmax."""
    parts = [
        attention_formula(
            query, key[:, :, s : s + segment], value[:, :, s : s + segment], is_causal=False
        )
        for s in range(0, key.shape[2], segment)
    ]
    return torch.stack(parts).mean(0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_mean_of_segments_is_not_attention_and_ours_is(spec) -> None:
    query, key, value = (torch.randn(1, 2, 256, 16, dtype=torch.float64) for _ in range(3))
    key[:, :, 70:80] += 3.0 * query.mean(2, keepdim=True) + 2.0  # one segment holds what matters
    truth = attention_formula(query, key, value, is_causal=False)
    segment = {"segment_size": 64} if "segment_size" in spec.features else {}
    control = mean_of_segments(query, key, value, 64)
    relative = (control - truth).norm() / truth.norm()
    assert relative > 0.1

    def formula(*tensors: Tensor) -> Tensor:
        return attention_formula(*tensors, is_causal=False)

    inputs = (query, key, value)
    kernel = spec.load()
    assert_backward_stable(lambda *t: kernel(*t, **segment)[0], *inputs, reference=formula)
    with pytest.raises(AssertionError, match="output 0 is not backward stable: R "):
        assert_backward_stable(
            lambda *t: mean_of_segments(*t, 64), *inputs, reference=formula, gradients=False
        )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_lse_and_its_gradients(name, case) -> None:
    *_, causal, segment = case
    query, key, value, grad = draw(case, torch.float64)
    inputs = [query, key, value]

    def formula(q: Tensor, k: Tensor) -> Tensor:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if causal:
            t, s = scores.shape[-2:]
            scores = scores.masked_fill(~torch.ones(t, s, dtype=torch.bool).tril(s - t), -math.inf)
        return torch.logsumexp(scores, -1)

    kernel = next(spec for spec in SPECS if spec.name == name).load()
    leaves = [t.clone().requires_grad_() for t in inputs]
    out, lse = kernel(*leaves, is_causal=causal, segment_size=segment, return_lse=True)
    expected = [t.clone().requires_grad_() for t in inputs]
    truth_lse, truth_out = formula(*expected[:2]), attention_formula(*expected, is_causal=causal)
    seen = torch.isfinite(truth_lse)
    assert torch.equal(lse == -math.inf, ~seen)
    assert torch.allclose(lse[seen], truth_lse[seen], rtol=0, atol=1e-12)
    weight = torch.randn_like(truth_lse)
    for loss in (
        lambda o, l: (l * weight)[seen].sum(),  # noqa: E741 - through lse alone
        lambda o, l: (l * weight)[seen].sum() + (o * grad).sum(),  # noqa: E741 - through both
    ):
        actual = torch.autograd.grad(loss(out, lse), leaves, retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(
            loss(truth_out, truth_lse), expected, retain_graph=True, allow_unused=True
        )
        for a, w in zip(actual, wanted, strict=True):
            w = torch.zeros_like(a) if w is None else w
            assert torch.allclose(a, w, rtol=0, atol=1e-12)


def test_reference_passes_gradcheck_and_gradgradcheck() -> None:
    inputs = [t.requires_grad_() for t in draw((2, 1, 5, 7, True, 2), torch.float64, 3)[:3]]
    kernel = SPECS[-1].load()

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return kernel(*tensors, is_causal=True, segment_size=2, return_lse=True)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (1, 0, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("causal", [False, True])
def test_empty_tensors(name, shape, dtype, causal) -> None:
    batch, heads, queries, keys = shape
    query, key, value = (
        torch.randn(batch, heads, t, 8).to(dtype).requires_grad_() for t in (queries, keys, keys)
    )
    kernel = next(spec for spec in SPECS if spec.name == name).load()
    out, lse = kernel(query, key, value, is_causal=causal, return_lse=True)
    assert out.shape == query.shape
    assert out.dtype == dtype
    assert lse.shape == query.shape[:3]
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    out.sum().backward()
    for tensor in (query, key, value):
        assert (tensor.grad == 0).all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts_give_the_same_bits(spec, dtype) -> None:
    """Transposed, sliced, expanded and strided inputs and gradients equal contiguous ones."""
    kernel = spec.load()
    base = [torch.randn(2, 40, 3, 16).to(dtype) for _ in range(3)]
    grad = torch.randn(2, 40, 3, 16).to(dtype).transpose(1, 2)
    views = [t.transpose(1, 2) for t in base]  # [B, T, H, D] storage
    sliced = [torch.cat([t, t], -1)[..., :16] for t in views]
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in views]

    def run(inputs: list[Tensor], g: Tensor) -> list[Tensor]:
        return gradients(lambda *t: kernel(*t, is_causal=True)[0], inputs, g)

    expected = run([t.contiguous() for t in views], grad.contiguous())
    for inputs in (views, sliced, strided):
        reasons = spec.why_not(make_request(*inputs, is_causal=True))
        if reasons:
            assert any("head size not contiguous" in r or "takes" in r for r in reasons)
            continue
        leaves = [t.detach().requires_grad_() for t in inputs]
        out, _ = kernel(*leaves, is_causal=True)
        actual = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("factor", [1.0, 30.0, 1e18])
@pytest.mark.parametrize("case", [(2, 2, 50, 50, True, 16), (1, 1, 9, 1, True, None)], ids=str)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradients_that_cancel_are_zero_to_rounding(name, case, factor) -> None:
    """Where one key takes all the weight, query and key gradients are differences of equal terms.

    Their error is measured against the terms: `scale * |grad_out·value| * |key or query|`.
    """
    queries, keys, value, grad = draw(case, torch.float32)
    query, key = queries * factor, keys * factor
    kernel = next(spec for spec in SPECS if spec.name == name).load()
    *_, segment = case
    actual = gradients(
        lambda *t: kernel(*t, is_causal=True, segment_size=segment)[0], [query, key, value], grad
    )
    truth = gradients(
        lambda *t: attention_formula(*t, is_causal=True),
        [query.double(), key.double(), value.double()],
        grad.double(),
    )
    terms = (grad.abs() @ value.abs().transpose(-1, -2)).max().double() / 4
    sizes = (value.abs().max(), terms * key.abs().max(), terms * query.abs().max() * 50, None)
    for label, result, wanted, size in zip(NAMES, actual, truth, sizes, strict=True):
        assert torch.isfinite(result).all(), label
        if size is not None and not (label == "out" and factor > 1e9):
            # Scores of size s are known to u*s, which is what the exponential makes relative.
            relative = 2**-24 * max(4.0, float(query.abs().max() * key.abs().max() * 4))
            assert (result - wanted).abs().max() <= 8 * min(relative, 1.0) * size, label


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_tiny_values_keep_their_precision(name) -> None:
    query, key, value, _ = draw((2, 2, 40, 40, True, 16), torch.float32)
    value = value * SMALLEST * 1e3
    kernel = next(spec for spec in SPECS if spec.name == name).load()
    actual = kernel(query, key, value, is_causal=True, segment_size=16)[0]
    truth = attention_formula(query.double(), key.double(), value.double(), is_causal=True)
    independent = attention_formula(query, key, value, is_causal=True)
    assert_within_budget(actual, independent, truth)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_nan_in_a_future_key_stays_in_the_rows_that_see_it(name) -> None:
    """Across tiles: the tiles below the diagonal never hold a key that a row must not see."""
    query, key, value, _ = draw((1, 1, 64, 64, True, 16), torch.float32)
    key[:, :, 40] = math.nan
    value[:, :, 40] = math.nan
    kernel = next(spec for spec in SPECS if spec.name == name).load()
    out, _ = kernel(query, key, value, is_causal=True, segment_size=8)
    assert torch.isfinite(out[:, :, :40]).all()
    assert torch.isnan(out[:, :, 40:]).all()


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("sizes", list(itertools.product([1, 2, 5], [1, 3, 8])), ids=str)
def test_scale_and_head_sizes(name, sizes) -> None:
    segment, head_size = sizes
    query, key, value, _ = draw((2, 1, 9, 9, True, None), torch.float64, head_size)
    kernel = next(spec for spec in SPECS if spec.name == name).load()
    for scale in (0.3, -1.0, 0.0):
        options = {"is_causal": True, "scale": scale}
        assert_backward_stable(
            lambda *t, o=options: kernel(*t, **o, segment_size=segment)[0], query, key, value,
            reference=lambda *t, o=options: attention_formula(*t, **o),
        )  # fmt: skip


def test_reference_takes_another_value_head_size() -> None:
    query, key, value, _ = draw((4, 2, 30, 30, True, None), torch.float64)
    inputs = [query, key, torch.cat([value, value[..., :5]], -1)]
    kernel = SPECS[-1].load()
    assert_backward_stable(
        lambda *t: kernel(*t, is_causal=True, segment_size=7)[0], *inputs,
        reference=lambda *t: attention_formula(*t, is_causal=True),
    )  # fmt: skip


def test_all_kernels_have_one_signature_and_one_set_of_defaults() -> None:
    signatures = {spec.name: inspect.signature(spec.load()) for spec in SPECS}
    parameters = {
        name: [(p.name, p.kind, p.default, p.annotation) for p in signature.parameters.values()]
        for name, signature in signatures.items()
    }
    for name, found in parameters.items():
        assert found == parameters["reference"], name


def test_request_takes_the_public_arguments() -> None:
    import accel

    public = inspect.signature(accel.segmented_attention).parameters
    checked = inspect.signature(OPERATION.request).parameters
    expected = [(n, p.default) for n, p in public.items() if n != "backend"]
    assert [(n, p.default) for n, p in checked.items()] == expected


@pytest.mark.parametrize("hidden", [(0, 2), (2, 4), (4, 6), (0, 6)], ids=str)
@pytest.mark.parametrize("segment", [None, 2])
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_rows_whose_scores_are_all_minus_infinity(name, segment, hidden) -> None:
    """In one segment, where aten tells a log-sum-exp of 0 for them, or in all."""
    query, key, value, _ = draw((2, 1, 6, 6, False, None), torch.float64)
    query[..., 0] = 1.0
    key[:, :, slice(*hidden), 0] = -math.inf
    kernel = next(spec for spec in SPECS if spec.name == name).load()
    out, lse = kernel(query, key, value, segment_size=segment, return_lse=True)
    scores = query @ key.transpose(-1, -2) / 4
    assert torch.allclose(out, attention_formula(query, key, value, is_causal=False), atol=1e-12)
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-12)


def test_a_row_whose_only_score_is_zero_is_not_taken_for_empty() -> None:
    zero = torch.zeros(1, 1, 3, 4)
    kernel = next(spec for spec in SPECS if spec.name == "cpu").load()
    _, lse = kernel(zero, zero, zero, is_causal=True, return_lse=True)
    assert torch.allclose(lse, torch.tensor([1.0, 2.0, 3.0]).log())
