"""`npu_fusion_attention` forward: layouts, masks, sparse modes, packing, pse and sink, extremes."""

import math

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.attention_rows import (
    LAYOUTS,
    LOWEST,
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

# --- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value_depth", [6, 3])
def test_each_layout_gives_the_formula_with_scale_1(layout, value_depth) -> None:
    query, key, value = inputs(value_depth=value_depth)
    out, top, total = whole(query, key, value)
    result = forward(*(lay(t, layout) for t in (query, key, value)), 4, layout)
    close(result[0], lay(out, layout))
    assert result[1].shape == result[2].shape == (2, 4, 5, 8)
    close(result[1], top.unsqueeze(-1).expand(2, 4, 5, 8))
    close(result[2], total.unsqueeze(-1).expand(2, 4, 5, 8))
    assert result[3].numel() == 0
    assert result[4:] == (0, 0, 2 * 4 * 5 * 7)
    differs(result[0], lay(whole(query, key, value, scale=1 / math.sqrt(6))[0], layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_of_the_query_share_those_of_the_key_in_order(layout) -> None:
    query, key, value = inputs()
    result = forward(*(lay(t, layout) for t in (query, key, value)), 4, layout, scale=0.3)[0]
    close(result, lay(whole(query, key, value, scale=0.3)[0], layout))
    shuffled = whole(query, key[:, [1, 0]], value[:, [1, 0]], scale=0.3)[0]
    differs(result, lay(shuffled, layout))


@pytest.mark.parametrize("layout", ["bnsd", "Bsh"])
def test_letters_of_the_layout_may_be_small(layout) -> None:
    query, key, value = inputs()
    result = forward(*(lay(t, layout.upper()) for t in (query, key, value)), 4, layout)[0]
    close(result, lay(whole(query, key, value)[0], layout.upper()))


@pytest.mark.parametrize(("length", "columns"), [(1, 1), (1, 9), (9, 1)])
def test_single_rows_and_columns(length, columns) -> None:
    query, key, value = inputs(length=length, columns=columns)
    close(forward(query, key, value, 4, "BNSD")[0], whole(query, key, value)[0])


# --- masks and sparse modes --------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("shape", ["BNSS", "B1SS", "11SS", "SS"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_a_mask_leaves_out_where_it_is_1(mode, shape, dtype) -> None:
    query, key, value = inputs()
    size = {"BNSS": (2, 4, 5, 7), "B1SS": (2, 1, 5, 7), "11SS": (1, 1, 5, 7), "SS": (5, 7)}[shape]
    mask = torch.rand(size) < 0.5
    mask[..., 0] = False
    kept = ~mask.expand(2, 4, 5, 7)
    result = forward(query, key, value, 4, "BNSD", atten_mask=mask.to(dtype), sparse_mode=mode)
    close(result[0], whole(query, key, value, kept)[0])
    close(result[2][..., 3], whole(query, key, value, kept)[2])
    differs(result[0], whole(query, key, value, ~kept)[0])


# mode, tokens before and after, and the rule of the page with what it is mistaken for
MODES = {
    "top-left": (2, {}, lambda i, j, q, k: j <= i, lambda i, j, q, k: j <= i + k - q),
    "bottom-right": (3, {}, lambda i, j, q, k: j <= i + k - q, lambda i, j, q, k: j <= i),
    "band": (
        4,
        {"pre_tockens": 3, "next_tockens": 1},
        lambda i, j, q, k: i + k - q - 3 <= j <= i + k - q + 1,
        lambda i, j, q, k: i - 3 <= j <= i + 1,
    ),
    "band-before": (
        4,
        {"pre_tockens": 5, "next_tockens": -2},
        lambda i, j, q, k: i + k - q - 5 <= j <= i + k - q - 2,
        lambda i, j, q, k: i - 5 <= j <= i - 2,
    ),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize(("length", "columns"), [(5, 9), (9, 5), (3, 13)])
def test_compressed_modes_count_from_their_own_corner(name, length, columns) -> None:
    mode, tokens, keeps, mistaken = MODES[name]
    query, key, value = inputs(batch=1, length=length, columns=columns)

    def kept(which):
        return rule(1, 4, length, columns, lambda b, i, j: which(i, j, length, columns))

    result = forward(query, key, value, 4, "BNSD", atten_mask=TRIANGLE, sparse_mode=mode, **tokens)
    out, top, total = whole(query, key, value, kept(keeps))
    close(result[0], out)
    close(result[1][..., 0], top)
    close(result[2][..., 7], total)
    differs(result[0], whole(query, key, value, kept(mistaken))[0])


# the four drawings of mode 0, from the top left: causal, band, both below, both above
TOKENS = [(5, 0), (2, 1), (4, -2), (-1, 3)]


@pytest.mark.parametrize(("before", "after"), TOKENS)
def test_tokens_of_mode_0_count_from_the_top_left(before, after) -> None:
    query, key, value = inputs(length=5, columns=7)
    kept = rule(2, 4, 5, 7, lambda b, i, j: i - before <= j <= i + after)
    arguments = {"pre_tockens": before, "next_tockens": after}
    result = forward(query, key, value, 4, "BNSD", atten_mask=~kept, **arguments)
    close(result[0], whole(query, key, value, kept)[0])
    shifted = rule(2, 4, 5, 7, lambda b, i, j: i + 2 - before <= j <= i + 2 + after)
    with pytest.raises(ValueError, match=r"atten_mask keeps scores outside pre_tokens"):
        forward(query, key, value, 4, "BNSD", atten_mask=~shifted, **arguments)


def test_a_mask_may_leave_out_more_than_the_tokens() -> None:
    query, key, value = inputs(length=5, columns=5)
    kept = rule(2, 4, 5, 5, lambda b, i, j: j <= i and (b == 0 or j != 2))
    result = forward(query, key, value, 4, "BNSD", atten_mask=~kept, next_tockens=0)[0]
    close(result, whole(query, key, value, kept)[0])


@pytest.mark.parametrize(
    ("length", "columns", "prefix"), [(6, 9, [4, 5]), (9, 6, [0, 3]), (6, 6, [2, 6])]
)
@pytest.mark.parametrize("mode", [5, 6])
def test_prefix_columns_are_kept_beside_the_bottom_right_triangle(
    length, columns, prefix, mode
) -> None:
    query, key, value = inputs(length=length, columns=columns)
    kept = rule(2, 4, length, columns, lambda b, i, j: j < prefix[b] or j <= i + columns - length)
    mask = PREFIX_MASK if mode == 6 else ~kept[:, :1]
    result = forward(query, key, value, 4, "BNSD", atten_mask=mask, prefix=prefix, sparse_mode=mode)
    close(result[0], whole(query, key, value, kept)[0])
    bare = rule(2, 4, length, columns, lambda b, i, j: j <= i + columns - length)
    differs(result[0], whole(query, key, value, bare)[0])


@pytest.mark.parametrize("mode", range(7))
def test_without_a_mask_every_mode_keeps_everything(mode) -> None:
    query, key, value = inputs()
    arguments = {"sparse_mode": mode, "pre_tockens": 1, "next_tockens": 0}
    if mode in (5, 6):
        arguments["prefix"] = [2, 3]
    result = forward(query, key, value, 4, "BNSD", **arguments)[0]
    close(result, whole(query, key, value)[0])


def test_rows_that_see_nothing_are_zeros_with_finite_statistics() -> None:
    query, key, value = inputs(batch=1, length=9, columns=5)
    result = forward(query, key, value, 4, "BNSD", atten_mask=TRIANGLE, sparse_mode=3)
    assert torch.equal(result[0][:, :, :4], torch.zeros(1, 4, 4, 6, dtype=torch.float64))
    assert (result[0][:, :, 4:] != 0).any(-1).all()
    assert (result[1][:, :, :4] == LOWEST).all()
    assert (result[2][:, :, :4] == 0).all()
    grads = backward(
        query,
        key,
        value,
        torch.ones_like(result[0]),
        4,
        "BNSD",
        atten_mask=TRIANGLE,
        sparse_mode=3,
        softmax_max=result[1],
        softmax_sum=result[2],
        attention_in=result[0],
    )
    assert all(grad.isfinite().all() for grad in grads)
    assert torch.equal(grads[0][:, :, :4], torch.zeros(1, 4, 4, 6, dtype=torch.float64))


# --- packed sequences --------------------------------------------------------------------------


def band(shift, before, after):
    return lambda i, j: i + shift - before <= j <= i + shift + after


@pytest.mark.parametrize(
    ("mode", "arguments", "keeps"),
    [
        (2, {}, lambda b, i, j: j <= i),
        (3, {}, lambda b, i, j: j <= i + K[b] - Q[b]),
        (
            4,
            {"pre_tockens": 2, "next_tockens": 1},
            lambda b, i, j: band(K[b] - Q[b], 2, 1)(i, j),
        ),
        (
            6,
            {"prefix": [2, 2, 1, 5]},
            lambda b, i, j: j < [2, 2, 1, 5][b] or j <= i + K[b] - Q[b],
        ),
        (
            7,
            {"pre_tockens": 6, "next_tockens": -2},
            lambda b, i, j: band(4, 6, -2)(i, j) if b == 3 else j <= i + K[b] - Q[b],
        ),
        (
            8,
            {"pre_tockens": 4, "next_tockens": 1},
            lambda b, i, j: band(1, 4, 1)(i, j) if b == 0 else j <= i,
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
@pytest.mark.parametrize("softmax_layout", ["", "TND"])
def test_tnd_masks_each_sequence_by_itself(mode, arguments, keeps, softmax_layout) -> None:
    (query, key, value), joined = packed(Q, K)
    mask = PREFIX_MASK if mode == 6 else TRIANGLE
    result = forward(
        *joined,
        4,
        "TND",
        atten_mask=mask,
        actual_seq_qlen=ends(Q),
        actual_seq_kvlen=ends(K),
        sparse_mode=mode,
        softmax_layout=softmax_layout,
        **arguments,
    )
    parts = []
    for b in range(4):
        kept = rule(1, 4, Q[b], K[b], lambda _, i, j, b=b: keeps(b, i, j))[0]
        parts.append(rows(query[b], key[b], value[b], kept))
    close(result[0], torch.cat([out for out, _, _ in parts], 1).transpose(0, 1))
    for statistic, which in ((result[1], 1), (result[2], 2)):
        assert statistic.shape == (10, 4, 8)
        if softmax_layout == "TND":
            expected = torch.cat([part[which] for part in parts], 1).transpose(0, 1)
        else:  # each sequence [N, S], one after the other, in a buffer said to be [T, N]
            expected = torch.cat([part[which].reshape(-1) for part in parts]).view(10, 4)
        close(statistic, expected.unsqueeze(-1).expand(10, 4, 8))
    assert result[6] == 4 * sum(q * k for q, k in zip(Q, K, strict=True))


def test_the_two_orders_of_statistics_differ() -> None:
    _, joined = packed(Q, K)
    arguments = {"actual_seq_qlen": ends(Q), "actual_seq_kvlen": ends(K)}
    one = forward(*joined, 4, "TND", **arguments)
    other = forward(*joined, 4, "TND", softmax_layout="TND", **arguments)
    assert torch.equal(one[0], other[0])
    differs(one[1], other[1])


@pytest.mark.parametrize("mode", [0, 1])
def test_a_tnd_mask_is_cut_to_each_sequence(mode) -> None:
    (query, key, value), joined = packed([3, 5], [6, 4])
    mask = torch.rand(5, 6) < 0.5
    mask[:, 0] = False
    result = forward(
        *joined,
        4,
        "TND",
        atten_mask=mask,
        sparse_mode=mode,
        actual_seq_qlen=[3, 8],
        actual_seq_kvlen=[6, 10],
    )[0]
    first = rows(query[0], key[0], value[0], ~mask[:3, :6].expand(4, 3, 6))[0]
    second = rows(query[1], key[1], value[1], ~mask[:5, :4].expand(4, 5, 4))[0]
    close(result, torch.cat([first, second], 1).transpose(0, 1))


def test_the_documents_cut_of_a_bottom_right_sequence_gives_its_pieces() -> None:
    """Mode 7's drawing: 4 x 6 cut into two times 2 x 6, the first piece last on card 1."""
    (_query, _key, _value), joined = packed([3, 4], [3, 6])
    whole_out = forward(
        *joined,
        4,
        "TND",
        atten_mask=TRIANGLE,
        sparse_mode=3,
        actual_seq_qlen=[3, 7],
        actual_seq_kvlen=[3, 9],
    )[0]
    cut = forward(
        joined[0][:5],
        joined[1],
        joined[2],
        4,
        "TND",
        atten_mask=TRIANGLE,
        sparse_mode=7,
        pre_tockens=6,
        next_tockens=-2,
        actual_seq_qlen=[3, 5],
        actual_seq_kvlen=[3, 9],
    )[0]
    close(cut, whole_out[:5])


def test_the_documents_cut_of_a_top_left_sequence_gives_its_pieces() -> None:
    """Mode 8's drawing: 5 x 4 cut into 2 x 4 and 3 x 4, the second piece first on card 2."""
    _, joined = packed([5, 2], [4, 3])
    whole_out = forward(
        *joined,
        4,
        "TND",
        atten_mask=TRIANGLE,
        sparse_mode=2,
        actual_seq_qlen=[5, 7],
        actual_seq_kvlen=[4, 7],
    )[0]
    cut = forward(
        joined[0][2:],
        joined[1],
        joined[2],
        4,
        "TND",
        atten_mask=TRIANGLE,
        sparse_mode=8,
        pre_tockens=4,
        next_tockens=1,
        actual_seq_qlen=[3, 5],
        actual_seq_kvlen=[4, 7],
    )[0]
    close(cut, whole_out[2:])


def test_sequences_that_take_no_part_give_zeros() -> None:
    (query, key, value), joined = packed([2, 3], [3, 4], idle=2)
    arguments = {"actual_seq_qlen": [2, 5, 0, 0], "actual_seq_kvlen": [3, 7, 0, 0]}
    result = forward(*joined, 4, "TND", **arguments)
    parts = [rows(*part)[0] for part in zip(query, key, value, strict=True)]
    close(result[0][:5], torch.cat(parts, 1).transpose(0, 1))
    assert torch.equal(result[0][5:], torch.zeros(2, 4, 6, dtype=torch.float64))
    grads = backward(
        *joined,
        torch.ones_like(result[0]),
        4,
        "TND",
        softmax_max=result[1],
        softmax_sum=result[2],
        attention_in=result[0],
        **arguments,
    )
    assert torch.equal(grads[0][5:], torch.zeros(2, 4, 6, dtype=torch.float64))
    assert torch.equal(grads[1][7:], torch.zeros(2, 2, 6, dtype=torch.float64))


# --- pse and sink ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (2, 4, 1, 7), (1, 4, 5, 7)])
@pytest.mark.parametrize("pse_type", [1, 0])
def test_pse_is_added_before_the_scale_or_after_it(shape, pse_type) -> None:
    query, key, value = inputs()
    pse = numbers(*shape)
    full = pse.expand(2, 4, 5, 7)
    expected = whole(query, key, value, bias=full, scale=0.3, inside=pse_type == 1)[0]
    mistaken = whole(query, key, value, bias=full, scale=0.3, inside=pse_type == 0)[0]
    second = REFERENCES["npu_fusion_attention_v2"]
    result = second(query, key, value, 4, "BNSD", pse=pse, scale=0.3, pse_type=pse_type)[0]
    close(result, expected)
    differs(result, mistaken)
    if pse_type == 1:
        close(forward(query, key, value, 4, "BNSD", pse=pse, scale=0.3)[0], expected)


def test_a_sink_is_one_more_score_that_is_not_scaled() -> None:
    query, key, value = inputs()
    sink = numbers(4)
    arguments = {"scale": 0.3, "atten_mask": TRIANGLE, "sparse_mode": 3}
    kept = rule(2, 4, 5, 7, lambda b, i, j: j <= i + 2)
    out, top, total = whole(query, key, value, kept, sink=sink, scale=0.3)
    result = forward(query, key, value, 4, "BNSD", sink=sink, **arguments)
    close(result[0], out)
    close(result[1][..., 0] + result[2][..., 0].log(), top + total.log())
    differs(result[0], whole(query, key, value, kept, scale=0.3)[0])


# --- dtypes, strides, extremes -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_are_computed_wide_and_rounded_once(dtype) -> None:
    query, key, value = (t.to(dtype) for t in inputs())
    exact = whole(query.double(), key.double(), value.double())
    result = forward(query, key, value, 4, "BNSD")
    assert result[0].dtype == dtype
    assert result[1].dtype == result[2].dtype == torch.float32
    close(result[0].double(), exact[0], 2 * torch.finfo(dtype).eps)
    close(result[1][..., 0].double(), exact[1], 1e-5)
    dy = numbers(2, 4, 5, 6, dtype=dtype)
    saved = dict(zip(SAVED, (result[1], result[2], result[0]), strict=True))
    grads = backward(query, key, value, dy, 4, "BNSD", **saved)
    assert [g.dtype for g in grads] == [dtype, dtype, dtype, dtype, torch.float32]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout) -> None:
    query, key, value = (lay(t, layout) for t in inputs())
    wide = [torch.stack([t, torch.full_like(t, math.nan)], -1)[..., 0] for t in (query, key, value)]
    assert not any(t.is_contiguous() for t in wide)
    assert torch.equal(forward(*wide, 4, layout)[0], forward(query, key, value, 4, layout)[0])


def test_scores_beyond_float16_do_not_overflow() -> None:
    query = torch.full((1, 1, 2, 128), 60.0, dtype=torch.float16)
    key = torch.stack([torch.full((128,), 60.0), torch.full((128,), -60.0)]).half()[None, None]
    value = torch.tensor([[1.0], [2.0]]).half()[None, None]
    result = forward(query, key, value, 1, "BNSD")
    assert torch.equal(result[0], torch.ones(1, 1, 2, 1).half())
    assert (result[1] == 128 * 3600.0).all()
    assert (result[2] == 1.0).all()


def test_large_logits_in_float64() -> None:
    query, key, value = (1e3 * t for t in inputs())
    close(forward(query, key, value, 4, "BNSD")[0], whole(query, key, value)[0])
