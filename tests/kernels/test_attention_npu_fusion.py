"""Attention on Ascend, on the CPU: the vendor's operators are those of `accel_kernels.vendor.npu`.

What is asked of them is recorded, and every mistake that is silent on a chip (a forgotten or
inverted mask, the default scale, statistics of a part in place of the row's) is made on purpose
once, to see that these tests see it.
"""

import math

import pytest
import torch

from accel.testing import assert_backward_stable
from accel.testing.cases import attention_formula
from accel_kernels.masks import Sizes, as_mask, causal, key_lengths, prefix, window
from accel_kernels.segmented_attention import npu_fusion
from accel_kernels.segmented_attention.call import Bias, Dropout, alibi
from accel_kernels.segmented_attention.npu_fusion import calls as npu_calls
from accel_kernels.segmented_attention.npu_fusion.calls import (
    BOTTOM_RIGHT,
    TOP_LEFT,
)
from accel_kernels.segmented_attention.state import merge
from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.attention_cases import (
    CASES,
    bias_of,
    bias_tensor,
    draw,
    mask_of,
    seen,
    whole_bias,
)
from tests.kernels.npu_chip import FORWARD, GRADIENT, WITH_BIAS, Chip, visible

CPU = torch.device("cpu")
SUPPORTED = [case for case in CASES if case.softcap is None and not case.dropout_p]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def chip(monkeypatch):
    return Chip().install(monkeypatch)


def attention(query, key, value, **options):
    return npu_fusion.segmented_attention(query, key, value, **options)


def options_of(case, bias=None):
    kind = None if bias is None else bias_of(case.bias, bias)
    if isinstance(kind, torch.Tensor):
        kind = Bias("dense", kind.view((1,) * (4 - kind.dim()) + tuple(kind.shape)))
    return {
        "mask": mask_of(case, CPU),
        "bias": kind,
        "scale": case.scale,
        "segment_size": case.segment_size,
    }


def formula_of(case):
    """Output and log-sum-exp of a case by the definition; 0 in place of the -inf of empty rows."""
    sees = seen(case)

    def formula(query, key, value, bias=None):
        whole = None if bias is None else whole_bias(case.bias, bias, case.sizes)
        scale = case.scale if case.scale is not None else 1 / math.sqrt(query.shape[-1])
        out = attention_formula(query, key, value, scale=scale, seen=sees, bias=whole)
        scores = query @ key.repeat_interleave(case.heads // case.key_heads, 1).mT * scale
        scores = scores if whole is None else scores + whole
        if sees is None:
            return out, scores.logsumexp(-1)
        some = sees.any(-1).expand(scores.shape[:-1])
        scores = scores.masked_fill(~sees & some.unsqueeze(-1), -math.inf)
        return out, torch.where(some, scores.logsumexp(-1), 0.0)

    return formula


def ours(case):
    def run(query, key, value, bias=None):
        out, lse = attention(query, key, value, **options_of(case, bias), return_lse=True)
        return out, torch.where(lse == -math.inf, 0.0, lse)

    return run


def inputs_of(case, dtype):
    tensors = draw(case, dtype)
    return [*tensors, bias_tensor(case.bias, case.sizes).to(dtype)] if case.bias else tensors


# --- the contract ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_output_and_log_sum_exp_and_their_gradients(case) -> None:
    assert_backward_stable(ours(case), *inputs_of(case, torch.float64), reference=formula_of(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SUPPORTED[2::5], ids=lambda case: case.name)
def test_dtypes(case, dtype) -> None:
    inputs = inputs_of(case, dtype)
    assert ours(case)(*inputs)[0].dtype == dtype
    assert_backward_stable(ours(case), *inputs, reference=formula_of(case))


@pytest.mark.parametrize(("size", "segment"), [(1, 64), (63, None), (100, 64), (300, 128)])
@pytest.mark.parametrize("mask", [None, causal(), window(20, 3), causal() | prefix(30)], ids=str)
def test_odd_sizes(size, mask, segment, chip) -> None:
    query, key, value = (torch.randn(1, 2, size, 8, requires_grad=True) for _ in range(3))
    allowed = None if mask is None else visible(mask, Sizes(1, 2, size, size))
    assert_backward_stable(
        lambda *t: attention(*t, mask=mask, segment_size=segment)[0], query, key, value,
        reference=lambda *t: attention_formula(*t, seen=allowed),
    )  # fmt: skip
    if segment:
        assert all(tensors[1].shape[2] <= segment for _, tensors, _ in chip.calls)
        assert len(chip.calls) >= 2 * -(-size // segment)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (1, 0, 3, 4)], ids=str)
@pytest.mark.parametrize("mask", [None, causal(), window(1, 0)], ids=str)
def test_empty_tensors(shape, mask, chip) -> None:
    batch, heads, queries, keys = shape
    leaves = [torch.randn(batch, heads, t, 8, requires_grad=True) for t in (queries, keys, keys)]
    out, lse = attention(*leaves, mask=mask, return_lse=True)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    assert (out.shape, lse.shape) == (leaves[0].shape, leaves[0].shape[:3])
    out.sum().backward()
    assert all((leaf.grad == 0).all() for leaf in leaves)
    assert chip.calls == []


@pytest.mark.parametrize(
    "mask", [key_lengths([0, 0]), as_mask(torch.zeros(5, 7, dtype=torch.bool))]
)
def test_a_mask_that_shows_nothing(mask, chip) -> None:
    leaves = [torch.randn(2, 2, t, 8, requires_grad=True) for t in (5, 7, 7)]
    out, lse = attention(*leaves, mask=mask, return_lse=True)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    out.sum().backward()
    assert all((leaf.grad == 0).all() for leaf in leaves)
    assert chip.calls == []


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("name", ["causal", "window", "documents", "key lengths", "dense"])
@pytest.mark.parametrize("segment", [8, None])
def test_what_is_not_seen_does_not_leak(name, wrong, which, segment) -> None:
    case = next(c for c in CASES if c.name == f"mask: {name}")._replace(keys=37)
    tensors = draw(case, torch.float32)
    clean = [t.clone() for t in tensors]
    tensors[which][:, :, 20] = wrong
    sees = torch.as_tensor(seen(case))
    rows = ~sees[..., 20]

    def run(inputs):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out, _ = attention(*leaves, mask=mask_of(case, CPU), segment_size=segment)
        loss = torch.where(rows.unsqueeze(-1), out, 0.0).square().sum()
        return [out.detach(), *torch.autograd.grad(loss, leaves)]

    poisoned, expected = run(tensors), run(clean)
    for found, wanted in list(zip(poisoned, expected, strict=True))[:2]:
        unaffected = rows.unsqueeze(-1).expand_as(found)
        torch.testing.assert_close(found[unaffected], wanted[unaffected])
    if not (which == 1 and wrong == -math.inf):
        assert (~torch.isfinite(poisoned[0]).all(-1) & ~rows).any()


def test_the_gradient_of_a_row_that_sees_nothing_does_not_matter(chip) -> None:
    """Nor does the operator meet infinities there."""
    allowed = torch.rand(2, 1, 9, 12) < 0.5
    allowed[0, :, 4] = False
    leaves = [torch.randn(2, 2, t, 8, requires_grad=True) for t in (9, 12, 12)]
    out = attention(*leaves, mask=as_mask(allowed))[0]
    grad = torch.randn_like(out)
    grads = []
    for there in (0.0, math.nan):
        grad[0, :, 4] = there
        grads.append(torch.autograd.grad(out, leaves, grad, retain_graph=True))
    for zero, wrong in zip(*grads, strict=True):
        assert torch.equal(zero, wrong)
    assert all(torch.isfinite(a["softmax_max"]).all() for a in chip.arguments(GRADIENT))


def test_what_the_operator_leaves_in_masked_rows_is_not_used(chip) -> None:
    case = next(c for c in CASES if c.name == "mask: dense")
    chip.spoils_masked_rows = True
    assert not torch.as_tensor(seen(case)).any(-1).all()
    out, lse = attention(*draw(case, torch.float64), **options_of(case), return_lse=True)
    expected, _ = formula_of(case)(*draw(case, torch.float64))
    torch.testing.assert_close(out, expected)
    assert torch.equal(lse == -math.inf, ~torch.as_tensor(seen(case)).any(-1))


def test_large_float16_sums_are_not_taken_for_overflow(chip) -> None:
    query, key, value = (torch.full((1, 1, 200, 8), 300.0).half() for _ in range(3))
    assert not torch.isfinite(key.sum())
    attention(query, key, value, mask=causal())
    assert chip.arguments()


def test_layouts_that_are_not_contiguous() -> None:
    base = [torch.randn(2, 40, 3, 16) for _ in range(3)]
    views = [t.transpose(1, 2)[..., ::2] for t in base]
    out = attention(*views, mask=causal())[0]
    torch.testing.assert_close(out, attention(*(t.contiguous() for t in views), mask=causal())[0])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"softcap": 2.0}, "softcap"), ({"dropout": Dropout(0.5, 1)}, "dropout_p")],
)
def test_what_the_operator_lacks_is_refused(arguments, name, chip) -> None:
    query = torch.randn(1, 1, 4, 8)
    with pytest.raises(NotImplementedError, match=name):
        attention(query, query, query, **arguments)
    with pytest.raises(NotImplementedError, match="head sizes up to 768, not 769"):
        attention(*[torch.randn(1, 1, 2, 769)] * 3)
    assert chip.calls == []


# --- biases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", [False, True])
def test_a_bias_of_a_16_bit_call_keeps_its_digits(mistake, chip) -> None:
    """In the query's dtype 8 bits would be left of it, which is none of what differs here."""

    def coarse(operator, arguments):
        arguments["pse"] = arguments["pse"].bfloat16().float()

    query, key, value = (torch.randn(1, 2, 40, 8).bfloat16() for _ in range(3))
    bias = 1000.0 + torch.randn(1, 2, 40, 40)
    if mistake:
        chip.mistake = coarse

    def check():
        assert_backward_stable(
            lambda *t: attention(*t, mask=causal(), bias=Bias("dense", bias))[0],
            query, key, value,
            reference=lambda *t: attention_formula(*t, bias=bias.double(), is_causal=True),
            compute=torch.float32, gradients=False,
        )  # fmt: skip

    if mistake:
        with pytest.raises(AssertionError, match="not backward stable"):
            check()
    else:
        check()
        assert {a["pse"].dtype for a in chip.arguments(WITH_BIAS)} == {torch.float32}


def test_a_bias_is_never_whole(chip) -> None:
    query = torch.randn(1, 2, 1100, 4)
    attention(query, query, query, mask=causal(), bias=alibi(torch.rand(2)))
    asked = chip.arguments(WITH_BIAS)
    assert {a["pse_type"] for a in asked} == {0}
    # In the order of the keys; what nobody sees is not there.
    assert [a["pse"].shape[2:] for a in asked] == [(1024, 1024), (76, 1024), (76, 76)]


# --- the mistakes that a chip does not report --------------------------------------------------


def drop(*names):
    return lambda operator, arguments: [arguments.pop(name, None) for name in names]


def invert(operator, arguments):
    if "atten_mask" in arguments:
        arguments["atten_mask"] = ~arguments["atten_mask"]


def mode(number):
    def change(operator, arguments):
        if "sparse_mode" in arguments:
            arguments["sparse_mode"] = number

    return change


def join(operator, arguments):
    for name in ("actual_seq_qlen", "actual_seq_kvlen"):
        if name in arguments:
            arguments[name] = arguments[name][1:]


MISTAKES = {
    "no mask": ("mask: causal", drop("atten_mask")),
    "top left": ("mask: causal", mode(TOP_LEFT)),
    "bottom right": ("mask: causal top left", mode(BOTTOM_RIGHT)),
    "no tokens": ("mask: window", drop("pre_tockens", "next_tockens")),
    "inverted": ("mask: dense", invert),
    "no dense mask": ("mask: dense", drop("atten_mask", "sparse_mode")),
    "default scale": ("plain", drop("scale", "scale_value")),
    "default scale of the gradient": ("plain", drop("scale_value")),
    "sequences joined": ("mask: documents", join),
    "statistics in the other order": ("mask: documents", drop("softmax_layout")),
    "bias before scale": ("bias: dense", drop("pse_type")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_that_are_silent_on_a_chip_are_seen(name, chip) -> None:
    which, chip.mistake = MISTAKES[name]
    case = next(c for c in CASES if c.name == which)._replace(segment_size=None)
    if which == "mask: causal top left":
        case = case._replace(queries=45, keys=37)
    with pytest.raises(AssertionError, match="not backward stable"):
        assert_backward_stable(
            ours(case), *inputs_of(case, torch.float64), reference=formula_of(case)
        )


def test_statistics_of_a_part_are_not_those_of_the_row(chip, monkeypatch) -> None:
    """What goes wrong when a segment's gradient is taken with what its own forward returned."""
    case = next(c for c in CASES if c.name == "plain")

    def own(operator, arguments):
        if operator == GRADIENT:
            arguments["softmax_max"] = arguments["softmax_max"] - 0.1

    chip.mistake = own
    with pytest.raises(AssertionError, match="gradient of argument"):
        assert_backward_stable(
            ours(case), *inputs_of(case, torch.float64), reference=formula_of(case)
        )


def test_the_gradient_of_the_log_sum_exp_is_not_dropped(monkeypatch) -> None:
    """torch_npu's own derivative ignores it; so would this one without the further columns."""
    case = next(c for c in CASES if c.name == "mask: causal")
    monkeypatch.setattr(npu_fusion, "_carrying", lambda tensors, grad, out, _: (tensors, grad, out))
    with pytest.raises(AssertionError, match=r"gradient of argument [01]"):
        assert_backward_stable(
            ours(case), *inputs_of(case, torch.float64), reference=formula_of(case)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_the_log_sum_exp_keeps_its_digits_in_16_bits(dtype) -> None:
    """It is split into three columns; one would round it to 8 or 11 bits."""
    query, key = (torch.randn(1, 1, 30, 8).to(dtype) for _ in range(2))
    grad = torch.randn(1, 1, 30)
    out = torch.zeros_like(query)
    tensors, gradient, result = npu_fusion._carrying(
        npu_calls.Tensors(query, key, torch.zeros_like(key)), torch.zeros_like(query), out, grad
    )
    given = (gradient.double() * result.double()).sum(-1)
    torch.testing.assert_close(given, -grad.double(), rtol=2.0**-22, atol=2.0**-24)
    assert (grad.to(dtype).double() - grad.double()).abs().max() > 2.0**-13
    assert tensors.query.shape[-1] == 24


@pytest.mark.parametrize(("size", "fused"), [(752, True), (753, False), (768, False)])
def test_head_sizes_without_room_for_the_further_columns(size, fused, chip) -> None:
    leaves = [torch.randn(1, 1, 5, size, requires_grad=True) for _ in range(3)]

    def run(*tensors):
        return attention(*tensors, mask=causal(), return_lse=True)

    assert_backward_stable(
        run, *leaves,
        reference=lambda q, k, v: (
            attention_formula(q, k, v, is_causal=True),
            (q @ k.mT / math.sqrt(size)).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
            .logsumexp(-1),
        ),
    )  # fmt: skip
    assert bool(chip.arguments(GRADIENT)) == fused


# --- the vendor's own merges -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_merging_equals_the_vendors_two_operators(dtype) -> None:
    query, key, value = (torch.randn(2, 3, 20, 8).to(dtype) for _ in range(3))
    halves = [
        REFERENCES[FORWARD](query, k, v, 3, "BNSD", scale=0.4)
        for k, v in zip(key.split(9, 2), value.split(9, 2), strict=True)
    ]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    states = [(h[0].to(wide), h[1][..., 0] + h[2][..., 0].log()) for h in halves]
    out, lse = states[0]
    ring = [lay(halves[0][0]), halves[0][1], halves[0][2]]
    for state, half in zip(states[1:], halves[1:], strict=True):
        out, lse = merge(out, lse, *state)
        ring = list(REFERENCES["npu_ring_attention_update"](*ring, lay(half[0]), *half[1:3]))
    flat, sums = REFERENCES["npu_attention_update"](
        [s[1].reshape(-1) for s in states], [s[0].reshape(-1, 8) for s in states], 1
    )
    exact = {"rtol": 2**-21, "atol": 2**-21} if wide == torch.float32 else {}
    torch.testing.assert_close(flat.view_as(out), out, **exact)
    torch.testing.assert_close(sums.view_as(lse), lse, **exact)
    torch.testing.assert_close(ring[1][..., 0] + ring[2][..., 0].log(), lse, **exact)
    # That of a ring rounds to the dtype of the outputs after each step; ours once at the end.
    truth = (query.double() @ key.double().mT * 0.4).softmax(-1) @ value.double()
    theirs = ring[0].double().unflatten(-1, (3, 8)).permute(1, 2, 0, 3)
    worst = [(o.double() - truth).abs().max() for o in (out.to(dtype), theirs)]
    assert worst[0] <= worst[1] * 1.01 + 1e-15


def lay(tensor):
    return tensor.permute(2, 0, 1, 3).flatten(2)
