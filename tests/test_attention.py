"""The public attention call: its checks, autocast, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor

import accel
from accel import AttentionState, BackendError, dispatch
from accel.attention import alibi, causal, documents, key_lengths, relative_bias, window
from accel.attention.choice import Chosen, kernel_of_call
from accel.testing import assert_backward_stable
from accel.testing.cases import attention_formula
from accel_kernels.segmented_attention import SPECS
from accel_kernels.segmented_attention.arguments import request


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


GOOD = [(2, 4, 6, 8)] * 3


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 6, 8)] * 3, r"query must be \[B, H, T, D\], but has shape \(4, 6, 8\)"),
        ([(2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 8)], "value must be"),
        ([(2, 4, 6, 8), (3, 4, 6, 8), (3, 4, 6, 8)], "one batch size"),
        ([(2, 4, 6, 8), (2, 4, 6, 16), (2, 4, 6, 16)], "one head size"),
        ([(2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 7, 8)], "agree in batch, heads and length"),
        ([(2, 4, 6, 8), (2, 4, 6, 8), (2, 2, 6, 8)], "agree in batch, heads and length"),
        ([(2, 4, 6, 8), (2, 3, 6, 8), (2, 3, 6, 8)], "multiple of the key's 3 heads"),
        ([(2, 4, 6, 8), (2, 8, 6, 8), (2, 8, 6, 8)], "multiple of the key's 8 heads"),
        ([(2, 4, 6, 8), (2, 0, 6, 8), (2, 0, 6, 8)], "multiple of the key's 0 heads"),
        ([(2, 4, 6, 0)] * 3, "head size must be at least 1"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message) -> None:
    with pytest.raises(ValueError, match=message):
        accel.segmented_attention(*tensors(*shapes))


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ((torch.float32, torch.float32, torch.float16), "must have one dtype"),
        ((torch.int64,) * 3, "floating dtype, not torch.int64"),
        ((torch.complex64,) * 3, "floating dtype, not torch.complex64"),
    ],
)
def test_dtypes_that_do_not_fit(dtypes, message) -> None:
    inputs = [t.to(d) for t, d in zip(tensors(*GOOD), dtypes, strict=True)]
    with pytest.raises(TypeError, match=message):
        accel.segmented_attention(*inputs)


def test_fp8_is_refused_with_every_backends_reason() -> None:
    inputs = [t.to(torch.float8_e4m3fn) for t in tensors(*GOOD)]
    with pytest.raises(BackendError, match="no kernel can serve") as caught:
        accel.segmented_attention(*inputs)
    assert str(caught.value).count("not float8_e4m3fn") == len(SPECS)


def test_devices_that_do_not_fit() -> None:
    query, key, value = tensors(*GOOD)
    with pytest.raises(ValueError, match="must be on one device, but are on cpu, meta, cpu"):
        accel.segmented_attention(query, key.to("meta"), value)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_tensor(place, autocast) -> None:
    inputs: list = tensors(*GOOD)
    inputs[place] = [1.0]
    with torch.autocast("cpu", enabled=autocast), pytest.raises(TypeError, match="not list"):
        accel.segmented_attention(*inputs)


def test_what_is_no_dense_tensor() -> None:
    query, key, value = tensors(*GOOD)
    with pytest.raises(TypeError, match="query must be a dense tensor"):
        accel.segmented_attention(query.to_sparse(), key, value)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": torch.tensor(0.3, requires_grad=True)},
        {"scale": "0.3"},
        {"is_causal": "no"},
        {"is_causal": 1},
        {"segment_size": 3.0},
        {"segment_size": True},
    ],
    ids=str,
)
def test_arguments_of_the_wrong_type(options) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        accel.segmented_attention(*tensors(*GOOD), **options)


def test_explain_knows_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explanation = accel.explain("segmented_attention", *tensors(*GOOD))
    assert explanation.request.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["reference", "cpu", "sdpa"])
def test_torch_func_grad(backend) -> None:
    query, key, value = tensors(*GOOD)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return accel.segmented_attention(q, k, v, backend=backend).square().sum()

    @torch.enable_grad()
    def by_autograd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.clone().requires_grad_()
        out = attention_formula(q, k, v, is_causal=False)
        return torch.autograd.grad(out.square().sum(), q)[0]

    assert_backward_stable(
        torch.func.grad(loss), query, key, value, reference=by_autograd, gradients=False
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.inf}, "scale must be finite"),
        ({"scale": math.nan}, "scale must be finite"),
        ({"dropout_p": 1.0}, "dropout_p"),
        ({"dropout_p": -0.1}, "dropout_p"),
        ({"softcap": 0.0}, "softcap"),
        ({"softcap": math.inf}, "softcap"),
        ({"segment_size": 0}, "segment_size"),
    ],
)
def test_numbers_that_do_not_fit(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        accel.segmented_attention(*tensors(*GOOD), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": torch.ones(6, 6)}, TypeError, "a mask tensor is bool.*goes into bias="),
        ({"mask": "causal"}, TypeError, "a mask is one of causal, window"),
        ({"mask": torch.ones(5, 6).bool()}, ValueError, "does not broadcast.*T must be 1 or 6"),
        ({"mask": key_lengths([1, 2, 3])}, ValueError, "3 lengths for a batch of 2"),
        ({"mask": documents([0, 9])}, ValueError, "cu_seqlens ends at 9, beyond the length 6"),
        ({"bias": 1.0}, TypeError, "bias must be alibi"),
        ({"bias": torch.ones(6, 6).bool()}, TypeError, "goes into mask="),
        ({"bias": torch.ones(6, 5)}, ValueError, "bias must broadcast to"),
        ({"bias": alibi(torch.ones(3))}, ValueError, r"have slopes \[H\] = \[4\]"),
        ({"bias": relative_bias(torch.ones(2, 3))}, ValueError, "a table for 1 or 4 heads"),
        ({"dropout_seed": 1.5}, TypeError, "dropout_seed must be an integer"),
        ({"dropout_seed": torch.ones(2).long()}, TypeError, "without dimensions"),
        ({"dropout_seed": 1 << 63}, ValueError, "a signed number of 64 bits"),
        ({"mask": causal}, TypeError, r"mask=causal\(...\)"),
        ({"bias": torch.ones(4)}, ValueError, r"slopes go into alibi"),
    ],
    ids=str,
)
def test_masks_and_biases_that_do_not_fit(options, error, message) -> None:
    with pytest.raises(error, match=message):
        accel.segmented_attention(*tensors(*GOOD), **options)


def test_causal_and_a_mask_are_what_both_allow() -> None:
    inputs = tensors(*GOOD)
    both = accel.segmented_attention(*inputs, mask=window(2, 9), is_causal=True)
    assert torch.equal(both, accel.segmented_attention(*inputs, mask=window(2, 9) & causal()))
    assert not torch.equal(both, accel.segmented_attention(*inputs, mask=window(2, 9)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"return_lse": True}, "return_lse"),
        ({"segment_size": 4}, "segment_size"),
        ({"scale": -1.0}, "scale not positive"),
        ({"scale": 0.0}, "scale not positive"),
    ],
)
def test_sdpa_refuses_what_torchs_operator_would_do_otherwise(options, reason) -> None:
    with pytest.raises(BackendError, match=f"does not support {reason}"):
        accel.segmented_attention(*tensors(*GOOD), is_causal=True, **options, backend="sdpa")


def test_causal_is_aligned_at_the_bottom_right() -> None:
    """One last query sees every key; torch's operator would show it the first one only."""
    query, key, value = tensors((1, 1, 1, 4), (1, 1, 9, 4), (1, 1, 9, 4))
    ours = accel.segmented_attention(query, key, value, is_causal=True)
    assert_backward_stable(
        lambda *t: accel.segmented_attention(*t, is_causal=True), query, key, value,
        reference=lambda *t: attention_formula(*t, is_causal=False),
    )  # fmt: skip
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.equal(theirs, value[:, :, :1])
    assert not torch.allclose(ours, theirs)


def test_return_lse_gives_the_attention_state() -> None:
    inputs = tensors(*GOOD)
    state = accel.segmented_attention(*inputs, return_lse=True)
    assert isinstance(state, AttentionState)
    assert torch.equal(state.out, accel.segmented_attention(*inputs))
    assert state.lse.dtype == torch.float32
    assert_backward_stable(
        lambda *t: accel.segmented_attention(*t, return_lse=True).lse, *inputs,
        reference=lambda q, k, v: (q @ k.mT / math.sqrt(8)).logsumexp(-1),
        gradients=False,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "cpu", "sdpa"])
def test_autocast_casts_as_torchs_attention_does(backend) -> None:
    """Mixed inputs are taken to the autocast dtype; the backward may run under autocast too."""
    query, key, value = tensors(*GOOD)
    inputs = [query.requires_grad_(), key.bfloat16().requires_grad_(), value.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = accel.segmented_attention(*inputs, is_causal=True, backend=backend)
        inside = torch.autograd.grad(out.float().sum(), inputs, retain_graph=True)
    outside = torch.autograd.grad(out.float().sum(), inputs)
    assert out.dtype == torch.bfloat16
    plain = accel.segmented_attention(
        *(t.bfloat16() for t in inputs), is_causal=True, backend=backend
    )
    assert torch.equal(out, plain)
    for a, b, t in zip(inside, outside, inputs, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == t.dtype


def test_a_choice_made_under_autocast_is_not_that_of_other_calls() -> None:
    """Decoding asks for a kernel before it casts, with tensors of the same dtype in both."""
    page = torch.randn(1, 130, 2, 16)

    def chosen() -> Chosen:
        key = page.transpose(1, 2)
        return kernel_of_call(
            key, key, key, None, False, None, 0.0, None, None, None, None, True, None
        )

    dispatch._memo.clear()
    before = chosen()
    with torch.autocast("cpu", dtype=torch.float16):
        cast = chosen()
    assert cast.kernel is chosen_for(torch.float16)
    assert before.kernel is chosen().kernel is chosen_for(torch.float32)


def chosen_for(dtype: torch.dtype) -> object:
    tensor = torch.randn(1, 2, 130, 16).to(dtype)
    asked = request(tensor, tensor, tensor, return_lse=True)
    return dispatch._choose(asked, None).load()


def test_autocast_leaves_float64_alone() -> None:
    inputs = tensors(*GOOD, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = accel.segmented_attention(*inputs)
    assert torch.equal(out, accel.segmented_attention(*inputs))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("needed", [(True, False, False), (False, True, True)])
def test_only_wanted_gradients(backend, needed) -> None:
    inputs = [t.requires_grad_(n) for t, n in zip(tensors(*GOOD), needed, strict=True)]
    accel.segmented_attention(*inputs, is_causal=True, backend=backend).sum().backward()
    assert [t.grad is not None for t in inputs] == list(needed)


@pytest.mark.parametrize("backend", ["reference", "cpu", "sdpa"])
def test_the_same_bits_for_any_thread_count(backend) -> None:
    leaves = [t.requires_grad_() for t in tensors(*[(2, 4, 130, 16)] * 3)]
    options = {} if backend == "sdpa" else {"segment_size": 48}
    grad = torch.randn(2, 4, 130, 16)

    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            out = accel.segmented_attention(*leaves, is_causal=True, backend=backend, **options)
            return [out, *torch.autograd.grad(out, leaves, grad)]
        finally:
            torch.set_num_threads(before)

    for one, two in zip(run(1), run(2), strict=True):
        assert torch.equal(one, two)
