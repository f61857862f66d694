"""The cpu kernel: its plan, its two ways of computing, and what must not change its bits."""

import random

import pytest
import torch
from torch import Tensor

from accel.testing import assert_backward_stable
from accel.testing.cases import attention_formula
from accel_kernels.masks import (
    Dense,
    Mask,
    RowIntervals,
    Sizes,
    causal,
    dense_visibility,
    documents,
    key_lengths,
    prefix,
    visibility,
    window,
)
from accel_kernels.segmented_attention import cpu
from accel_kernels.segmented_attention.call import Call, Dropout, alibi
from accel_kernels.segmented_attention.cpu import few as cpu_few
from accel_kernels.segmented_attention.cpu import fused as cpu_aten
from accel_kernels.segmented_attention.cpu import runs as cpu_runs
from accel_kernels.segmented_attention.cpu import tiles as cpu_tiles
from accel_kernels.segmented_attention.cpu.runs import Run, plan

CPU = torch.device("cpu")


def masks(sizes: Sizes, draw: random.Random) -> list[Mask | None]:
    """One of each kind, with ends wherever chance puts them."""
    _, _, t, s = sizes
    ends = sorted(draw.randrange(min(t, s) + 1) for _ in range(4))
    cut = [0, *ends, min(t, s)]
    lengths = [draw.randrange(s + 1) for _ in range(sizes.batch)]
    width = draw.choice([0, 1, 5, 30, 200])
    random_rows = torch.stack(
        [torch.randint(0, s // 2 + 1, (1, t)), torch.randint(s // 2, s + 1, (1, t))]
    )
    return [
        None,
        causal(),
        causal("top_left"),
        window(width, draw.choice([0, 3, None]), sinks=draw.choice([0, 4])),
        window(None, 3),
        documents(cut),
        documents(cut, within=causal()),
        documents(cut, within=window(width, 0)),
        documents(cut) | causal(),
        causal() | prefix(min(5, s)),
        key_lengths(lengths),
        causal() & key_lengths(lengths),
        RowIntervals(random_rows[None].int()),
        Dense(torch.rand(t, s) > 0.5),
    ]


def pattern(run: Run) -> Tensor:
    row, key = torch.arange(run.rows)[:, None], torch.arange(run.keys)
    if run.kind == "diagonal":
        return key <= row
    if run.kind == "band":
        return (key >= row) & (key < row + run.width) if run.rises else key >= row
    return torch.ones(run.rows, run.keys, dtype=torch.bool)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("limit", [None, 1, 13, 64])
def test_a_plan_covers_each_visible_score_once(seed, limit) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    lengths = [1, 2, 11] if limit == 1 else [1, 2, 63, 150]
    sizes = Sizes(2, 1, draw.choice(lengths), draw.choice(lengths))
    for mask in masks(sizes, draw):
        seen = visibility(mask, sizes, CPU)
        wanted = dense_visibility(seen, sizes, CPU).expand(sizes)[:, 0]
        covered = torch.zeros(wanted.shape, dtype=torch.int)
        for run in plan(mask, seen, sizes, limit):
            assert limit is None or max(run.rows, run.keys) <= max(limit, 1), run
            for n in range(run.tiles):
                rows = slice(run.q0 + n * run.q_step, run.q0 + n * run.q_step + run.rows)
                keys = slice(run.k0 + n * run.k_step, run.k0 + n * run.k_step + run.keys)
                entries = slice(None) if run.batch is None else slice(run.batch, run.batch + 1)
                here = covered[entries, rows, keys]
                assert here.shape[1:] == (run.rows, run.keys), f"{run} is beyond the matrix"
                own = wanted[entries, rows, keys] if run.kind == "masked" else pattern(run)
                # aten would report a row that sees nothing of a tile with log-sum-exp 0
                assert run.kind == "masked" or bool(own.any(-1).all()), run
                here += own.int()
        assert torch.equal(covered, wanted.int()), mask


def test_wide_bands_and_long_plans_stay_small() -> None:
    sizes = Sizes(1, 1, 1 << 20, 1 << 20)
    causal_plan = plan(causal(), visibility(causal(), sizes, CPU), sizes, None)
    assert len(causal_plan) == 1
    cut = plan(causal(), visibility(causal(), sizes, CPU), sizes, 2048)
    assert len(cut) == 512  # the diagonal, and one run a block of keys below it
    for mask in (window(511, 0), window(4095, 0, sinks=4), documents(range_of(0, 1 << 20, 512))):
        assert len(plan(mask, visibility(mask, sizes, CPU), sizes, 2048)) < 3000


def range_of(start: int, stop: int, step: int) -> list[int]:
    return list(range(start, stop + 1, step))


def tensors(*shape_q: int, keys: int, key_heads: int, dtype=torch.float32) -> list[Tensor]:
    batch, _, _, size = shape_q
    shapes = (shape_q, (batch, key_heads, keys, size), (batch, key_heads, keys, size))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def gradients(inputs: list[Tensor], call: Call, grad: Tensor, grad_lse: Tensor | None = None):
    out, lse = cpu.forward(*inputs, call)
    found = cpu.backward(grad, grad_lse, *inputs, out, lse, call)
    return [out, lse, *(part for part in found if part is not None)]


CALLS = {
    "plain": Call(None, 0.3),
    "causal in segments": Call(causal(), 0.3, segment_size=64),
    "window": Call(window(30, 0, sinks=2), 0.3),
    "wide window in segments": Call(window(150, 0), 0.3, segment_size=64),
    "documents": Call(documents([0, 70, 140, 210, 300], within=causal()), 0.3),
    "grid": Call(Dense(torch.rand(300, 300, generator=torch.Generator().manual_seed(0)) > 0.5), 1),
    "softcap": Call(causal(), 0.3, softcap=2.0),
    "alibi": Call(window(40, 3), 0.3, bias=alibi(torch.tensor([0.1, 0.2]))),
    "dropout": Call(causal(), 0.3, dropout=Dropout(0.2, 5)),
}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_bits_do_not_depend_on_threads(name, heads, dtype) -> None:
    """With one key head aten's backward is one task, and MKL would share it among threads."""
    if name == "alibi" and heads[0] == 1:
        pytest.skip("two slopes")
    inputs = tensors(1, heads[0], 300, 16, keys=300, key_heads=heads[1], dtype=dtype)
    grad = torch.randn(1, heads[0], 300, 16).to(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 16, 64):
            torch.set_num_threads(threads)
            found.append(gradients(inputs, CALLS[name], grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("length", [5, 70, 300])
def test_bits_of_the_quick_way_do_not_depend_on_threads(heads, length) -> None:
    inputs = tensors(1, heads[0], length, 16, keys=length, key_heads=heads[1])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 16, 64):
            torch.set_num_threads(threads)
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            out, _ = cpu.segmented_attention(*leaves, mask=causal(), scale=0.3)
            free, _ = cpu.segmented_attention(*inputs, mask=causal(), scale=0.3)
            found.append([out, free, *torch.autograd.grad(out.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in CALLS if name != "alibi"])
def test_bits_do_not_depend_on_the_rest_of_the_batch(name, dtype) -> None:
    """For alibi the gradient of the slopes is a sum over the batch."""
    inputs = tensors(7, 2, 300, 16, keys=300, key_heads=1, dtype=dtype)
    grad = torch.randn(7, 2, 300, 16).to(dtype)
    together = gradients(inputs, CALLS[name], grad)
    for entry in (0, 4):
        call = CALLS[name]
        if call.dropout is not None:
            first = (entry, 0, 0, 0)
            call = call._replace(dropout=Dropout(0.2, 5, (2, 300, 300), first))
        one = slice(entry, entry + 1)
        alone = gradients([tensor[one] for tensor in inputs], call, grad[one])
        assert all(torch.equal(a[one], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, causal()], ids=str)
@pytest.mark.parametrize("length", [70, 255, 256, 301, 512])
def test_one_head_has_the_same_bits_alone_and_in_a_batch(length, mask, dtype) -> None:
    """Its rows are cut for the sake of threads, by their number alone."""
    inputs = tensors(3, 1, length, 16, keys=length, key_heads=1, dtype=dtype)
    grad = torch.randn(3, 1, length, 16).to(dtype)

    def results(batch: slice) -> list[Tensor]:
        leaves = [tensor[batch].clone().requires_grad_() for tensor in inputs]
        out, _ = cpu.segmented_attention(*leaves, mask=mask)
        return [out, *torch.autograd.grad(out, leaves, grad[batch])]

    before, together = torch.get_num_threads(), results(slice(None))
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    out, _ = cpu.segmented_attention(*exact, mask=mask)
    wanted = [out, *torch.autograd.grad(out, exact, grad.double())]
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = results(slice(1, 2))
            assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))
    finally:
        torch.set_num_threads(before)
    close = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for found, true in zip(together, wanted, strict=True):
        assert (found.double() - true).norm() < close * true.norm()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_few_queries_of_grouped_heads_against_split_keys(batch, queries, dtype, monkeypatch):
    monkeypatch.setattr(cpu_few, "SPLIT_KEYS", 40)
    inputs = tensors(batch, 6, queries, 16, keys=203, key_heads=2, dtype=dtype)

    def out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert cpu_few.is_few(query, key)
        return cpu.segmented_attention(query, key, value, mask=causal())[0]

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        place = torch.arange(queries)[:, None] + 203 - queries
        return attention_formula(query, key, value, seen=torch.arange(203) <= place)

    leaves = [tensor.requires_grad_() for tensor in inputs]
    assert_backward_stable(out, *leaves, reference=formula)


def test_splits_give_the_same_bits_alone_and_in_a_batch(monkeypatch) -> None:
    monkeypatch.setattr(cpu_few, "SPLIT_KEYS", 40)
    query, key, value = tensors(7, 4, 1, 16, keys=203, key_heads=2)
    together = cpu.forward(query, key, value, Call(None, 0.3))
    for entry in range(7):
        one = slice(entry, entry + 1)
        alone = cpu.forward(query[one], key[one], value[one], Call(None, 0.3))
        assert all(torch.equal(a[one], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("tracked", [False, True])
def test_what_is_not_finite_reaches_only_rows_that_see_it(bad, where, tracked) -> None:
    """Inside the diagonal tile, in output and gradients, with and without a graph."""
    query, key, value = tensors(1, 2, 100, 16, keys=100, key_heads=2)
    clean = [t.clone().requires_grad_(tracked) for t in (query, key, value)]
    (key if where == "key" else value)[:, :, 60] = bad
    dirty = [t.clone().requires_grad_(tracked) for t in (query, key, value)]
    outs = [cpu.segmented_attention(*t, mask=causal())[0] for t in (clean, dirty)]
    assert_close_before(outs, 60)
    if bad is torch.nan or where == "value":
        assert not torch.isfinite(outs[1][:, :, 60:]).any()
    if not tracked:
        return
    grad = torch.randn(outs[0].shape)
    grad[:, :, 60:] = 0.0
    for out in outs:
        out.backward(grad)
    assert_close_before([t[0].grad for t in (clean, dirty)], 60)


def assert_close_before(pair: list[Tensor], row: int) -> None:
    left, right = (tensor[:, :, :row] for tensor in pair)
    torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-5)


def test_nothing_that_is_hidden_is_read_as_a_number() -> None:
    """Padding full of NaN changes no bit beside the formula's own rounding, in any tile kind."""
    inputs = tensors(2, 2, 130, 16, keys=130, key_heads=1)
    lengths = [90, 40]
    dirty = [tensor.clone() for tensor in inputs]
    for entry, length in enumerate(lengths):
        dirty[1][entry, :, length:] = torch.nan
        dirty[2][entry, :, length:] = torch.inf
    grad = torch.randn(2, 2, 130, 16)
    for mask in (key_lengths(lengths), key_lengths(lengths) & window(20, 0)):
        clean = gradients(inputs, Call(mask, 0.3), grad)
        for a, b in zip(clean, gradients(dirty, Call(mask, 0.3), grad), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_rows_whose_scores_are_all_minus_infinity_are_empty() -> None:
    """aten says log-sum-exp 0 there, which a row may have by right: the other one has."""
    query, key, value = torch.ones(1, 1, 2, 4), torch.full((1, 1, 1, 4), -torch.inf), torch.ones(1)
    query[:, :, 1] = 0.0
    key[..., 1:] = 0.0
    out, lse = cpu.forward(query[:, :, :1], key, value.expand(1, 1, 1, 4), Call(None, 1.0))
    assert lse.tolist() == [[[-torch.inf]]]
    assert not out.any()
    key[..., 0] = 5.0
    assert cpu.forward(query, key, value.expand(1, 1, 1, 4), Call(None, 1.0))[1][0, 0, 1] == 0


def test_error_of_bfloat16_gradients_does_not_grow_with_length(monkeypatch) -> None:
    """Tiles of 256, so that 4096 is to them what 32,768 is to those of 2048."""
    monkeypatch.setattr(cpu, "BACKWARD_TILE_ONE_HEAD", 256)

    def errors(length: int) -> list[float]:
        inputs = tensors(1, 1, length, 32, keys=length, key_heads=1, dtype=torch.bfloat16)
        grad = torch.randn(1, 1, length, 32).bfloat16()
        exact = [tensor.double() for tensor in (*inputs, grad)]
        call = Call(causal(), 32**-0.5)
        found = gradients(inputs, call, grad)[2:]
        wanted = gradients(exact[:3], call, exact[3])[2:]
        return [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]

    short, long = errors(256), errors(4096)
    assert all(b < 1.2 * a for a, b in zip(short, long, strict=True)), (short, long)


def test_a_second_derivative_of_the_quick_way_is_refused_in_words() -> None:
    leaves = [t.requires_grad_() for t in tensors(1, 2, 20, 8, keys=20, key_heads=2)]
    out, _ = cpu.segmented_attention(*leaves)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(out.sum(), leaves, create_graph=True)
    out, _ = cpu.segmented_attention(*leaves, return_lse=True)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), leaves[1])[0].abs().sum() > 0


def test_what_aten_can_compute_it_computes(monkeypatch) -> None:
    """Masks without softcap, bias or dropout never come to the formulas while all is finite."""
    for name in ("forward", "backward"):
        monkeypatch.setattr(cpu_tiles, name, lambda *_: pytest.fail("computed by formula"))
    inputs = tensors(2, 2, 90, 16, keys=90, key_heads=1)
    for mask in masks(Sizes(2, 2, 90, 90), random.Random(1)):
        gradients(inputs, Call(mask, 0.3), torch.randn(2, 2, 90, 16))


def test_empty_tiles_are_not_touched(monkeypatch) -> None:
    """Scores computed for a window and for documents, counted in tiles given to aten."""
    counted = 0

    def counting(rows, keys, values, scale, diagonal=False, added=None):
        nonlocal counted
        counted += rows.shape[0] * rows.shape[2] * keys.shape[2]
        return cpu_few.attend(rows, keys, values, scale, diagonal, added)

    monkeypatch.setattr(cpu_aten, "attend", counting)
    inputs = tensors(1, 2, 2048, 8, keys=2048, key_heads=2)
    cpu.forward(*inputs, Call(documents(range_of(0, 2048, 256)), 0.3))
    assert counted == 8 * 256 * 256
    counted = 0
    cpu.forward(*inputs, Call(window(127, 0), 0.3))
    assert counted < 2048 * (128 + cpu_runs.BAND_ROWS)
