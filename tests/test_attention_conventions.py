"""States of other libraries, each built here by hand from a float64 truth."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from accel.attention.conventions import (
    CONVENTIONS,
    Convention,
    from_convention,
    to_convention,
)
from accel.attention.state import AttentionState, finalize, merge
from accel_kernels.vendor.npu import REFERENCES

CU_SEQLENS = [0, 3, 3, 7]
BATCH, HEADS, ROWS, KEYS, WIDTH = 2, 3, 7, 10, 8
LEAST = torch.finfo(torch.float32).min


class Rows(NamedTuple):
    """Attention over some keys: zero and -inf where `seen` is False."""

    out: Tensor
    lse: Tensor
    seen: Tensor


def attention(scores: Tensor, values: Tensor, visible: Tensor) -> Rows:
    seen = visible.any(-1)
    scores = scores.masked_fill(~visible, -math.inf)
    probabilities = torch.softmax(scores, -1).masked_fill(~seen.unsqueeze(-1), 0.0)
    return Rows(probabilities @ values, torch.logsumexp(scores, -1), seen)


def truth(batch: int) -> tuple[Rows, Rows, Rows]:
    """Over the first half of the keys, the second, and all; with empty rows in each."""
    scores = 3 * torch.randn(batch, HEADS, ROWS, KEYS, dtype=torch.float64)
    values = torch.randn(batch, HEADS, KEYS, WIDTH, dtype=torch.float64)
    visible = torch.rand(scores.shape) < 0.6
    half = KEYS // 2
    visible[:, 0, 1, :half] = False
    visible[:, 1, 2, half:] = False
    visible[:, 2, 4] = False
    parts = (slice(0, half), slice(half, KEYS), slice(0, KEYS))
    first, second, whole = (
        attention(scores[..., p], values[..., p, :], visible[..., p]) for p in parts
    )
    return first, second, whole


def by_document(rows: Tensor) -> Tensor:
    """`[H, T]` to the memory of `[N, S, 8]` a document, with the shape `[T, N, 8]`."""
    laid = []
    for start, end in pairwise(CU_SEQLENS):
        for head in range(HEADS):
            laid += [[rows[head, t]] * 8 for t in range(start, end)]
    return torch.tensor(laid, dtype=rows.dtype).view(ROWS, HEADS, 8)


def maximum_and_sum(rows: Rows) -> tuple[Tensor, Tensor]:
    """Any split of the log-sum-exp will do; here a maximum that is off it."""
    maximum = (rows.lse - 0.75).masked_fill(~rows.seen, LEAST)
    return maximum, torch.full_like(rows.lse, math.exp(0.75)).masked_fill(~rows.seen, 0.0)


def times_8(tensor: Tensor) -> Tensor:
    return torch.stack([tensor] * 8, -1)


def seq_major(out: Tensor) -> Tensor:
    return out.transpose(1, 2)


def merged_heads(out: Tensor) -> Tensor:
    return torch.cat(list(out.unbind(1)), -1)


def plain(layout: Callable[[Tensor], Tensor], mark: float) -> Callable[[Rows], tuple[Any, ...]]:
    return lambda rows: (layout(rows.out), rows.lse.masked_fill(~rows.seen, mark))


def padded(rows: Rows) -> tuple[Tensor, Tensor]:
    lse = torch.full((*rows.lse.shape[:2], 32), math.inf, dtype=torch.float64)
    lse[..., :ROWS] = rows.lse
    return rows.out, lse


def npu(layout: Callable[[Tensor], Tensor]) -> Callable[[Rows], tuple[Any, ...]]:
    return lambda rows: (layout(rows.out), *map(times_8, maximum_and_sum(rows)))


def infer(layout: Callable[[Tensor], Tensor]) -> Callable[[Rows], tuple[Any, ...]]:
    """Where nobody says what an empty row holds: a number that the mask must overrule."""
    return lambda rows: (layout(rows.out), rows.lse.masked_fill(~rows.seen, 12.5).unsqueeze(-1))


def packed(
    statistics: Callable[[Rows], tuple[Tensor, ...]],
) -> Callable[[Rows], tuple[Any, ...]]:
    return lambda rows: (rows.out[0].transpose(0, 1), *statistics(rows))


def token_major(tensor: Tensor) -> Tensor:
    return tensor[0].transpose(0, 1)


BUILT: dict[str, Callable[[Rows], tuple[Any, ...]]] = {
    "accel": plain(lambda out: out, -math.inf),
    "base2": lambda rows: (rows.out, rows.lse / math.log(2)),
    "aten_cpu": plain(lambda out: out, 0.0),
    "aten_flash": plain(lambda out: out, math.inf),
    "aten_efficient": padded,
    "aten_cudnn": infer(lambda out: out),
    "flex_attention": plain(lambda out: out, -math.inf),
    "flash_attention": plain(seq_major, math.inf),
    "flash_attention_varlen": packed(
        lambda rows: (rows.lse[0].masked_fill(~rows.seen[0], math.inf),)
    ),
    "flashinfer": packed(lambda rows: (rows.lse[0].mT / math.log(2),)),
    "xformers": plain(seq_major, -math.inf),
    "npu_fusion_attention_bnsd": npu(lambda out: out),
    "npu_fusion_attention_bsnd": npu(seq_major),
    "npu_fusion_attention_bsh": npu(merged_heads),
    "npu_fusion_attention_sbh": npu(lambda out: merged_heads(out).transpose(0, 1)),
    "npu_fusion_attention_tnd": packed(
        lambda rows: tuple(times_8(token_major(s)) for s in maximum_and_sum(rows))
    ),
    "npu_fusion_attention_ntd": packed(
        lambda rows: tuple(by_document(s[0]) for s in maximum_and_sum(rows))
    ),
    "npu_fused_infer_attention_score_bnsd": infer(lambda out: out),
    "npu_fused_infer_attention_score_bsnd": infer(seq_major),
    "npu_fused_infer_attention_score_bsh": infer(merged_heads),
    "npu_fused_infer_attention_score_tnd": packed(
        lambda rows: (token_major(rows.lse.masked_fill(~rows.seen, 12.5)).unsqueeze(-1),)
    ),
    "npu_attention_update": lambda rows: (
        seq_major(rows.out).reshape(-1, WIDTH),
        rows.lse.transpose(1, 2).reshape(-1),
    ),
}
PACKED = {n for n in BUILT if CONVENTIONS[n].out == "t h d"}


def extras(name: str, rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if name == "npu_fusion_attention_ntd":
        found["cu_seqlens"] = CU_SEQLENS
    if name == "npu_attention_update":
        found["sizes"] = tuple(rows.lse.shape)
    if CONVENTIONS[name].ambiguous:
        found["empty"] = ~rows.seen
    return found


def read(name: str, rows: Rows) -> AttentionState:
    return from_convention(name, *BUILT[name](rows), **extras(name, rows))


def unwritten(rows: Rows) -> Rows:
    """As some kernels leave it: no output where no key was seen."""
    return rows._replace(out=rows.out.masked_fill(~rows.seen.unsqueeze(-1), math.nan))


def close(ours: Any, theirs: Any) -> None:
    """A wrong convention is off by percents; right ones, in float64, by roundings."""
    torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=1e-13, atol=1e-13)


def test_every_convention_is_built_here() -> None:
    assert set(BUILT) == set(CONVENTIONS)


@pytest.mark.parametrize("name", BUILT)
def test_read_as_what_it_is(name) -> None:
    rows, _, _ = truth(1 if name in PACKED else BATCH)
    close(read(name, unwritten(rows)), rows[:2])


@pytest.mark.parametrize("mark", [math.inf, -math.inf])
@pytest.mark.parametrize("name", ["flash_attention", "aten_flash", "flash_attention_varlen"])
def test_flash_attention_marks_empty_rows_either_way(name, mark) -> None:
    rows, _, _ = truth(1)
    out, lse = BUILT[name](unwritten(rows))
    close(from_convention(name, out, lse.masked_fill(lse == math.inf, mark)), rows[:2])


def test_a_mark_that_is_a_number_is_one_where_the_caller_says_so() -> None:
    """aten's 0.0 for an empty row is also what one key with a score of 0 gives."""
    out, lse = torch.randn(1, 2, 3, 4), torch.zeros(1, 2, 3)
    state = from_convention("aten_cpu", out, lse, empty=False)
    assert torch.equal(state.out, out)
    assert torch.equal(state.lse, lse)
    first = torch.tensor([True, False, False])
    state = from_convention("aten_cpu", out, lse, empty=first)
    assert ((state.lse == -math.inf) == first).all()


@pytest.mark.parametrize("index", range(len(BUILT)))
def test_halves_from_different_libraries_merge_to_the_whole(index) -> None:
    names = list(BUILT)
    one, other = names[index], names[(index + 7) % len(names)]
    first, second, whole = truth(1 if {one, other} & PACKED else BATCH)
    merged = merge([read(one, first), read(other, second)])
    close((finalize(merged), merged.lse), whole[:2])


@pytest.mark.parametrize("name", BUILT)
def test_there_and_back(name) -> None:
    rows, _, _ = truth(1 if name in PACKED else BATCH)
    if CONVENTIONS[name].empty is None:
        rows = Rows(rows.out + 1, rows.lse.masked_fill(~rows.seen, 2.0), torch.ones_like(rows.seen))
    state = AttentionState(*rows[:2])
    given = extras(name, rows)
    laid = to_convention(name, state, cu_seqlens=given.get("cu_seqlens"))
    close(from_convention(name, *laid, **given), state)
    assert all(t.is_contiguous() for t in laid)
    built = BUILT[name](rows)
    assert [t.shape for t in laid] == [t.shape for t in built]
    if len(built) == 2:
        close(laid, built)


@pytest.mark.parametrize("name", BUILT)
def test_differentiable(name) -> None:
    rows, _, _ = truth(1 if name in PACKED else BATCH)
    tensors = [t.detach().clone().requires_grad_() for t in BUILT[name](rows)]
    out, lse = from_convention(name, *tensors, **extras(name, rows))
    (out.sin().sum() + lse[rows.seen].sin().sum()).backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


# --- what goes wrong without ----------------------------------------------------------------------


def error_of(first: AttentionState, second: Rows, whole: Rows) -> float:
    out = merge([first, AttentionState(*second[:2])]).out
    return ((out - whole.out).norm() / whole.out.norm()).item()


@pytest.mark.parametrize("name", ["base2", "aten_cpu"])
def test_statistics_taken_as_ours_give_plausible_wrong_numbers(name) -> None:
    first, second, whole = truth(BATCH)
    wrong = AttentionState(*BUILT[name](first))
    assert merge([wrong, AttentionState(*second[:2])]).out.isfinite().all()
    assert error_of(wrong, second, whole) > 1e-2
    assert error_of(read(name, first), second, whole) < 1e-13


def test_the_order_of_packed_statistics_matters() -> None:
    first, second, whole = truth(1)
    wrong = from_convention("npu_fusion_attention_tnd", *BUILT["npu_fusion_attention_ntd"](first))
    assert error_of(wrong, second, whole) > 1e-2


# --- the libraries themselves, where they run -------------------------------------------------


def inputs(batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor, Rows]:
    query = torch.randn(batch, HEADS, ROWS, WIDTH, dtype=torch.float64)
    key, value = (torch.randn(batch, HEADS, KEYS, WIDTH, dtype=torch.float64) for _ in range(2))
    visible = torch.ones(ROWS, KEYS, dtype=torch.bool).tril(KEYS - ROWS)
    visible[2] = False
    scores = query @ key.mT / math.sqrt(WIDTH)
    return query, key, value, attention(scores, value, visible.expand(scores.shape))


def test_aten_on_the_cpu() -> None:
    query, key, value, rows = inputs()
    visible = torch.ones(ROWS, KEYS, dtype=torch.bool).tril(KEYS - ROWS)
    visible[2] = False
    bias = torch.zeros(ROWS, KEYS, dtype=torch.float64).masked_fill(~visible, -math.inf)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias
    )
    assert (lse[:, :, 2] == 0).all()  # the trap
    close(from_convention("aten_cpu", out, lse, empty=torch.arange(ROWS) == 2), rows[:2])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention() -> None:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def visible(score: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return torch.where((key <= row + KEYS - ROWS) & (row != 2), score, -math.inf)

    query, key, value, rows = inputs()
    out, aux = flex_attention(query, key, value, visible, return_aux=AuxRequest(lse=True))
    assert aux.lse.dtype == torch.float32 or aux.lse.dtype == torch.float64
    found = from_convention("flex_attention", out, aux.lse)
    torch.testing.assert_close(found.lse.double(), rows.lse, rtol=1e-6, atol=1e-6)
    close([found.out], [rows.out])


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "SBH"])
def test_npu_fusion_attention(layout) -> None:
    query, key, value, rows = inputs()
    lay = {
        "BNSD": lambda t: t,
        "BSND": seq_major,
        "BSH": merged_heads,
        "SBH": lambda t: merged_heads(t).transpose(0, 1),
    }[layout]
    hidden = ~torch.ones(ROWS, KEYS, dtype=torch.bool).tril(KEYS - ROWS)
    hidden[2] = True
    out, maximum, total, *_ = REFERENCES["npu_fusion_attention"](
        lay(query), lay(key), lay(value), HEADS, layout,
        atten_mask=hidden, scale=1 / math.sqrt(WIDTH),
    )  # fmt: skip
    found = from_convention(f"npu_fusion_attention_{layout.lower()}", out, maximum, total)
    close(found, rows[:2])


@pytest.mark.parametrize("softmax_layout", ["", "TND"])
def test_npu_fusion_attention_of_packed_documents(softmax_layout) -> None:
    query, key, value, _ = inputs(1)
    ends = [3, 7]
    out, maximum, total, *_ = REFERENCES["npu_fusion_attention"](
        token_major(query), token_major(key), token_major(value), HEADS, "TND",
        actual_seq_qlen=ends, actual_seq_kvlen=[4, KEYS], softmax_layout=softmax_layout,
        scale=1 / math.sqrt(WIDTH),
    )  # fmt: skip
    visible = torch.zeros(ROWS, KEYS, dtype=torch.bool)
    visible[:3, :4] = visible[3:, 4:] = True
    scores = query @ key.mT / math.sqrt(WIDTH)
    rows = attention(scores, value, visible.expand(scores.shape))
    if softmax_layout:
        found = from_convention("npu_fusion_attention_tnd", out, maximum, total)
    else:
        boundaries = torch.tensor([0, *ends])
        found = from_convention(
            "npu_fusion_attention_ntd", out, maximum, total, cu_seqlens=boundaries
        )
    close(found, rows[:2])


def test_npu_ring_attention_update_takes_and_gives_states() -> None:
    first, second, whole = truth(BATCH)
    name = "npu_fusion_attention_sbh"
    laid = [to_convention(name, AttentionState(*rows[:2])) for rows in (first, second)]
    found = REFERENCES["npu_ring_attention_update"](*laid[0], *laid[1])
    close(from_convention(name, *found), whole[:2])


def test_npu_ring_attention_update_of_packed_documents() -> None:
    first, second, whole = truth(1)
    name = "npu_fusion_attention_ntd"
    laid = [
        to_convention(name, AttentionState(*rows[:2]), cu_seqlens=CU_SEQLENS)
        for rows in (first, second)
    ]
    found = REFERENCES["npu_ring_attention_update"](
        *laid[0], *laid[1], actual_seq_qlen=torch.tensor(CU_SEQLENS), input_layout="TND"
    )
    close(from_convention(name, *found, cu_seqlens=CU_SEQLENS), whole[:2])


def test_npu_attention_update_takes_and_gives_states() -> None:
    first, second, whole = truth(BATCH)
    laid = [to_convention("npu_attention_update", AttentionState(*r[:2])) for r in (first, second)]
    found = REFERENCES["npu_attention_update"]([p[1] for p in laid], [p[0] for p in laid], 1)
    sizes = (BATCH, HEADS, ROWS)
    close(from_convention("npu_attention_update", *found, sizes=sizes), whole[:2])


# --- shapes, dtypes, errors -----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize("name", ["flash_attention", "base2", "aten_efficient", "xformers"])
def test_odd_sizes_there_and_back(name, sizes) -> None:
    state = AttentionState(torch.randn(sizes), torch.randn(sizes[:3]))
    found = from_convention(name, *to_convention(name, state))
    torch.testing.assert_close(found, state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_outputs_keep_their_dtype(dtype, device) -> None:
    out = torch.randn(2, 5, 3, 8, device=device.torch_device).to(dtype)
    lse = torch.randn(2, 3, 5, device=device.torch_device)
    state = from_convention("flash_attention", out, lse)
    assert state.out.dtype == dtype
    assert state.lse.dtype == torch.float32
    assert torch.equal(state.out, out.transpose(1, 2))
    assert torch.equal(state.lse, lse)


def test_a_convention_of_ones_own() -> None:
    """Heads first, base 2, empty rows marked by the least float32."""
    mine = Convention("h b t d", "b t h", base=2, empty=(LEAST,))
    rows, _, _ = truth(BATCH)
    state = AttentionState(rows.out, rows.lse)
    out, lse = to_convention(mine, state)
    assert out.shape == (HEADS, BATCH, ROWS, WIDTH)
    assert (lse.permute(0, 2, 1)[~rows.seen] == LEAST).all()
    with pytest.raises(ValueError, match="does not tell"):
        from_convention(mine, out, lse)
    close(from_convention(mine, out, lse, empty=~rows.seen), state)


def good(name: str) -> tuple[Any, ...]:
    return BUILT[name](truth(1)[0])


@pytest.mark.parametrize(
    ("name", "change", "given", "error", "message"),
    [
        ("fa2", None, {}, ValueError, "is called 'fa2'; there are accel, base2"),
        ("aten_cpu", None, {}, ValueError, "give empty="),
        ("aten_cudnn", None, {}, ValueError, "give empty="),
        ("aten_cpu", None, {"empty": True}, TypeError, "bool tensor or False, not bool"),
        ("aten_cpu", None, {"empty": torch.ones(7)}, TypeError, "not torch.float32"),
        (
            "aten_cpu",
            None,
            {"empty": torch.ones(6, dtype=torch.bool)},
            ValueError,
            r"broadcast to \[B, H, T\] = \(1, 3, 7\), not \(6,\)",
        ),
        ("accel", lambda o, s: (o, s, s), {}, TypeError, "a log-sum-exp, not 2 statistics"),
        ("npu_fusion_attention_sbh", lambda o, m, s: (o, m), {}, TypeError, "maximum and sum"),
        ("accel", lambda o, s: (o, s.bfloat16()), {}, TypeError, "float32 or float64"),
        ("accel", lambda o, s: (o.int(), s), {}, TypeError, "floating dtype"),
        ("accel", lambda o, s: (o, [s]), {}, TypeError, "takes tensors, not list"),
        ("accel", lambda o, s: (o, s.to("meta")), {}, ValueError, "cpu and meta"),
        ("flash_attention", lambda o, s: (o, s.mT), {}, ValueError, r"\[b t h d\]: \w must be"),
        ("flash_attention", lambda o, s: (o[0], s), {}, ValueError, "4 dimensions"),
        ("flashinfer", lambda o, s: (o, s.mT), {}, ValueError, r"laid out as \[t h d\]"),
        (
            "npu_fusion_attention_bnsd",
            lambda o, m, s: (o, m[..., :1], s),
            {},
            ValueError,
            "dimension 3 is 1",
        ),
        ("aten_efficient", lambda o, s: (o, s[..., :6]), {}, ValueError, "t must be 7"),
        ("npu_fusion_attention_ntd", None, {}, ValueError, "give cu_seqlens="),
        (
            "npu_fusion_attention_ntd",
            None,
            {"cu_seqlens": [3, 7]},
            ValueError,
            r"ascend from 0 to the 7 queries, not \[3, 7\]",
        ),
        ("npu_fusion_attention_ntd", None, {"cu_seqlens": [0, 5, 3, 7]}, ValueError, "ascend"),
        ("npu_fusion_attention_ntd", None, {"cu_seqlens": [0, 6]}, ValueError, "ascend"),
        ("npu_attention_update", None, {}, ValueError, r"give sizes= \(B, H, T\)"),
        ("npu_attention_update", None, {"sizes": (1, 2, 7)}, ValueError, "must be 14"),
        ("npu_fusion_attention_bsh", lambda o, m, s: (o[..., 1:], m, s), {}, ValueError, "divided"),
    ],
)
def test_what_is_refused(name, change, given, error, message) -> None:
    tensors = good(name if name in BUILT else "accel")
    tensors = change(*tensors) if change else tensors
    with pytest.raises(error, match=message):
        from_convention(name, *tensors, **given)


def test_what_cannot_be_written() -> None:
    rows, _, _ = truth(BATCH)
    state = AttentionState(*rows[:2])
    with pytest.raises(ValueError, match="has no batch; pack the documents"):
        to_convention("flashinfer", state)
    with pytest.raises(ValueError, match="aten_cudnn has no known mark"):
        to_convention("aten_cudnn", state)
    with pytest.raises(TypeError, match="must be an AttentionState"):
        to_convention("base2", tuple(state))
    with pytest.raises(ValueError, match="axes b, h, t once"):
        Convention("b h t d", "b h d")
    with pytest.raises(ValueError, match="e or 2, not 10"):
        Convention("b h t d", "b h t", base=10)
