"""What happens when something is changed, dual, odd or not a number where nobody looks."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import accel
from accel.attention import documents, key_lengths, window

OWN = ["reference", "cpu"]


def draw(length: int, heads: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(1, heads, length, 8).to(dtype) for _ in range(3)]


def test_a_mask_that_was_changed_is_not_served_to_another_call() -> None:
    inputs = draw(30)
    mask = window(3)
    accel.segmented_attention(*inputs, mask=mask)
    expected = accel.segmented_attention(*inputs, mask=window(3), backend="reference")
    mask.left = 15
    found = accel.segmented_attention(*inputs, mask=window(3))
    assert torch.allclose(found, expected, atol=1e-5)  # and not the wider window, off by 1
    changed = accel.segmented_attention(*inputs, mask=mask)
    wide = accel.segmented_attention(*inputs, mask=window(15), backend="reference")
    assert torch.allclose(changed, wide, atol=1e-5)


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("what", ["seed", "dense", "lengths"])
def test_the_backward_refuses_a_mask_or_seed_that_was_changed(what, backend) -> None:
    leaves = [t.requires_grad_() for t in draw(30)]
    changed = {
        "seed": torch.tensor(5),
        "dense": torch.ones(30, 30, dtype=torch.bool),
        "lengths": torch.tensor([20]),
    }[what]
    if what == "seed":
        options = {"dropout_p": 0.5, "dropout_seed": changed}
    else:
        options = {"mask": changed if what == "dense" else key_lengths(changed)}
    out = accel.segmented_attention(*leaves, **options, return_lse=True, backend=backend).out
    changed.zero_()
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        out.sum().backward()


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("length", [1, 7, 15, 40])
@pytest.mark.parametrize("mask", [None, window(3, 0), documents([0, 1])], ids=str)
def test_a_row_of_nothing_but_nan_is_nan(length, mask, backend) -> None:
    query, key, value = draw(length)
    query[:, :, 0] = math.nan
    state = accel.segmented_attention(
        query, key, value, mask=mask, return_lse=True, backend=backend
    )
    assert state.out[:, :, 0].isnan().all()
    assert state.lse[:, :, 0].isnan().all()
    out = accel.segmented_attention(query, key, value, mask=mask, backend=backend)
    assert out[:, :, 0].isnan().all()
    assert torch.isfinite(out[:, :, 1:]).all()


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_cap_lets_nothing_hidden_into_gradients(wrong, backend) -> None:
    query, key, value = draw(40)
    key[:, :, 25:] = wrong
    leaves = [t.requires_grad_() for t in (query, key, value)]
    out = accel.segmented_attention(*leaves, mask=key_lengths([25]), softcap=2.0, backend=backend)
    out.square().sum().backward()
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("backend", OWN)
def test_a_row_that_is_not_finite_reaches_no_key_that_it_does_not_see(backend) -> None:
    query, key, value = draw(40)
    query[:, :, 3] = math.nan  # of the first document
    leaves = [t.requires_grad_() for t in (query, key, value)]
    out = accel.segmented_attention(*leaves, mask=documents([0, 20, 40]), backend=backend)
    out.square().sum().backward()
    for leaf in leaves:
        assert torch.isfinite(leaf.grad[:, :, 20:]).all()


# torch's own formulas for tangents are TorchScript.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_mode_is_refused_and_not_dropped(dtype) -> None:
    query, key, value = draw(20, dtype=dtype)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match=r"no forward-mode derivative \(jvp\)"):
            accel.segmented_attention(dual, key, value, softcap=2.0)


@pytest.mark.parametrize("size", [65536.0, 1e5, 1e-8])
def test_gradients_of_the_lse_that_float16_does_not_hold(size) -> None:
    grads = []
    for backend in OWN:
        leaves = [t.requires_grad_() for t in draw(20, dtype=torch.float16)]
        torch.manual_seed(0)
        leaves = [torch.randn(1, 2, 20, 8).half().requires_grad_() for _ in range(3)]
        lse = accel.segmented_attention(*leaves, return_lse=True, backend=backend).lse
        (lse[0, 0, 3] * size).backward()
        grads.append(leaves[0].grad)
    assert torch.isfinite(grads[1]).all()
    assert (grads[1] != 0).any() == (grads[0] != 0).any()
    assert torch.allclose(grads[0], grads[1], rtol=2**-9, atol=2**-24)


@pytest.mark.parametrize("backend", OWN)
def test_no_heads(backend) -> None:
    leaves = [torch.randn(2, 0, 3, 8, requires_grad=True) for _ in range(3)]
    accel.segmented_attention(*leaves, mask=window(1), backend=backend).sum().backward()
    assert all(leaf.grad.shape == (2, 0, 3, 8) for leaf in leaves)


def test_two_scales_in_compiled_code() -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return accel.segmented_attention(q, k, v, scale=scale, softcap=3.0 * scale, backend="cpu")

    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    inputs = draw(9)
    for scale in (0.3, 0.4, 0.5):
        assert torch.equal(compiled(*inputs, scale), attention(*inputs, scale))
