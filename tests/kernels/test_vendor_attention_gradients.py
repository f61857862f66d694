"""Gradients of `npu_fusion_attention`, its dropout and its third form."""

import math

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.attention_rows import (
    LAYOUTS,
    PREFIX_MASK,
    SAVED,
    TRIANGLE,
    K,
    Q,
    close,
    differs,
    ends,
    inputs,
    lay,
    numbers,
    packed,
    rows,
    rule,
    whole,
)

forward = REFERENCES["npu_fusion_attention"]
backward = REFERENCES["npu_fusion_attention_grad"]

# --- gradients ---------------------------------------------------------------------------------


CASES = {
    "plain": ({}, None),
    "masked": ({"sparse_mode": 1, "atten_mask": "random"}, "random"),
    "top-left": ({"sparse_mode": 2, "atten_mask": TRIANGLE}, lambda b, i, j: j <= i),
    "bottom-right": ({"sparse_mode": 3, "atten_mask": TRIANGLE}, lambda b, i, j: j <= i + 2),
    "band": (
        {"sparse_mode": 4, "atten_mask": TRIANGLE, "pre_tockens": 2, "next_tockens": 1},
        lambda b, i, j: i <= j <= i + 3,
    ),
    "prefix": (
        {"sparse_mode": 6, "atten_mask": PREFIX_MASK, "prefix": [2, 4]},
        lambda b, i, j: j < [2, 4][b] or j <= i + 2,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_the_formula(layout, case) -> None:
    arguments, keeps = CASES[case]
    arguments = dict(arguments)
    base = [t.requires_grad_() for t in inputs(value_depth=3)]
    kept = None
    if keeps == "random":
        kept = (torch.rand(2, 4, 5, 7) < 0.6) | (torch.arange(7) == 0)
        arguments["atten_mask"] = ~kept
    elif keeps is not None:
        kept = rule(2, 4, 5, 7, keeps)
    dy = numbers(2, 4, 5, 3)
    out = whole(*base, kept, scale=0.4)[0]
    expected = torch.autograd.grad(out, base, dy)
    laid = [lay(t.detach(), layout) for t in base]
    result = forward(*laid, 4, layout, scale=0.4, **arguments)
    saved = dict(zip(SAVED, (result[1], result[2], result[0]), strict=True))
    grads = backward(*laid, lay(dy, layout), 4, layout, scale_value=0.4, **saved, **arguments)
    for grad, want in zip(grads, expected, strict=False):
        close(grad, lay(want, layout))
    assert grads[3].shape == grads[4].shape == (0,)


@pytest.mark.parametrize("softmax_layout", ["", "TND"])
def test_gradients_of_packed_sequences(softmax_layout) -> None:
    parts, joined = packed(Q, K)
    leaves = [t.requires_grad_() for part in parts for t in part]
    kept = [
        rule(1, 4, q, k, lambda _, i, j, d=k - q: j <= i + d)[0] for q, k in zip(Q, K, strict=True)
    ]
    outs = [rows(*p, kept[b])[0] for b, p in enumerate(zip(*parts, strict=True))]
    dy = numbers(10, 4, 6)
    grads = torch.autograd.grad(torch.cat(outs, 1).transpose(0, 1), leaves, dy, allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]
    arguments = {
        "actual_seq_qlen": ends(Q),
        "actual_seq_kvlen": ends(K),
        "atten_mask": TRIANGLE,
        "sparse_mode": 3,
        "softmax_layout": softmax_layout,
    }
    joined = [t.detach() for t in joined]
    result = forward(*joined, 4, "TND", **arguments)
    saved = dict(zip(SAVED, (result[1], result[2], result[0]), strict=True))
    actual = backward(*joined, dy, 4, "TND", **saved, **arguments)
    for index in range(3):
        close(actual[index], torch.cat(grads[4 * index : 4 * index + 4], 1).transpose(0, 1))


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (2, 4, 1, 7), (1, 4, 5, 7)])
@pytest.mark.parametrize("pse_type", [1, 0])
def test_gradients_of_pse_and_sink(shape, pse_type) -> None:
    base = [t.requires_grad_() for t in inputs()]
    pse, sink = numbers(*shape, requires_grad=True), numbers(4, requires_grad=True)
    out = whole(*base, bias=pse.expand(2, 4, 5, 7), sink=sink, scale=0.4, inside=pse_type == 1)[0]
    dy = numbers(2, 4, 5, 6)
    expected = torch.autograd.grad(out, [*base, pse, sink], dy)
    plain = [t.detach() for t in base]
    arguments = {"pse": pse.detach(), "sink": sink.detach(), "pse_type": pse_type}
    result = REFERENCES["npu_fusion_attention_v2"](*plain, 4, "BNSD", scale=0.4, **arguments)
    saved = dict(zip(SAVED, (result[1], result[2], result[0]), strict=True))
    second = REFERENCES["npu_fusion_attention_grad_v2"]
    grads = second(*plain, dy, 4, "BNSD", scale_value=0.4, **saved, **arguments)
    assert len(grads) == 7
    for grad, want in zip((*grads[:4], grads[6]), expected, strict=True):
        close(grad, want)
    if pse_type == 1:
        del arguments["pse_type"]
        first = backward(*plain, dy, 4, "BNSD", scale_value=0.4, **saved, **arguments)
        for grad, want in zip(first, expected, strict=True):
            close(grad, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autograd_through_the_forward_agrees_even_where_rows_see_nothing(layout) -> None:
    laid = [lay(t, layout).detach().requires_grad_() for t in inputs(length=9, columns=5)]
    arguments = {"atten_mask": TRIANGLE, "sparse_mode": 3}
    result = forward(*laid, 4, layout, **arguments)
    dy = torch.randn_like(result[0])
    expected = torch.autograd.grad(result[0], laid, dy)
    saved = {n: t.detach() for n, t in zip(SAVED, (result[1], result[2], result[0]), strict=True)}
    plain = [t.detach() for t in laid]
    grads = backward(*plain, dy, 4, layout, **saved, **arguments)
    for grad, want in zip(grads, expected, strict=False):
        close(grad, want)


def test_gradients_pass_gradcheck() -> None:
    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, sink):
            result = forward(
                query, key, value, 2, "BNSD", sink=sink, atten_mask=TRIANGLE, sparse_mode=2
            )
            ctx.save_for_backward(query, key, value, sink, result[1], result[2], result[0])
            return result[0]

        @staticmethod
        def backward(ctx, dy):
            query, key, value, sink, top, total, out = ctx.saved_tensors
            grads = backward(
                query,
                key,
                value,
                dy,
                2,
                "BNSD",
                sink=sink,
                atten_mask=TRIANGLE,
                sparse_mode=2,
                softmax_max=top,
                softmax_sum=total,
                attention_in=out,
            )
            return *grads[:3], grads[4]

    leaves = inputs(batch=1, heads=2, kv_heads=1, length=3, columns=4, depth=3, value_depth=2)
    leaves = [t.requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(Attention.apply, (*leaves, numbers(2, requires_grad=True)))


# --- dropout -----------------------------------------------------------------------------------


def test_dropout_keeps_the_same_scores_in_both_directions() -> None:
    query, key, _ = inputs(batch=2, length=5, columns=7, depth=8)
    value = torch.eye(7, dtype=torch.float64).expand(2, 2, 7, 7)
    arguments = {"keep_prob": 0.6, "seed": 3, "offset": 8}
    probe = forward(query, key, value, 4, "BNSD", **arguments)
    kept = (probe[0] != 0).double() / 0.6  # the value is the identity: these are probabilities
    assert 0 < (kept == 0).sum() < kept.numel()
    base = [t.requires_grad_() for t in (query, key, numbers(2, 2, 7, 4))]
    dy = numbers(2, 4, 5, 4)
    out = torch.stack(
        [rows(base[0][b], base[1][b], base[2][b], dropped=kept[b])[0] for b in range(2)]
    )
    expected = torch.autograd.grad(out, base, dy)
    plain = [t.detach() for t in base]
    result = forward(*plain, 4, "BNSD", **arguments)
    close(result[0], out)
    assert result[4:] == (3, 8, 2 * 4 * 5 * 7)
    saved = dict(zip(SAVED, (result[1], result[2], result[0]), strict=True))
    for grad, want in zip(
        backward(*plain, dy, 4, "BNSD", **arguments, **saved), expected, strict=False
    ):
        close(grad, want)
    other = backward(*plain, dy, 4, "BNSD", **{**arguments, "offset": 9}, **saved)
    differs(other[2], expected[2])


def test_dropout_draws_by_seed_and_offset() -> None:
    query, key, value = inputs(length=32, columns=64)

    def drawn(**arguments):
        return forward(query, key, value, 4, "BNSD", keep_prob=0.5, **arguments)

    one = drawn(seed=5, offset=0)
    assert torch.equal(one[0], drawn(seed=5, offset=0)[0])
    for seed, offset in ((5, 1), (6, 0), (0, 5), (5 + 2**32, 0)):
        differs(one[0], drawn(seed=seed, offset=offset)[0])
    free = drawn()
    assert free[4] != 0
    assert torch.equal(free[0], drawn(seed=free[4], offset=free[5])[0])


@pytest.mark.parametrize("keep_prob", [0.1, 0.9])
def test_dropout_keeps_its_share(keep_prob) -> None:
    query, key, _ = inputs(batch=1, heads=2, length=64, columns=64, depth=64)
    value = torch.eye(64, dtype=torch.float64).expand(1, 2, 64, 64)
    out = forward(query, key, value, 2, "BNSD", keep_prob=keep_prob, seed=1)[0]
    share = (out != 0).double().mean().item()
    assert abs(share - keep_prob) < 5 * math.sqrt(keep_prob * (1 - keep_prob) / out.numel())


def test_packed_sequences_drop_too() -> None:
    _, joined = packed([3, 4], [5, 6])
    arguments = {"actual_seq_qlen": [3, 7], "actual_seq_kvlen": [5, 11]}
    whole_out = forward(*joined, 4, "TND", **arguments)
    result = forward(*joined, 4, "TND", keep_prob=0.5, seed=2, **arguments)
    differs(result[0], whole_out[0])
    close(result[1], whole_out[1])


# --- the third form ----------------------------------------------------------------------------


def test_the_third_form_takes_lengths_and_gives_seeds_as_tensors() -> None:
    third, third_grad = (REFERENCES[f"npu_fusion_attention{s}_v3"] for s in ("", "_grad"))
    _, joined = packed([3, 4], [5, 6])
    lengths = {
        "actual_seq_qlen": torch.tensor([3, 7]),
        "actual_seq_kvlen": torch.tensor([5, 11]),
    }
    plain = {name: tensor.tolist() for name, tensor in lengths.items()}
    result = third(*joined, 4, "TND", keep_prob=0.7, **lengths)
    assert len(result) == 6
    seed, offset = result[4:]
    assert seed.shape == offset.shape == (1,)
    assert seed.dtype == offset.dtype == torch.int64
    numbers_ = {"seed": int(seed), "offset": int(offset)}
    same = forward(*joined, 4, "TND", keep_prob=0.7, **numbers_, **plain)
    for one, other in zip(result[:3], same[:3], strict=True):
        assert torch.equal(one, other)
    dy = numbers(7, 4, 6)
    saved = dict(zip(SAVED, (result[1], result[2], result[0]), strict=True))
    ours = third_grad(
        *joined, dy, 4, "TND", keep_prob=0.7, seed=seed, offset=offset, **saved, **lengths
    )
    theirs = backward(*joined, dy, 4, "TND", keep_prob=0.7, **numbers_, **saved, **plain)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
