"""The compiled kernel's way for calls of a known kind: the same bits as any other call of it."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import accel
from accel import dispatch
from accel.attention import choice
from accel_kernels.masks import Mask, causal, documents, key_lengths
from accel_kernels.segmented_attention import cpu_amx
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.formula import whole_attention

ABSENT = cpu_amx.why_absent(torch.float32)
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=f"cpu_amx: {ABSENT}")
NO_BF16 = cpu_amx.why_absent(torch.bfloat16)
BOTH = [
    torch.float32,
    pytest.param(
        torch.bfloat16, marks=pytest.mark.skipif(NO_BF16 is not None, reason=f"cpu_amx: {NO_BF16}")
    ),
]

# (query heads, key heads, queries, keys, head size, value head size), mask
KINDS = [
    ((2, 2, 1, 1, 8, 8), None),
    ((1, 1, 33, 33, 64, 64), causal()),
    ((4, 2, 100, 163, 33, 40), causal()),
    ((4, 2, 163, 100, 40, 33), causal()),
    ((3, 3, 70, 70, 16, 16), causal("top_left")),
    ((8, 1, 1, 9000, 64, 64), causal()),
    ((8, 2, 5, 300, 16, 24), None),
]


def drawn(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    heads, key_heads, queries, keys, width, value_width = sizes
    shapes = [(heads, queries, width), (key_heads, keys, width), (key_heads, keys, value_width)]
    return [torch.randn(2, *shape).to(dtype) for shape in shapes]


def leaves(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in inputs]


def quick(inputs: list[Tensor], mask: Mask | None, scale: float = 0.2) -> Tensor:
    way = cpu_amx.prepare(*inputs, Call(mask, scale))
    assert way is not None
    out = way(*inputs)
    assert out is not None
    return out


def any_other(inputs: list[Tensor], mask: Mask | None, scale: float = 0.2) -> Tensor:
    return cpu_amx.segmented_attention(*inputs, mask=mask, scale=scale)[0]


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize(("sizes", "mask"), KINDS, ids=str)
def test_bits_are_those_of_any_other_call(sizes, mask, dtype) -> None:
    inputs = drawn(sizes, dtype)
    assert torch.equal(quick(inputs, mask), any_other(inputs, mask))
    grad, found = torch.randn(2, *sizes[:1], sizes[2], sizes[5]).to(dtype), []
    for compute in (quick, any_other):
        given = leaves(inputs)
        out = compute(given, mask)
        found.append((out.detach(), *torch.autograd.grad(out, given, grad)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same numbers in other places."""
    wide = torch.empty(*tensor.shape[:3], 3 * tensor.shape[3] + 1)[..., 1 : tensor.shape[3] + 1]
    return {
        "heads inside": tensor.transpose(1, 2).contiguous().transpose(1, 2),
        "part of rows": wide.copy_(tensor),
        "batch behind": tensor.movedim(0, 2).contiguous().movedim(2, 0),
        "one for all": tensor[:1].expand_as(tensor),
    }


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("quickly", [True, False])
def test_windows_over_one_row_overlap(dtype, quickly) -> None:
    """Both last dimensions have stride 1: torch would lay out what is like them by columns."""
    rows = torch.randn(2, 2, 103, dtype=dtype).unfold(-1, 64, 1)
    assert rows.stride()[2:] == (1, 1)
    assert torch.empty_like(rows).stride(3) != 1
    plain = rows.contiguous()
    grad, found = torch.randn_like(plain), []
    for which in range(4):
        inputs = [rows if n == which else plain for n in range(3)]
        given = leaves(inputs) if which < 3 else leaves([plain] * 3)
        out = (quick if quickly else any_other)(given, causal())
        found.append([out.detach(), *torch.autograd.grad(out, given, grad)])
    for one in found[:3]:
        assert all(map(torch.equal, one, found[3]))


@pytest.mark.parametrize("layout", ["heads inside", "part of rows", "batch behind", "one for all"])
@pytest.mark.parametrize("which", range(4), ids=["query", "key", "value", "gradient"])
def test_a_kind_serves_every_layout_of_rows(layout, which) -> None:
    sizes = (4, 2, 50, 60, 16, 16)
    inputs = [*drawn(sizes), torch.randn(2, 4, 50, 16)]
    way = cpu_amx.prepare(*leaves(inputs[:3]), Call(causal(), 0.2))
    assert way is not None
    inputs[which] = layouts(inputs[which])[layout]
    *given, grad = inputs
    plain = [tensor.contiguous() for tensor in inputs]
    found = []
    for case, last in ((given, grad), (plain[:3], plain[3])):
        tracked = leaves(case)
        out = way(*tracked)
        assert out is not None
        found.append((out.detach(), *torch.autograd.grad(out, tracked, last)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_gradient_by_columns_or_negated_is_read_as_it_is() -> None:
    inputs = leaves(drawn((2, 2, 20, 20, 8, 8)))
    out = quick(inputs, causal())
    grad = torch.randn(2, 2, 20, 8)
    wanted = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    negated = torch.complex(torch.zeros_like(grad), -grad).conj().imag
    assert negated.is_neg()
    for other in (grad.mT.contiguous().mT, negated):
        found = torch.autograd.grad(out, inputs, other, retain_graph=True)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    ("sizes", "mask"),
    [
        ((2, 2, 0, 5, 8, 8), None),
        ((2, 2, 5, 0, 8, 8), None),
        ((2, 2, 40, 40, 8, 8), documents([0, 20, 40])),
        ((2, 2, 40, 40, 8, 8), key_lengths([40, 7])),
        ((2, 2, 40, 41, 8, 8), causal("top_left")),
    ],
    ids=str,
)
def test_what_is_no_kind_has_no_way(sizes, mask) -> None:
    assert cpu_amx.prepare(*drawn(sizes), Call(mask, 0.2)) is None


def test_rows_by_columns_and_negated_ones_have_no_way() -> None:
    inputs = drawn((2, 2, 20, 20, 8, 8))
    negated = torch.complex(inputs[1], inputs[1]).conj().imag
    for which, other in ((0, inputs[0].mT.contiguous().mT), (1, negated)):
        changed = [*inputs]
        changed[which] = other
        assert cpu_amx.prepare(*changed, Call(None, 0.2)) is None


def test_second_derivatives_are_those_of_the_formula() -> None:
    inputs = [tensor.double() for tensor in drawn((2, 1, 5, 6, 4, 3))]
    grad, other = torch.randn(2, 2, 5, 3), [torch.randn_like(tensor) for tensor in inputs]

    def second(compute: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        first = torch.autograd.grad(
            compute(given), given, grad.to(dtype), create_graph=True, materialize_grads=True
        )
        total = sum((a * b.to(dtype)).sum() for a, b in zip(first, other, strict=True))
        return torch.autograd.grad(total, given)

    found = second(lambda t: quick(t, causal()), torch.float32)
    exact = second(lambda t: whole_attention(*t, Call(causal(), 0.2))[0], torch.float64)
    for one, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_mask_changed_afterwards_changes_no_derivative() -> None:
    mask, inputs = causal("top_left"), leaves(drawn((1, 1, 6, 6, 4, 4)))
    way = cpu_amx.prepare(*inputs, Call(mask, 0.2))
    assert way is not None
    mask.align = "nonsense"  # type: ignore[attr-defined]
    out = way(*inputs)
    assert out is not None
    (first,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    assert torch.autograd.grad(first.sum(), inputs[0])[0].isfinite().all()


def test_batched_gradients() -> None:
    inputs = leaves(drawn((2, 2, 20, 20, 8, 8)))
    out, grads = quick(inputs, causal()), torch.randn(3, 2, 2, 20, 8)
    found = torch.autograd.grad(out, inputs, grads, is_grads_batched=True, retain_graph=True)
    for n in range(3):
        wanted = torch.autograd.grad(out, inputs, grads[n], retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[n], other)


# torch's own formulas for tangents are TorchScript.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_forward_mode_derivatives_are_not_lost() -> None:
    inputs, tangent = drawn((2, 2, 40, 40, 8, 8)), torch.randn(2, 2, 40, 8)
    way = cpu_amx.prepare(*inputs, Call(None, 0.2))
    assert way is not None
    with forward_ad.dual_level():
        assert way(forward_ad.make_dual(inputs[0], tangent), *inputs[1:]) is None


@pytest.mark.parametrize("which", range(3))
def test_an_input_changed_before_the_backward_is_an_error(which) -> None:
    inputs = leaves(drawn((2, 2, 40, 40, 8, 8)))
    copies = [tensor.clone() for tensor in inputs]
    out = quick(copies, causal())
    with torch.no_grad():
        copies[which].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_output_may_be_changed_in_place_and_is_then_an_error_in_the_backward() -> None:
    out = quick(leaves(drawn((8, 1, 1, 300, 16, 16))), None)
    out.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_a_backward_needed_is_released_after_it() -> None:
    inputs = leaves(drawn((2, 2, 40, 40, 8, 8)))
    query = inputs[0] * 2.0
    held = weakref.ref(query)
    out = quick([query, *inputs[1:]], causal())
    total = out.sum()
    del query, out
    gc.collect()
    assert held() is not None
    total.backward()
    gc.collect()
    assert held() is None


def test_saved_tensors_pass_through_hooks() -> None:
    inputs, packed = leaves(drawn((2, 2, 40, 40, 8, 8))), []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.shape)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = quick(inputs, causal())
    assert len(packed) == 5
    found = torch.autograd.grad(out.sum(), inputs)
    assert all(map(torch.equal, found, torch.autograd.grad(quick(inputs, causal()).sum(), inputs)))


def other_strides(tensor: Tensor) -> Tensor:
    """The same numbers by columns; of a log-sum-exp as parts of longer rows."""
    if tensor.dim() == 4:
        return tensor.mT.contiguous().mT
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


def test_hooks_may_give_back_other_strides_than_were_saved() -> None:
    inputs = leaves(drawn((2, 2, 40, 40, 8, 8)))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, other_strides):
        out = quick(inputs, causal())
    found = torch.autograd.grad(out.sum(), inputs)
    assert all(map(torch.equal, found, torch.autograd.grad(quick(inputs, causal()).sum(), inputs)))


def test_threads_of_the_caller_share_a_kind() -> None:
    inputs = [drawn((4, 4, 96, 96, 32, 32)) for _ in range(4)]
    way = cpu_amx.prepare(*inputs[0], Call(causal(), 0.2))
    assert way is not None
    wanted = [any_other(one, causal()) for one in inputs]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(50):
            found = way(*inputs[n])
            if found is None or not torch.equal(found, wanted[n]):
                wrong.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("heads", [1, 16])
@pytest.mark.parametrize("length", [32, 33, 128])
def test_a_user_gets_it_from_the_second_call_on(dtype, heads, length) -> None:
    dispatch._memo.clear()
    inputs = leaves(drawn((heads, heads, length, length, 16, 16), dtype))
    by = "cpu" if dtype == torch.float32 and length <= 32 else "cpu_amx"
    assert accel.explain("segmented_attention", *inputs, is_causal=True).chosen == by
    first = accel.segmented_attention(*inputs, is_causal=True)
    second = choice.quick_answer(*inputs, None, True, None, None)
    assert second is not None
    assert torch.equal(first, second)
