"""The cpu kernel's way for short sequences: exact, and never taken where it would not be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel import dispatch
from accel.attention import choice
from accel_kernels.masks import causal
from accel_kernels.segmented_attention import cpu, reference
from accel_kernels.segmented_attention.call import Call

CASES = [
    (which, wrong, sign, length)
    for which in range(3)
    for wrong in (torch.nan, torch.inf, -torch.inf)
    for sign in (1.0, -1.0)
    for length in (5, 17, 40)
]


def drawn(length: int, sign: float = 0.0, **options: Any) -> list[Tensor]:
    """Query, key and value; with a sign, keys are all of it and queries positive."""
    query, key, value = (torch.randn(1, 2, length, 8) for _ in range(3))
    if sign:
        query, key = query.abs() + 0.1, sign * (key.abs() + 0.1)
    return [tensor.to(**options) for tensor in (query, key, value)]


def gradients(inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out, _ = cpu.segmented_attention(*leaves, mask=causal())
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize(("which", "wrong", "sign", "length"), CASES)
def test_what_is_not_finite_stays_where_it_is_seen(which, wrong, sign, length) -> None:
    """At every place; with a sign for which scores are -inf, so that no output shows them.

    Rows before a key do not see it, and keys behind a query are not seen by it: what these get is
    to the bit what they would get without it.
    """
    inputs = drawn(length, sign)
    for place in range(length):
        dirty = [tensor.clone() for tensor in inputs]
        dirty[which][..., place, 3] = wrong
        grad = torch.randn(1, 2, length, 8)
        if which:
            grad[:, :, place:] = 0.0
        else:
            grad[:, :, place] = 0.0
        clean, found = gradients(inputs, grad), gradients(dirty, grad)
        rows = torch.arange(length)
        far = rows < place if which else rows != place
        for a, b in zip(clean[:2], found[:2], strict=True):  # output and the query's gradient
            torch.testing.assert_close(b[:, :, far], a[:, :, far], rtol=1e-4, atol=1e-5)
        if not which:
            for a, b in zip(clean[2:], found[2:], strict=True):
                torch.testing.assert_close(
                    b[:, :, place + 1 :], a[:, :, place + 1 :], rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_torch_would_sum_on_all_threads_is_checked_too(wrong, threads) -> None:
    inputs = [torch.randn(1, 4, 128, 64).requires_grad_() for _ in range(3)]
    quick = cpu.prepare(*inputs, Call(causal(), 0.125))
    assert quick is not None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert quick(*inputs) is not None
        for which in range(3):
            for place in (0, 77, 127):
                dirty = [tensor.detach().clone() for tensor in inputs]
                dirty[which][0, 3, place, place // 2] = wrong
                assert quick(*(tensor.requires_grad_() for tensor in dirty)) is None
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mask", [None, causal()])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("length", [1, 3, 15, 16, 18])
def test_outputs_are_those_of_the_reference(mask, tracked, wrong, length) -> None:
    for which in range(3):
        inputs = drawn(length)
        inputs[which][..., length // 2, 1] = wrong
        found, _ = cpu.segmented_attention(*(t.requires_grad_(tracked) for t in inputs), mask=mask)
        wanted, _ = reference.segmented_attention(*(t.detach() for t in inputs), mask=mask)
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("length", [4, 33])
@pytest.mark.parametrize("mask", [None, causal()])
def test_takes_what_is_finite(dtype, length, mask) -> None:
    inputs = drawn(length, dtype=dtype)
    quick = cpu.prepare(*inputs, Call(mask, 1.0 / math.sqrt(8)))
    assert quick is not None
    found = quick(*inputs)
    assert found is not None
    assert torch.equal(found, cpu.segmented_attention(*inputs, mask=mask)[0])
    assert torch.is_grad_enabled()


def test_sums_of_large_float16_are_finite() -> None:
    inputs = [torch.full((1, 2, 40, 8), 3000.0, dtype=torch.float16)] * 3
    quick = cpu.prepare(*inputs, Call(causal(), 1e-7))
    assert quick is not None
    assert quick(*inputs) is not None


def test_a_hook_of_one_output_is_not_called_for_another() -> None:
    leaves = [tensor.requires_grad_() for tensor in drawn(20)]
    calls: list[Tensor] = []
    one, _ = cpu.segmented_attention(*leaves, mask=causal())
    two, _ = cpu.segmented_attention(*leaves, mask=causal())
    handle = one.register_hook(calls.append)
    two.sum().backward()
    assert not calls
    one.sum().backward(retain_graph=True)
    assert len(calls) == 1
    handle.remove()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(one.sum(), leaves, create_graph=True)


def test_hooks_may_give_back_other_strides_than_were_saved() -> None:
    """aten's backward would read them by those that it saved; so it is not called."""
    leaves = [tensor.requires_grad_() for tensor in drawn(40)]

    def turned(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT if tensor.dim() == 4 else tensor

    wanted = torch.autograd.grad(cpu.segmented_attention(*leaves, mask=causal())[0].sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, turned):
        out, _ = cpu.segmented_attention(*leaves, mask=causal())
    for one, other in zip(torch.autograd.grad(out.sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(one, other)


class Counting(TorchDispatchMode):
    """Passes every operator on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        return func(*args, **(kwargs or {}))


def known(
    *inputs: Tensor,
    mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> bool:
    """Whether a call is recognised, and has an answer by that."""
    return choice.quick_answer(*inputs, mask, is_causal, scale, backend) is not None


def test_a_kind_of_call_is_recognised_from_its_second_on() -> None:
    dispatch._memo.clear()
    inputs = [tensor.requires_grad_() for tensor in drawn(20)]
    assert not known(*inputs, is_causal=True)
    first = accel.segmented_attention(*inputs, is_causal=True)
    assert known(*inputs, is_causal=True)
    assert torch.equal(accel.segmented_attention(*inputs, is_causal=True), first)
    strided = [torch.randn(1, 20, 2, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    assert known(*strided, is_causal=True)


def changes() -> dict[str, Callable[[list[Tensor]], bool]]:
    """Ways in which a call is of another kind than one of the same causal float32 tensors."""
    dense = torch.ones(20, 20, dtype=torch.bool).tril(3)

    def within(context: Any, inputs: list[Tensor], **options: Any) -> bool:
        with context:
            return known(*inputs, is_causal=True, **options)

    def mapped(inputs: list[Tensor]) -> bool:
        found: list[bool] = []
        torch.func.grad(lambda x: (found.append(known(*inputs, is_causal=True)), x)[1])(
            torch.tensor(1.0)
        )
        return found[0]

    return {
        "full": lambda t: known(*t),
        "dense": lambda t: known(*t, mask=dense),
        "dense and causal": lambda t: known(*t, mask=dense, is_causal=True),
        "a mask of numbers": lambda t: known(*t, mask=causal(), is_causal=True),
        "1 for True": lambda t: known(*t, is_causal=1),  # type: ignore[arg-type]
        "scale": lambda t: known(*t, is_causal=True, scale=0.5),
        "backend": lambda t: known(*t, is_causal=True, backend="reference"),
        "dtype": lambda t: known(*(x.detach().double() for x in t), is_causal=True),
        "one dtype": lambda t: known(t[0], t[1].detach().double(), t[2], is_causal=True),
        "shape": lambda t: known(*(x[:, :, 1:] for x in t), is_causal=True),
        "last stride": lambda t: known(
            *(x.detach().mT.contiguous().mT.requires_grad_() for x in t), is_causal=True
        ),
        "no gradient wanted": lambda t: known(*(x.detach() for x in t), is_causal=True),
        "no_grad": lambda t: within(torch.no_grad(), t),
        "autocast": lambda t: within(torch.autocast("cpu", dtype=torch.bfloat16), t),
        "a mode": lambda t: within(Counting(), t),
        "use_backend": lambda t: within(accel.use_backend(segmented_attention="reference"), t),
        "torch.func": mapped,
        "nothing of tensors": lambda t: known(t[0], t[1], 3, is_causal=True),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("change", changes())
def test_another_kind_of_call_is_not_taken_for_a_known_one(change) -> None:
    dispatch._memo.clear()
    inputs = [tensor.requires_grad_() for tensor in drawn(20)]
    accel.segmented_attention(*inputs, is_causal=True)
    assert known(*inputs, is_causal=True)
    assert not changes()[change](inputs)
    assert known(*inputs, is_causal=True)


def test_the_environment_is_asked_each_time(monkeypatch) -> None:
    dispatch._memo.clear()
    inputs = drawn(20)
    accel.segmented_attention(*inputs)
    assert known(*inputs)
    monkeypatch.setenv("ACCEL_BACKEND", "segmented_attention=reference")
    assert not known(*inputs)
    assert accel.explain("segmented_attention", *inputs).chosen == "reference"
    monkeypatch.delenv("ACCEL_BACKEND")
    assert known(*inputs)


def test_a_kind_is_known_under_the_autocast_that_it_was_met_under() -> None:
    dispatch._memo.clear()
    wide = drawn(20)
    inputs = [tensor.bfloat16() for tensor in wide]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert accel.segmented_attention(*wide).dtype == torch.bfloat16
        assert known(*inputs)  # what the others were cast to
        assert not known(*wide)
        assert torch.equal(accel.segmented_attention(*inputs), accel.segmented_attention(*wide))
        with torch.autocast("cpu", enabled=False):
            assert not known(*inputs)
        with torch.autocast("cpu", dtype=torch.float16):
            assert not known(*inputs)
            assert accel.segmented_attention(*inputs).dtype == torch.float16
    assert not known(*inputs)


def test_a_kind_first_met_under_a_mode_is_found_outside() -> None:
    """Where tensors are fakes, nothing may be made of them that lasts."""
    inputs = [tensor.requires_grad_() for tensor in drawn(40)]
    wanted = accel.segmented_attention(*inputs, is_causal=True)
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), Counting()):
        dispatch._memo.clear()
        with mode:
            accel.segmented_attention(*inputs, is_causal=True)
        assert not known(*inputs, is_causal=True)
        for _ in range(2):
            assert torch.equal(accel.segmented_attention(*inputs, is_causal=True), wanted)
        assert known(*inputs, is_causal=True)


def test_one_head_with_gradients_is_left_to_who_shares_it_among_threads() -> None:
    inputs = [torch.randn(1, 1, 40, 8) for _ in range(3)]
    tracked = [tensor.clone().requires_grad_() for tensor in inputs]
    call, before = Call(causal(), 0.3), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cpu.prepare(*tracked, call)
        assert alone is not None
        assert alone(*tracked) is not None
        torch.set_num_threads(2)
        assert alone(*tracked) is None
        assert cpu.prepare(*tracked, call) is None
        free = cpu.prepare(*inputs, call)
        assert free is not None
        assert free(*inputs) is not None
    finally:
        torch.set_num_threads(before)


def test_a_mask_that_was_changed_is_another() -> None:
    dispatch._memo.clear()
    inputs, mask = drawn(20), causal()
    accel.segmented_attention(*inputs, mask=mask)
    assert known(*inputs, mask=mask)
    mask.align = "top_left"
    assert not known(*inputs, mask=mask)


def test_options_are_checked_after_a_kind_is_known() -> None:
    inputs = drawn(20)
    accel.segmented_attention(*inputs)
    for wrong in ({"dropout_p": False}, {"return_lse": 0}, {"is_causal": 0}, {"softcap": True}):
        with pytest.raises(TypeError):
            accel.segmented_attention(*inputs, **wrong)


def test_values_that_are_not_finite_keep_no_kind_from_being_known() -> None:
    """Nor do they crowd out the others."""
    dispatch._memo.clear()
    inputs = drawn(20)
    accel.segmented_attention(*inputs)
    dirty = drawn(20)
    dirty[2][..., 4, 0] = torch.nan
    for _ in range(20):
        out = accel.segmented_attention(*dirty, is_causal=True)
        assert out[:, :, :4].isfinite().all()
    assert known(*inputs)
    assert known(*inputs, is_causal=True)


def test_grad_mode_is_left_as_it_was() -> None:
    dispatch._memo.clear()
    inputs = drawn(20)
    with torch.no_grad():
        accel.segmented_attention(*inputs, is_causal=True)
        accel.segmented_attention(*inputs, is_causal=True)
        assert not torch.is_grad_enabled()
    for _ in range(2):
        accel.segmented_attention(*inputs, is_causal=True)
        assert torch.is_grad_enabled()
