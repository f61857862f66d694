"""Every kernel of segmented attention, generated from its specs, against float64."""

import inspect
import math

import pytest
import torch
from torch import Tensor

import accel
from accel import BackendError
from accel.attention import causal, key_lengths, window
from accel.testing import assert_backward_stable, assert_within_budget
from accel.testing.cases import attention_formula
from accel_kernels.segmented_attention import OPERATION, SPECS
from accel_kernels.spec import REFERENCE
from tests.kernels.attention_cases import (
    CASES,
    Case,
    bias_of,
    bias_tensor,
    draw,
    kept,
    mask_of,
    seen,
    whole_bias,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEED = 11
OWN = ["reference", "cpu"]


def options_of(case: Case, bias: Tensor | None, device: torch.device) -> dict:
    return {
        "mask": mask_of(case, device),
        "bias": None if bias is None else bias_of(case.bias, bias),
        "softcap": case.softcap,
        "dropout_p": case.dropout_p,
        "dropout_seed": SEED,
        "scale": case.scale,
        "segment_size": case.segment_size,
    }


def truth_of(case: Case):
    """The formula for a case, of query, key, value and perhaps the bias tensor."""

    def formula(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        there, dtype = query.device, query.dtype
        sees = seen(case)
        factor = kept(case.sizes, case.dropout_p, SEED).to(there) if case.dropout_p else None
        return attention_formula(
            query, key, value, scale=case.scale, softcap=case.softcap, kept=factor,
            seen=None if sees is None else sees.to(there),
            bias=None if bias is None else whole_bias(case.bias, bias, case.sizes).to(dtype),
        )  # fmt: skip

    return formula


def able(name: str, *tensors: Tensor, **options) -> bool:
    return accel.explain("segmented_attention", *tensors, backend=name, **options).chosen == name


# Each case in float32 and in one of the others, in turn; the first ones in all.
OTHERS = [torch.float64, torch.bfloat16, torch.float16]
IN_DTYPES = [
    pytest.param(case, dtype, id=f"{case.name}-{dtype}")
    for number, case in enumerate(CASES)
    for dtype in (DTYPES if number < 6 else [torch.float32, OTHERS[number % 3]])
]


@pytest.mark.parametrize(("case", "dtype"), IN_DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_output_and_gradients_are_backward_stable(spec, case, dtype, device) -> None:
    stable_or_declined(spec, case, dtype, device)


@pytest.mark.parametrize("name", ["causal, one key head", "everything"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_last_of_several_devices(spec, name) -> None:
    """Which is not the current one."""
    case = next(case for case in CASES if case.name == name)
    stable_or_declined(spec, case, torch.float32, accel.available_devices()[-1])


def stable_or_declined(spec, case: Case, dtype: torch.dtype, device: accel.Device) -> None:
    if spec.devices and device.torch_device.type not in spec.devices:
        return  # the test of refusals has it
    inputs = [tensor.to(device.torch_device) for tensor in draw(case, dtype)]
    if case.bias:
        inputs.append(bias_tensor(case.bias, case.sizes).to(dtype).to(device.torch_device))

    def out(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        options = options_of(case, bias, query.device)
        result = accel.segmented_attention(query, key, value, **options, backend=spec.name)
        assert result.dtype == dtype
        return result

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    bias = leaves[3] if case.bias else None
    if not able(spec.name, *leaves[:3], **options_of(case, bias, device.torch_device)):
        # What a spec declines is covered by the test of its reasons.
        assert spec.name != REFERENCE
        with pytest.raises(BackendError, match="cannot serve"):
            out(*leaves)
        return
    assert_backward_stable(out, *inputs, reference=truth_of(case))


def mean_of_segments(query: Tensor, key: Tensor, value: Tensor, segment: int) -> Tensor:
    """The published formula, repaired just enough to run: each segment with its own softmax."""
    parts = [
        attention_formula(query, key[:, :, s : s + segment], value[:, :, s : s + segment])
        for s in range(0, key.shape[2], segment)
    ]
    return torch.stack(parts).mean(0)


@pytest.mark.parametrize("name", [*OWN, "sdpa"])
def test_mean_of_segments_is_not_attention_and_ours_is(name) -> None:
    query, key, value = (torch.randn(1, 2, 256, 16, dtype=torch.float64) for _ in range(3))
    key[:, :, 70:80] += 3.0 * query.mean(2, keepdim=True) + 2.0  # one segment holds what matters
    truth = attention_formula(query, key, value)
    segment = {"segment_size": 64} if name in OWN else {}
    control = mean_of_segments(query, key, value, 64)
    assert (control - truth).norm() / truth.norm() > 0.1
    inputs = (query, key, value)
    assert_backward_stable(
        lambda *t: accel.segmented_attention(*t, **segment, backend=name), *inputs,
        reference=attention_formula,
    )  # fmt: skip
    with pytest.raises(AssertionError, match="output 0 is not backward stable: R "):
        assert_backward_stable(
            lambda *t: mean_of_segments(*t, 64), *inputs,
            reference=attention_formula, gradients=False,
        )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", OWN)
def test_lse_and_its_gradients(name, case) -> None:
    """Through the log-sum-exp alone, and through both."""
    leaves = [t.requires_grad_() for t in draw(case, torch.float64)]
    if case.bias:
        leaves.append(bias_tensor(case.bias, case.sizes).requires_grad_())
    query, key, value, *rest = leaves
    bias = rest[0] if rest else None
    out, lse = accel.segmented_attention(
        query, key, value, **options_of(case, bias, torch.device("cpu")), return_lse=True,
        backend=name,
    )  # fmt: skip
    scores = query @ key.repeat_interleave(case.heads // case.key_heads, 1).mT
    scores = scores * (case.scale if case.scale is not None else 1 / math.sqrt(case.head_size))
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    if bias is not None:
        scores = scores + whole_bias(case.bias, bias, case.sizes)
    sees = seen(case)
    if sees is not None:
        scores = scores.masked_fill(~sees, -math.inf)
    expected = scores.logsumexp(-1)
    some = torch.isfinite(expected)
    assert torch.equal(lse == -math.inf, ~some)
    # Logarithms of a few dozen terms of size 1 in float64.
    assert torch.allclose(lse[some], expected[some], rtol=1e-13, atol=1e-13)
    weight, grad = torch.randn_like(expected), torch.randn_like(out)
    whole = truth_of(case)(*leaves)
    for through in ((0.0, 1.0), (1.0, 1.0)):
        losses = [
            through[0] * (o * grad).sum() + through[1] * (x[some] * weight[some]).sum()
            for o, x in ((out, lse), (whole, expected))
        ]
        found, wanted = (
            torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            for loss in losses
        )
        for a, w in zip(found, wanted, strict=True):
            w = torch.zeros_like(a) if w is None else w
            # Sums of some hundred terms of size 1 in float64.
            assert torch.allclose(a, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (1, 0, 3, 4)], ids=str)
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("mask", [None, causal(), window(1, 0)], ids=str)
def test_empty_tensors(name, shape, dtype, mask) -> None:
    batch, heads, queries, keys = shape
    query, key, value = (
        torch.randn(batch, heads, t, 8).to(dtype).requires_grad_() for t in (queries, keys, keys)
    )
    out, lse = accel.segmented_attention(
        query, key, value, mask=mask, return_lse=True, backend=name
    )
    assert out.shape == query.shape
    assert out.dtype == dtype
    assert lse.shape == query.shape[:3]
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    out.sum().backward()
    for tensor in (query, key, value):
        assert (tensor.grad == 0).all()


@pytest.mark.parametrize("name", [*OWN, "sdpa"])
@pytest.mark.parametrize("mask", [causal(), window(9, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts_give_the_same_bits(name, mask, dtype) -> None:
    """Transposed, sliced, expanded and strided inputs and gradients equal contiguous ones."""
    base = [torch.randn(2, 40, 3, 16).to(dtype) for _ in range(3)]
    grad = torch.randn(2, 40, 3, 16).to(dtype).transpose(1, 2)
    views = [t.transpose(1, 2) for t in base]  # [B, T, H, D] storage
    sliced = [torch.cat([t, t], -1)[..., :16] for t in views]
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in views]

    def run(inputs: list[Tensor], g: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = accel.segmented_attention(*leaves, mask=mask, backend=name)
        return [out.detach(), *torch.autograd.grad(out, leaves, g)]

    if not able(name, *views, mask=mask):
        assert name == "sdpa"
        return
    expected = run([t.contiguous() for t in views], grad.contiguous())
    for inputs in (views, sliced, strided):
        if not able(name, *inputs, mask=mask):
            assert name == "sdpa"
            continue
        for a, e in zip(run(inputs, grad), expected, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("factor", [1.0, 30.0, 1e18])
@pytest.mark.parametrize("segment", [16, None])
@pytest.mark.parametrize("name", OWN)
def test_gradients_that_cancel_are_zero_to_rounding(name, segment, factor) -> None:
    """Where one key takes all the weight, query and key gradients are differences of equal terms.

    Their error is measured against the terms: `scale * |grad_out·value| * |key or query|`.
    """
    case = Case("", queries=50, keys=50, mask="causal")
    query, key, value = draw(case, torch.float32)
    query, key, grad = query * factor, key * factor, torch.randn_like(query)

    def run(function, inputs: list[Tensor], g: Tensor) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, g)]

    options = {"is_causal": True, "segment_size": segment, "backend": name}
    actual = run(lambda *t: accel.segmented_attention(*t, **options), [query, key, value], grad)
    truth = run(
        lambda *t: attention_formula(*t, is_causal=True),
        [query.double(), key.double(), value.double()], grad.double(),
    )  # fmt: skip
    terms = (grad.abs() @ value.abs().transpose(-1, -2)).max().double() / 4
    sizes = (value.abs().max(), terms * key.abs().max(), terms * query.abs().max() * 50, None)
    for label, result, wanted, size in zip("oqkv", actual, truth, sizes, strict=True):
        assert torch.isfinite(result).all(), label
        if size is not None and not (label == "o" and factor > 1e9):
            # Scores of size s are known to u*s, which is what the exponential makes relative.
            relative = 2**-24 * max(4.0, float(query.abs().max() * key.abs().max() * 4))
            assert (result - wanted).abs().max() <= 8 * min(relative, 1.0) * size, label


@pytest.mark.parametrize("name", OWN)
def test_tiny_values_keep_their_precision(name) -> None:
    query, key, value = draw(Case("", queries=40, keys=40), torch.float32)
    value = value * torch.finfo(torch.float32).tiny * 1e3
    actual = accel.segmented_attention(
        query, key, value, is_causal=True, segment_size=16, backend=name
    )
    truth = attention_formula(query.double(), key.double(), value.double(), is_causal=True)
    independent = attention_formula(query, key, value, is_causal=True)
    assert_within_budget(actual, independent, truth)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("segment", [8, None])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["key", "value", "both"])
@pytest.mark.parametrize("mask", ["causal", "window", "documents", "key lengths", "dense"])
def test_what_is_not_seen_does_not_leak(name, segment, wrong, which, mask) -> None:
    """Neither forward nor backward; and a row that does see it is not finite."""
    case = Case("", queries=40, keys=40, mask=mask)
    tensors = draw(case, torch.float32)
    clean = [t.clone() for t in tensors]
    column = 20
    for at in {"key": (1,), "value": (2,), "both": (1, 2)}[which]:
        tensors[at][:, :, column] = wrong
    sees = torch.as_tensor(seen(case))
    unaffected = ~sees[..., column]
    options = {"mask": mask_of(case, torch.device("cpu")), "segment_size": segment, "backend": name}

    def run(inputs: list[Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = accel.segmented_attention(*leaves, **options)
        loss = torch.where(unaffected.unsqueeze(-1), out, 0.0).square().sum()
        return [out.detach(), *torch.autograd.grad(loss, leaves)]

    poisoned, expected = run(tensors), run(clean)
    rows = unaffected.unsqueeze(-1).expand_as(poisoned[0])
    assert torch.isfinite(poisoned[0][rows]).all()
    assert torch.allclose(poisoned[0][rows], expected[0][rows], rtol=1e-5, atol=1e-6)
    if not (which == "key" and wrong == -math.inf):
        affected = ~torch.isfinite(poisoned[0]).all(-1)
        assert affected[~unaffected].any()
    assert torch.isfinite(poisoned[1][rows]).all()


@pytest.mark.parametrize("name", OWN)
def test_scale_and_head_sizes(name) -> None:
    for segment in (1, 2, 5):
        for head_size in (1, 3, 8):
            case = Case("", 2, 1, 9, 9, head_size=head_size)
            for scale in (0.3, -1.0, 0.0):
                assert_backward_stable(
                    lambda *t, s=scale, n=segment: accel.segmented_attention(
                        *t, is_causal=True, scale=s, segment_size=n, backend=name
                    ),
                    *draw(case, torch.float64),
                    reference=lambda *t, s=scale: attention_formula(*t, is_causal=True, scale=s),
                )


def test_all_kernels_have_one_signature_and_one_set_of_defaults() -> None:
    signatures = {spec.name: inspect.signature(spec.load()) for spec in SPECS if not spec.missing}
    parameters = {
        name: [(p.name, p.kind, p.default, p.annotation) for p in signature.parameters.values()]
        for name, signature in signatures.items()
    }
    for name, found in parameters.items():
        assert found == parameters["reference"], name


def test_request_takes_the_public_arguments() -> None:
    public = inspect.signature(accel.segmented_attention).parameters
    checked = inspect.signature(OPERATION.request).parameters
    expected = [(n, p.default) for n, p in public.items() if n != "backend"]
    assert [(n, p.default) for n, p in checked.items()] == expected


@pytest.mark.parametrize("hidden", [(0, 2), (2, 4), (4, 6), (0, 6)], ids=str)
@pytest.mark.parametrize("segment", [None, 2])
@pytest.mark.parametrize("name", OWN)
def test_rows_whose_scores_are_all_minus_infinity(name, segment, hidden) -> None:
    """In one segment, where aten tells a log-sum-exp of 0 for them, or in all."""
    query, key, value = draw(Case("", 2, 1, 6, 6), torch.float64)
    query[..., 0] = 1.0
    key[:, :, slice(*hidden), 0] = -math.inf
    out, lse = accel.segmented_attention(
        query, key, value, segment_size=segment, return_lse=True, backend=name
    )
    scores = query @ key.transpose(-1, -2) / 4
    assert torch.allclose(out, attention_formula(query, key, value), atol=1e-12)
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-12)


def test_a_row_whose_only_score_is_zero_is_not_taken_for_empty() -> None:
    zero = torch.zeros(1, 1, 3, 4)
    _, lse = accel.segmented_attention(
        zero, zero, zero, is_causal=True, return_lse=True, backend="cpu"
    )
    assert torch.allclose(lse, torch.tensor([1.0, 2.0, 3.0]).log())


@pytest.mark.parametrize("name", OWN)
def test_dropout_is_the_same_whatever_the_segments(name) -> None:
    inputs = draw(Case("", 4, 2, 33, 50), torch.float64)
    outs = [
        accel.segmented_attention(
            *inputs, dropout_p=0.4, dropout_seed=5, segment_size=n, backend=name
        )
        for n in (3, 16, None)
    ]
    for out in outs[1:]:
        assert torch.allclose(out, outs[0], rtol=0, atol=1e-13)
    other = accel.segmented_attention(*inputs, dropout_p=0.4, dropout_seed=6, backend=name)
    assert not torch.allclose(other, outs[0])


@pytest.mark.parametrize("name", OWN)
def test_manual_seed_decides_what_is_dropped(name) -> None:
    inputs = draw(Case("", 2, 2, 9, 9), torch.float64)

    def run() -> Tensor:
        return accel.segmented_attention(*inputs, dropout_p=0.4, backend=name)

    torch.manual_seed(1)
    first, second = run(), run()
    torch.manual_seed(1)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", OWN)
def test_a_mask_that_shows_nothing(name) -> None:
    leaves = [t.requires_grad_() for t in draw(Case("", 2, 2, 5, 7), torch.float32)]
    out, lse = accel.segmented_attention(
        *leaves, mask=key_lengths([0, 0]), return_lse=True, backend=name
    )
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    out.sum().backward()
    assert all((t.grad == 0).all() for t in leaves)
