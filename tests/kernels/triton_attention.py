"""Our Triton kernel: run by `test_attention_triton`, in a process of its own.

In Triton's interpreter where there is no GPU, for whose sake lengths are short:

    TRITON_INTERPRET=1 pytest tests/kernels/triton_attention.py
"""

import inspect
import math

import pytest
import torch
from torch import Tensor

from accel.attention import alibi, causal, window
from accel.testing import assert_backward_stable
from accel_kernels import philox
from accel_kernels.masks import RowIntervals, Sizes, visibility, visible
from accel_kernels.segmented_attention import reference
from accel_kernels.segmented_attention.call import Bias, Call, Dropout
from accel_kernels.segmented_attention.tiles import EMPTY, tile_kinds
from accel_kernels.segmented_attention.triton import backward as triton_backward
from accel_kernels.segmented_attention.triton import kernel
from accel_kernels.segmented_attention.triton import launch as triton_launch
from tests.kernels.attention_cases import (
    BIASES,
    MASKS,
    Case,
    bias_of,
    bias_tensor,
    draw,
    kept,
    mask_of,
    seen,
    whole_bias,
)
from tests.kernels.block_masks import MASKS as COUNTED
from tests.kernels.block_masks import gappy

SEED = 11
# NumPy's, of the interpreter: products of zero and infinity, differences of infinities.
strange = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture
def place(device) -> torch.device:
    """Where these kernels run: the CPU if they are interpreted, else a GPU."""
    there = device.torch_device
    if there.type not in (("cpu",) if triton_launch.INTERPRETING else ("cuda", "xpu")):
        pytest.skip("Triton interprets on the CPU only, and compiles for GPUs only")
    return there


def case_of(name: str, heads: int = 2, key_heads: int = 1, **options) -> Case:
    sizes = {"queries": 33, "keys": 47, **options}
    return Case(name, heads, key_heads, segment_size=None, **sizes)


PLAIN = case_of("plain, grouped, two head sizes", 4, 2, head_size=20, value_head_size=5)
EVERYTHING = case_of(
    "everything", mask="prefix", bias="relative", softcap=2.0, dropout_p=0.2, head_size=40
)
CASES = [
    PLAIN,
    EVERYTHING,
    *(case_of(f"mask: {name}", 2 if name == "dense" else 1, mask=name) for name in MASKS),
    *(case_of(f"bias: {name}", mask="causal", bias=name) for name in BIASES),
    case_of("bias of one number", 1, bias="dense by nothing", mask="window"),
    case_of("more queries than keys", 1, queries=63, keys=15, mask="causal"),
    case_of("one query", 3, 1, queries=1, keys=70, mask="causal"),
    case_of("one of each", 1, 1, queries=1, keys=1, head_size=1),
    case_of("softcap, negative scale", 1, softcap=1.5, scale=-0.3, value_head_size=33),
    case_of("dropout, window", 1, mask="window", dropout_p=0.5),
    case_of("dropout, dense bias", 1, mask="dense", dropout_p=0.3, bias="dense"),
    case_of("no scale", 1, scale=0.0, mask="window with sinks", bias="alibi"),
]
# One mask of each kind that the kernel tells apart; the others differ in tables only, which
# `test_attention_triton` holds to the masks.
LONG = {
    f"mask: {name}"
    for name in MASKS
    if name not in ("causal", "causal documents", "no keys in one entry", "dense and causal")
} | {"bias: alibi", "bias: dense by key", "bias: relative"}


def tensor_of(case: Case) -> Tensor:
    if case.bias == "dense by nothing":
        return torch.randn(1, case.heads, 1, 1, dtype=torch.float64)
    return bias_tensor(case.bias, case.sizes)


def call_of(case: Case, bias: Tensor | None, place: torch.device) -> Call:
    added = None if bias is None else bias_of(case.bias, bias)
    if isinstance(added, Tensor):
        added = Bias("dense", added)
    scale = 1 / math.sqrt(case.head_size) if case.scale is None else case.scale
    dropout = Dropout(case.dropout_p, SEED) if case.dropout_p else None
    return Call(mask_of(case, place), scale, case.softcap, added, dropout, None, True)


def formula(query, key, value, call: Call, sees, bias, factor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (0 where nothing is seen) with the whole score matrix."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).mT * call.scale
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if bias is not None:
        scores = scores + bias
    if sees is not None:
        scores = scores.masked_fill(~sees, -math.inf)
    empty = (scores == -math.inf).all(-1)
    probability = torch.softmax(scores.masked_fill(empty.unsqueeze(-1), 0.0), -1)
    probability = probability.masked_fill(empty.unsqueeze(-1), 0.0)
    lse = torch.logsumexp(scores.masked_fill(empty.unsqueeze(-1), 0.0), -1).masked_fill(empty, 0.0)
    if factor is not None:
        probability = probability * factor
    return probability @ value.repeat_interleave(groups, 1), lse


def computed(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    out, lse = kernel.run(kernel.IMPLEMENTATION, query, key, value, call._replace(return_lse=True))
    assert out.dtype == query.dtype
    assert lse.dtype == torch.float32
    return out, torch.where(lse == -math.inf, 0.0, lse)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *(
            pytest.param(case, torch.float32, marks=[pytest.mark.long] * (case.name in LONG))
            for case in CASES
        ),
        (PLAIN, torch.float16),
        pytest.param(PLAIN, torch.bfloat16, marks=pytest.mark.long),
        (EVERYTHING, torch.bfloat16),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else str(value),
)
def test_output_lse_and_all_gradients_are_backward_stable(case, dtype, place) -> None:
    inputs = [tensor.to(place) for tensor in draw(case, dtype)]
    if case.bias:
        inputs.append(tensor_of(case).to(dtype).to(place))

    def ours(query, key, value, bias=None):
        return computed(query, key, value, call_of(case, bias, place))

    def truth(query, key, value, bias=None):
        whole = None if bias is None else whole_bias(case.bias, bias, case.sizes).to(query.dtype)
        factor = kept(case.sizes, case.dropout_p, SEED) if case.dropout_p else None
        call = call_of(case, bias, query.device)
        return formula(query, key, value, call, seen(case), whole, factor)

    assert_backward_stable(ours, *inputs, reference=truth)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "dropout",
    [
        Dropout(0.3, 0),
        Dropout(0.5, -(2**63)),
        Dropout(0.5, torch.tensor(2**62 + 3_000_000_000)),
        # Positions beyond 2**34, whose blocks of four words need more than 32 bits.
        Dropout(0.9, 3_000_000_000, (5, 70_000, 90_001), (3, 2, 60_000, 3)),
    ],
    ids=["zero", "least seed", "tensor seed", "far away"],
)
def test_the_same_elements_are_dropped_as_everywhere(dropout, signed, place, monkeypatch) -> None:
    monkeypatch.setattr(triton_launch, "signed_words", lambda device: signed)
    heads, queries, keys = dropout.sizes or (2, 17, 48)
    b0, h0, i0, j0 = dropout.first
    query, key = torch.zeros(2, 2, 17, 16, device=place), torch.zeros(2, 2, 48, 16, device=place)
    value = torch.eye(48, device=place).expand(2, 2, 48, 48)
    out, _ = kernel.forward(query, key, value, Call(None, 1.0, dropout=dropout))
    steps = [torch.arange(n) for n in (2, 2, 17, 48)]
    b, h, i, j = torch.meshgrid(*steps, indexing="ij")
    positions = (((b + b0) * heads + h + h0) * queries + i + i0) * keys + j + j0
    mask = philox.keep_mask(dropout.seed, positions, dropout.p)
    assert torch.equal(out.cpu() != 0, mask)
    expected = mask / (48 * (1 - dropout.p))
    assert torch.allclose(out.cpu(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name in ("none", "window", "documents")))
        for name in COUNTED
    ],
)
def test_no_empty_tile_is_touched_and_no_other_left_out(name, place) -> None:
    if place.type != "cpu":
        pytest.skip("counting is for the interpreter's small tiles")
    sizes = Sizes(1, 2, 70, 101)
    mask = COUNTED[name](sizes)
    query, key, value = (torch.randn(1, h, n, 4) for h, n in ((2, 70), (1, 101), (1, 101)))
    call, see = Call(mask, 0.5), visibility(mask, sizes, place)
    row = triton_launch.Launch(query, key, value, call).row

    def wanted(blocks) -> Tensor:
        kinds = tile_kinds(see, sizes, blocks.rows, blocks.keys)
        return (kinds != EMPTY).int()

    touched = torch.empty(1, 2, -(-70 // row.forward.rows), dtype=torch.int32)
    out, lse = kernel.forward(query, key, value, call, touched)
    expected = wanted(row.forward).sum(-1)
    assert torch.equal(touched, expected.unsqueeze(1).expand_as(touched).int())
    if name not in ("none", "causal"):
        assert expected.sum() < wanted(row.forward).numel()
    tiles = wanted(row.backward)
    by_rows = torch.empty(1, 2, tiles.shape[1], dtype=torch.int32)
    by_keys = torch.empty(1, 1, tiles.shape[2], dtype=torch.int32)
    triton_backward.gradients(
        torch.randn_like(out), None, query, key, value, out, lse, call, (by_rows, by_keys)
    )
    assert torch.equal(by_rows, tiles.sum(-1).unsqueeze(1).expand_as(by_rows).int())
    assert torch.equal(by_keys, 2 * tiles.sum(1).unsqueeze(1).int())  # two heads in a group


@strange
@pytest.mark.parametrize(
    ("mask", "wrong", "which"),
    [
        ("causal", math.nan, "key"),
        ("causal", math.inf, "value"),
        ("dense", math.nan, "value"),
        *(
            pytest.param(*rest, marks=pytest.mark.long)
            for rest in (
                ("causal", math.nan, "value"),
                ("causal", math.inf, "key"),
                ("causal", -math.inf, "key"),
                ("causal", -math.inf, "value"),
                ("dense", math.nan, "key"),
            )
        ),
    ],
)
def test_what_is_not_seen_does_not_leak(mask, wrong, which, place) -> None:
    """Neither forward nor backward; what is seen has the effect that it has in the formula."""
    case = case_of("", 1, 1, mask=mask)
    tensors = draw(case, torch.float32)
    clean = [t.clone() for t in tensors]
    tensors[1 if which == "key" else 2][:, :, 20, :3] = wrong
    sees = torch.as_tensor(seen(case))
    unaffected = ~sees[..., 20].expand(2, case.heads, -1).unsqueeze(-1)
    call = call_of(case, None, place)

    def results(inputs: list[Tensor]) -> list[Tensor]:
        leaves = [t.to(place).requires_grad_() for t in inputs]
        out, _ = computed(*leaves, call)
        loss = torch.where(unaffected.to(place), out, 0.0).square().sum()
        return [t.detach().cpu() for t in (out, *torch.autograd.grad(loss, leaves))]

    poisoned, expected = results(tensors), results(clean)
    for at in (0, 1):  # the output and the queries' gradient, by rows
        rows = unaffected.expand_as(poisoned[at])
        assert torch.equal(poisoned[at][rows], expected[at][rows])
    if which == "value":
        affected = ~unaffected.squeeze(-1)
        reached = poisoned[0][affected][:, :3]
        assert torch.allclose(reached, torch.full_like(reached, wrong), equal_nan=True)
        assert torch.equal(poisoned[0][..., 3:], expected[0][..., 3:])
    elif wrong != -math.inf:
        assert not torch.isfinite(poisoned[0][~unaffected.squeeze(-1)]).all()


@strange
def test_infinities_of_both_signs_make_nan(place) -> None:
    query, key = torch.zeros(1, 1, 20, 4, device=place), torch.zeros(1, 1, 20, 4, device=place)
    value = torch.ones(1, 1, 20, 4, device=place)
    value[..., 3, 0], value[..., 9, 0] = math.inf, -math.inf
    value[..., 5, 1] = -math.inf
    out, _ = kernel.forward(query, key, value, Call(causal(), 1.0))
    column = [1.0] * 3 + [math.inf] * 6 + [math.nan] * 11
    assert torch.equal(out[0, 0, :, 0].isnan().cpu(), torch.tensor(column).isnan())
    assert torch.equal(out[0, 0, :9, 0].cpu(), torch.tensor(column[:9]))
    assert torch.equal(out[0, 0, :, 1].cpu() == -math.inf, torch.arange(20) >= 5)
    assert (out[..., 2:] == 1).all()


@strange
def test_queries_and_gradients_that_are_not_finite_reach_only_keys_they_see(place) -> None:
    case = case_of("", mask="causal")
    query, key, value = (t.to(place) for t in draw(case, torch.float32))
    call = call_of(case, None, place)
    grad = torch.randn_like(query)
    bad_query, bad_grad = query.clone(), grad.clone()
    bad_query[:, :, 5] = math.nan
    bad_grad[:, :, 6] = math.inf

    def results(given: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (given, key, value)]
        return torch.autograd.grad(computed(*leaves, call)[0], leaves, cotangent)

    poisoned, clean = results(bad_query, bad_grad), results(query, grad)
    last = 6 + case.keys - case.queries  # the last key that row 6 sees
    for at in (1, 2):
        assert torch.equal(poisoned[at][:, :, last + 1 :], clean[at][:, :, last + 1 :])
        assert not torch.isfinite(poisoned[at][:, :, : last + 1]).all()


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)], ids=str
)
def test_layouts_and_repetitions_give_the_same_bits(dtype, place) -> None:
    base = [torch.randn(2, n, 2, 12, device=place).to(dtype) for n in (17, 33, 33)]
    views = [t.transpose(1, 2) for t in base]
    sliced = [torch.cat([t, t], -1)[..., :12] for t in views]
    strided = [t.mT.contiguous().mT for t in views]
    grad = torch.randn(1, 1, 1, 12, device=place).to(dtype).expand(2, 2, 17, 12)
    call = Call(window(9, 2), 0.3, bias=alibi(torch.rand(4, 2, device=place)[::2]))

    def results(inputs: list[Tensor]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        out, _ = computed(*leaves, call)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    expected = results([t.contiguous() for t in views])
    for inputs in (views, sliced, strided):
        assert all(torch.equal(*pair) for pair in zip(results(inputs), expected, strict=True))


def test_a_batch_gives_the_bits_of_its_entries(place) -> None:
    leaves = [torch.randn(2, h, n, 8, device=place) for h, n in ((2, 17), (1, 33), (1, 33))]
    call = Call(causal(), 0.3)
    grad = torch.randn(2, 2, 17, 8, device=place)

    def results(inputs: list[Tensor], g: Tensor) -> list[Tensor]:
        out, lse = kernel.forward(*inputs, call)
        found = kernel.backward(g, None, *inputs, out, lse, call)
        return [out, lse, *(t for t in found if t is not None)]

    together = results(leaves, grad)
    for b in range(2):
        alone = results([t[b : b + 1] for t in leaves], grad[b : b + 1])
        assert all(torch.equal(t[b : b + 1], a) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (1, 0, 3, 4)], ids=str)
def test_empty_tensors(shape, place) -> None:
    batch, heads, queries, keys = shape
    leaves = [
        torch.randn(batch, heads, n, 8, device=place, requires_grad=True)
        for n in (queries, keys, keys)
    ]
    slopes = torch.rand(heads, device=place, requires_grad=True)
    out, lse = kernel.run(
        kernel.IMPLEMENTATION, *leaves, Call(None, 0.3, bias=alibi(slopes), return_lse=True)
    )
    assert out.shape == (batch, heads, queries, 8)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    given = (*leaves, slopes)
    for leaf, grad in zip(given, torch.autograd.grad(out.sum(), given), strict=True):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


@strange
def test_rows_whose_scores_are_all_minus_infinity_are_empty(place) -> None:
    query, key, value = (t.to(place) for t in draw(case_of(""), torch.float32))
    bias = torch.zeros(1, 1, 33, 47, device=place)
    bias[..., ::2, :] = -math.inf
    bias[..., 1::2, 5:] = -math.inf
    leaves = [t.requires_grad_() for t in (query, key, value)]
    call = Call(None, 0.25, bias=Bias("dense", bias), return_lse=True)
    out, lse = kernel.run(kernel.IMPLEMENTATION, *leaves, call)
    assert (out[:, :, ::2] == 0).all()
    assert (lse[:, :, ::2] == -math.inf).all()
    few, _ = kernel.forward(query[:, :, 1::2], key[:, :, :5], value[:, :, :5], Call(None, 0.25))
    assert torch.allclose(out[:, :, 1::2], few, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert (grads[0][:, :, ::2] == 0).all()


def test_more_intervals_than_any_mask_needs(place) -> None:
    sizes = Sizes(2, 2, 33, 47)
    mask = gappy(sizes, 6)
    query, key, value = (t.to(place) for t in draw(case_of(""), torch.float32))
    call = Call(RowIntervals(mask.bounds.to(place)), 0.25)
    out, _ = kernel.forward(query, key, value, call)
    cpu = torch.device("cpu")
    sees = visible(visibility(mask, sizes, cpu), sizes, cpu)
    truth, _ = formula(*(t.double().cpu() for t in (query, key, value)), call, sees, None, None)
    # Sums of 47 terms of size 1 in float32.
    assert torch.allclose(out.double().cpu(), truth, rtol=1e-5, atol=1e-5)


def test_its_signature_is_that_of_every_kernel() -> None:
    ours, theirs = (inspect.signature(m.segmented_attention) for m in (kernel, reference))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]
    tensors = draw(case_of(""), torch.float32)
    with pytest.raises(AssertionError, match="refuses segment_size"):
        kernel.segmented_attention(*tensors, segment_size=16)
