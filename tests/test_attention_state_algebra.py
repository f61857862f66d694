"""attend, merge, finalize, empty_state: the algebra of attention states."""

import inspect
import math
from itertools import pairwise, permutations

import pytest
import torch
from torch import Tensor

from accel.attention import alibi, segmented_attention, window
from accel.attention.partial import attend
from accel.attention.state import AttentionState, empty_state, finalize, merge
from accel.testing import assert_backward_stable

ROWS, WIDTH = (1, 2, 5), 3


def state(dtype: torch.dtype = torch.float64, spread: float = 3.0) -> AttentionState:
    lse = torch.float64 if dtype == torch.float64 else torch.float32
    return AttentionState(torch.randn(*ROWS, WIDTH).to(dtype), (spread * torch.randn(ROWS)).to(lse))


def emptied(state: AttentionState, rows: Tensor) -> AttentionState:
    """Without keys in some rows."""
    return AttentionState(
        state.out.masked_fill(rows.unsqueeze(-1), 0.0), state.lse.masked_fill(rows, -math.inf)
    )


def whole(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook: softmax over all keys at once; `scores` [.., T, S], `values` [.., S, D]."""
    return torch.softmax(scores, -1) @ values, torch.logsumexp(scores, -1)


def parts_of(scores: Tensor, values: Tensor, size: int) -> list[AttentionState]:
    return [
        AttentionState(*whole(s, v))
        for s, v in zip(scores.split(size, -1), values.split(size, -2), strict=True)
    ]


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int64 if tensor.dtype == torch.float64 else torch.int32)


# --- what merge gives -----------------------------------------------------------------------------


@pytest.mark.parametrize("keys_per_part", [1, 3, 64])
def test_64_keys_in_parts_are_the_whole(keys_per_part) -> None:
    def split(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(merge(parts_of(scores, values, keys_per_part)))

    scores, values = 5 * torch.randn(2, 7, 64), torch.randn(2, 64, 4)
    assert_backward_stable(split, scores, values, reference=whole)


def test_the_mean_of_the_parts_is_not_the_whole() -> None:
    def mean(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        parts = parts_of(scores, values, 16)
        return torch.stack([p.out for p in parts]).mean(0), merge(parts).lse

    scores, values = 5 * torch.randn(2, 7, 64), torch.randn(2, 64, 4)
    with pytest.raises(AssertionError, match="not backward stable"):
        assert_backward_stable(mean, scores, values, reference=whole)


@pytest.mark.parametrize("difference", [1e4, -1e4, 88.0, 1e-4])
@pytest.mark.parametrize("shift", [0.0, 3e4, -3e4])
def test_far_apart_and_far_from_zero(difference, shift) -> None:
    """exp would overflow or vanish; the truth is a sum in float64 with its greatest taken out."""
    torch.manual_seed(0)
    a, b = state(torch.float32), state(torch.float32)
    a = AttentionState(a.out, a.lse + shift)
    b = AttentionState(b.out, a.lse + difference)
    merged = merge([a, b])
    weight = torch.sigmoid(b.lse.double() - a.lse.double()).unsqueeze(-1)
    out = a.out.double() * torch.sigmoid(a.lse.double() - b.lse.double()).unsqueeze(-1)
    out = out + b.out.double() * weight
    scale = torch.finfo(torch.float32).eps * (a.out.abs() + b.out.abs())
    assert ((merged.out - out).abs() <= 4 * scale).all()
    lse = torch.logaddexp(a.lse.double(), b.lse.double())
    assert ((merged.lse - lse).abs() <= 2 * torch.finfo(torch.float32).eps * (1 + lse.abs())).all()


def test_a_small_weight_keeps_its_digits() -> None:
    """1 - w would have none left; the great value makes them count."""
    great = AttentionState(torch.full((1, 1), 1e7), torch.tensor([-16.0]))
    small = AttentionState(torch.ones(1, 1), torch.tensor([0.0]))
    exact = (1e7 * math.exp(-16) + 1) / (1 + math.exp(-16))
    for order in ([great, small], [small, great]):
        assert merge(order).out.item() == pytest.approx(exact, rel=1e-6)


def test_associative_and_commutative() -> None:
    states = [state() for _ in range(4)]
    flat = merge(states)
    for order in permutations(states):
        nested = merge([merge(order[:2]), merge([order[2], merge([order[3]])])])
        for ours, theirs in ((merge(order), flat), (nested, flat)):
            torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_many_states_err_no_more_than_two() -> None:
    """64 float32 states at once, against the same in float64: one rounding, not 64."""
    states = [state(torch.float32, 0.1) for _ in range(64)]
    exact = merge([AttentionState(s.out.double(), s.lse.double()) for s in states])
    error = (merge(states).lse - exact.lse).abs().max()
    assert error <= 2 * torch.finfo(torch.float32).eps * exact.lse.abs().max()


# --- attend --------------------------------------------------------------------------------


def heads_and_keys(dtype: torch.dtype = torch.float32, keys: int = 63) -> list[Tensor]:
    return [
        torch.randn(shape).to(dtype) for shape in [(2, 4, 9, 8), (2, 2, keys, 8), (2, 2, keys, 5)]
    ]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("cuts", [[], [31], [0, 1, 1, 40, 63]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_in_parts_is_attention(dtype, cuts, backend) -> None:
    """Parts of 0, 1 and many keys, among them ones that no query sees; gradients too."""
    bounds = [0, *cuts, 63]
    visible = torch.rand(9, 63) < 0.5
    visible[:, 31:40] = False
    visible[3] = False

    def split(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        parts = [
            attend(
                query, key[:, :, a:b], value[:, :, a:b], mask=visible[:, a:b], softcap=4.0,
                backend=backend,
            )
            for a, b in pairwise(bounds)
        ]  # fmt: skip
        merged = merge(parts)
        return finalize(merged, query.dtype), merged.lse.masked_fill(merged.lse == -math.inf, 0.0)

    def textbook(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        key, value = (t.repeat_interleave(2, 1) for t in (key, value))
        scores = 4 * torch.tanh(query @ key.mT / math.sqrt(8) / 4)
        scores = scores.masked_fill(~visible, -1e30)
        out, lse = whole(scores, value)
        nothing = ~visible.any(1)
        return out.masked_fill(nothing.unsqueeze(1), 0.0), lse.masked_fill(nothing, 0.0)

    assert_backward_stable(split, *heads_and_keys(dtype), reference=textbook)


def test_parts_of_causal_attention_add_up() -> None:
    """Each part's own alignment: all of the old keys, and causal among the new ones."""
    query, key, value = heads_and_keys(torch.float64)
    old = attend(query, key[:, :, :-9], value[:, :, :-9])
    new = attend(query, key[:, :, -9:], value[:, :, -9:], is_causal=True)
    whole_state = segmented_attention(query, key, value, is_causal=True, return_lse=True)
    torch.testing.assert_close(merge([old, new]), whole_state, rtol=1e-12, atol=1e-12)


def test_attend_takes_what_segmented_attention_takes() -> None:
    theirs = dict(inspect.signature(segmented_attention).parameters)
    del theirs["return_lse"]
    ours = inspect.signature(attend).parameters
    assert {n: (p.kind, p.default) for n, p in ours.items()} == {
        n: (p.kind, p.default) for n, p in theirs.items()
    }
    tensors = heads_and_keys()
    given = {"scale": 0.3, "dropout_p": 0.25, "dropout_seed": 5, "bias": alibi(torch.rand(4))}
    given |= {"segment_size": 17, "is_causal": True, "mask": window(20, 0), "softcap": 3.0}
    state = attend(*tensors, **given)
    torch.testing.assert_close(
        state, segmented_attention(*tensors, **given, return_lse=True), rtol=0, atol=0
    )


def test_parts_without_a_seed_draw_their_own_dropout() -> None:
    query, key, value = heads_and_keys(keys=20)
    torch.manual_seed(0)
    parts = [attend(query, key, value, dropout_p=0.5) for _ in range(2)]
    assert not torch.equal(parts[0].out, parts[1].out)
    assert torch.equal(parts[0].lse, parts[1].lse)


# --- empty states ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_empty_state_changes_no_bit(dtype, before, after) -> None:
    given = state(dtype)
    given.out[0, 0, 0] = torch.tensor([-0.0, 0.0, 65504.0])
    nothing = empty_state(torch.zeros(*ROWS, 4, dtype=dtype), WIDTH)
    nobody = emptied(state(dtype), torch.ones(ROWS, dtype=torch.bool))
    merged = merge([nothing] * before + [given] + [nobody] * after)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert merged.out.dtype == merged.lse.dtype == wide
    assert torch.equal(bits(merged.out), bits(given.out.to(wide)))
    assert torch.equal(bits(merged.lse), bits(given.lse))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_only_empty_states_give_an_empty_one(count) -> None:
    nobody = emptied(state(), torch.ones(ROWS, dtype=torch.bool))
    merged = merge([nobody] * count)
    assert (bits(merged.out) == 0).all()
    assert (merged.lse == -math.inf).all()
    assert (finalize(merged) == 0).all()


def test_another_mark_for_an_empty_row_is_not_taken_for_a_state() -> None:
    """FlashAttention's +inf, unconverted: NaN in that row alone, no plausible number."""
    a, b = state(), state()
    b.lse[0, 0, 1] = math.inf
    merged = merge([a, b])
    broken = torch.zeros(ROWS, dtype=torch.bool)
    broken[0, 0, 1] = True
    assert torch.equal(merged.out.isnan().any(-1), broken)
    assert torch.equal(merged.lse.isnan(), broken)


# --- gradients ------------------------------------------------------------------------------------


def empties(pattern: str, count: int) -> list[Tensor]:
    """Which rows are empty, by state: row 1 in one state, row 2 in all but one, row 3 in all."""
    found = [torch.zeros(ROWS, dtype=torch.bool) for _ in range(count)]
    if pattern == "some":
        found[0][..., 1] = True
        for rows in found[1:]:
            rows[..., 2] = True
        for rows in found:
            rows[..., 3] = True
    return found


@pytest.mark.parametrize("pattern", ["none", "some"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_differentiable_twice_in_every_argument(count, pattern) -> None:
    masks = empties(pattern, count)
    inputs = [t.requires_grad_() for _ in range(count) for t in state(spread=1.0)]

    def merged(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        states = [
            AttentionState(out, lse.masked_fill(rows, -math.inf))
            for out, lse, rows in zip(tensors[::2], tensors[1::2], masks, strict=True)
        ]
        out, lse = merge(states)
        # A difference of infinities has no value; what an empty lse is, others check.
        return finalize(AttentionState(out, lse)), lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(merged, inputs)
    assert torch.autograd.gradgradcheck(merged, inputs)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_of_empty_rows_are_zero_and_of_others_finite(order) -> None:
    masks = empties("some", 3)
    states = [emptied(state(), rows) for rows in masks]
    leaves = [t.requires_grad_() for s in states for t in s]
    out, lse = merge(states)
    total = (out * torch.randn_like(out)).sum() + lse[lse > -math.inf].sin().sum()
    grads = torch.autograd.grad(total, leaves, create_graph=order == 2)
    if order == 2:
        grads = torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves, allow_unused=True)
    for index, grad in enumerate(grads):
        if grad is None:
            continue
        assert grad.isfinite().all()
        assert (grad[masks[index // 2]] == 0).all()


def test_gradient_of_minus_infinity_handed_in_stays_out_of_other_rows() -> None:
    """A loss on `lse` of an empty row is wrong, but must not spread."""
    states = [emptied(state(), rows) for rows in empties("some", 2)]
    leaves = [s.lse.requires_grad_() for s in states]
    out, lse = merge(states)
    grads = torch.autograd.grad(lse.sum() + out.sum(), leaves)
    assert all(g.isfinite().all() for g in grads)


def test_under_torch_func_and_compile() -> None:
    a, b = state(), state()

    def loss(lse: Tensor) -> Tensor:
        out, merged = merge([AttentionState(a.out[0], lse), AttentionState(b.out[0], b.lse[0])])
        return out.sum() + merged.sum()

    batched = torch.func.vmap(torch.func.grad(loss))(torch.stack([a.lse[0], b.lse[0]]))
    torch.testing.assert_close(batched[0], torch.func.grad(loss)(a.lse[0]))
    compiled = torch.compile(lambda *s: merge(s), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), merge([a, b]))


# --- dtypes, finalize, empty_state ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_outputs_merge_in_float32_and_round_once(dtype) -> None:
    states = [state(dtype) for _ in range(8)]
    merged = merge(states)
    assert merged.out.dtype == torch.float32
    exact = merge([AttentionState(s.out.double(), s.lse.double()) for s in states])
    found = finalize(merged, dtype)
    assert found.dtype == dtype
    # Correct rounding, but where the exact value lies almost halfway between two numbers.
    assert (found == exact.out.to(dtype)).double().mean() > 0.99


def test_finalize_keeps_or_casts_and_zeroes() -> None:
    given = emptied(state(torch.float32), empties("some", 1)[0])
    out = finalize(given)
    assert out.dtype == torch.float32
    assert (out[given.lse == -math.inf] == 0).all()
    assert torch.equal(out[given.lse > -math.inf], given.out[given.lse > -math.inf])
    assert finalize(given, torch.float16).dtype == torch.float16


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (1, 0, 5, 4), (1, 2, 0, 4), (1, 2, 63, 4)])
def test_sizes(shape) -> None:
    made = empty_state(torch.randn(shape), 7)
    assert made.out.shape == (*shape[:3], 7)
    assert made.lse.shape == shape[:3]
    merged = merge([made, made])
    assert merged.out.shape == made.out.shape
    assert merged.lse.shape == made.lse.shape


def test_strides_do_not_matter(device) -> None:
    a, b = state(torch.float32), state(torch.float32)
    a, b = (AttentionState(*(t.to(device.torch_device) for t in s)) for s in (a, b))
    across = AttentionState(
        a.out.transpose(1, 2).contiguous().transpose(1, 2), a.lse.mT.contiguous().mT
    )
    assert not across.lse.is_contiguous()
    torch.testing.assert_close(merge([across, b]), merge([a, b]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: merge([]), ValueError, "at least one"),
        (lambda s: merge(s), TypeError, "state 0 must be an AttentionState, not Tensor"),
        (lambda s: merge([s, tuple(s)]), TypeError, "state 1 must be an AttentionState, not tuple"),
        (
            lambda s: merge([s, s._replace(lse=s.lse.bfloat16())]),
            TypeError,
            "lse must be float32 or float64, not torch.bfloat16",
        ),
        (lambda s: merge([s._replace(out=s.out.int())]), TypeError, "floating dtype"),
        (lambda s: merge([s._replace(lse=s.lse.unsqueeze(-1))]), ValueError, r"lse \[..., T\]"),
        (
            lambda s: merge([s, AttentionState(s.out[..., :1, :], s.lse[..., :1])]),
            ValueError,
            "same queries",
        ),
        (
            lambda s: merge([s, AttentionState(*(t.to("meta") for t in s))]),
            ValueError,
            "on cpu and state 1's",
        ),
        (lambda s: merge([s._replace(lse=s.lse.to("meta"))]), ValueError, "its lse on meta"),
        (lambda s: merge([AttentionState(s.out, 1.0)]), TypeError, "lse must be a tensor"),
        (lambda s: finalize(s.out), TypeError, "must be an AttentionState"),
        (lambda s: finalize(s, torch.int8), TypeError, "floating dtype, not torch.int8"),
        (lambda s: empty_state(s.lse), ValueError, r"\[B, H, T, D\]"),
        (lambda s: empty_state(s.out, 0), ValueError, "at least 1"),
        (lambda s: empty_state(s.out.int()), TypeError, "floating tensor"),
        (lambda s: empty_state(3), TypeError, "not int"),
    ],
)
def test_what_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(state())
