"""Merging attention over parts of the keys."""

import math

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.attention_rows import SAVED, close, differs, inputs, lay, numbers, packed

forward = REFERENCES["npu_fusion_attention"]
backward = REFERENCES["npu_fusion_attention_grad"]

update = REFERENCES["npu_ring_attention_update"]


def test_two_parts_of_the_keys_merge_to_the_whole_in_both_directions() -> None:
    query, key, value = inputs(length=5, columns=7)
    laid = [lay(t, "SBH") for t in (query, key, value)]
    full = forward(*laid, 4, "SBH")
    halves = [(slice(0, 3)), (slice(3, 7))]
    parts = [forward(laid[0], laid[1][h], laid[2][h], 4, "SBH") for h in halves]
    one, two = parts
    merged = update(one[0], one[1], one[2], two[0], two[1], two[2])
    for ours, theirs in zip(merged, full[:3], strict=True):
        close(ours, theirs)
    differs(merged[0], 0.5 * (one[0] + two[0]))
    dy = numbers(*full[0].shape)
    saved = dict(zip(SAVED, (merged[1], merged[2], merged[0]), strict=True))
    expected = backward(*laid, dy, 4, "SBH", **saved)
    grads = [backward(laid[0], laid[1][h], laid[2][h], dy, 4, "SBH", **saved) for h in halves]
    close(grads[0][0] + grads[1][0], expected[0])
    close(torch.cat([g[1] for g in grads]), expected[1])
    close(torch.cat([g[2] for g in grads]), expected[2])


@pytest.mark.parametrize("softmax_layout", ["", "TND"])
@pytest.mark.parametrize("from_zero", [True, False])
def test_packed_parts_merge_in_either_order_of_statistics(softmax_layout, from_zero) -> None:
    lengths, total = [2, 3], 5
    _, (query, key, value) = packed(lengths, [4, 6])
    arguments = {"softmax_layout": softmax_layout, "actual_seq_qlen": [2, 5]}
    full = forward(query, key, value, 4, "TND", actual_seq_kvlen=[4, 10], **arguments)
    picks = ([0, 1, 4, 5, 6], [2, 3, 7, 8, 9])
    parts = [
        forward(query, key[p], value[p], 4, "TND", actual_seq_kvlen=[2, 5], **arguments)
        for p in picks
    ]
    sequence_ends = torch.tensor([0, 2, total] if from_zero else [2, total])
    merged = update(
        *parts[0][:3],
        *parts[1][:3],
        actual_seq_qlen=sequence_ends,
        input_layout="TND",
        input_softmax_layout=softmax_layout,
    )
    for ours, theirs in zip(merged, full[:3], strict=True):
        close(ours, theirs)
    wrong = update(
        *parts[0][:3],
        *parts[1][:3],
        actual_seq_qlen=sequence_ends,
        input_layout="TND",
        input_softmax_layout="" if softmax_layout else "TND",
    )
    differs(wrong[0], full[0])


def test_merging_with_a_part_that_saw_nothing() -> None:
    query, key, value = inputs(batch=1)
    laid = [lay(t, "SBH") for t in (query, key, value)]
    seen = forward(*laid, 4, "SBH")
    nothing = forward(*laid, 4, "SBH", sparse_mode=1, atten_mask=torch.ones(5, 7, dtype=torch.bool))
    for one, two in ((seen, nothing), (nothing, seen)):
        for ours, theirs in zip(update(*one[:3], *two[:3]), seen[:3], strict=True):
            close(ours, theirs)
    blind = update(*nothing[:3], *nothing[:3])
    assert torch.equal(blind[0], torch.zeros_like(blind[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_keeps_dtypes(dtype) -> None:
    out = numbers(3, 2, 8, dtype=dtype)
    stats = torch.rand(2, 2, 3, 8)
    result = update(out, stats, stats + 1, out, stats, stats + 1)
    assert [t.dtype for t in result] == [dtype, torch.float32, torch.float32]
    close(result[0], out, torch.finfo(dtype).eps)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_attention_update_weighs_by_log_sum_exp(parts) -> None:
    lse, outs = [numbers(6) for _ in range(parts)], [numbers(6, 8) for _ in range(parts)]
    total = sum(x.exp() for x in lse)
    expected = sum(x.exp().unsqueeze(1) * out for x, out in zip(lse, outs, strict=True))
    result, merged = REFERENCES["npu_attention_update"](lse, outs, 1)
    close(result, expected / total.unsqueeze(1))
    close(merged, total.log())
    assert REFERENCES["npu_attention_update"](lse, outs, 0)[1].numel() == 0


def test_attention_update_of_large_and_missing_parts() -> None:
    lse = [torch.tensor([900.0, -math.inf, -math.inf]), torch.tensor([901.0, 3.0, -math.inf])]
    outs = [torch.ones(3, 8), 2 * torch.ones(3, 8)]
    result, merged = REFERENCES["npu_attention_update"](lse, outs, 1)
    share = math.exp(-1) / (1 + math.exp(-1))
    close(result[0], torch.full((8,), share + 2 * (1 - share)), 1e-6)
    assert torch.equal(result[1], torch.full((8,), 2.0))
    assert torch.equal(result[2], torch.zeros(8))
    assert merged[2] == -math.inf


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_layout": "BNSD"}, ValueError, "input_layout"),
        ({"input_softmax_layout": "BNS"}, ValueError, "input_softmax_layout"),
        ({"input_layout": "TND"}, ValueError, "prev_softmax_max"),
        ({"cur_attn_out": torch.zeros(3, 2, 4)}, ValueError, "cur_attn_out"),
        ({"cur_softmax_sum": torch.zeros(2, 2, 3, 4)}, ValueError, "cur_softmax_sum"),
        ({"cur_softmax_sum": torch.zeros(2, 2, 3, 8).half()}, TypeError, "cur_softmax_sum"),
    ],
)
def test_ring_update_refuses_by_name(arguments, error, message) -> None:
    out, stats = torch.zeros(3, 2, 8), torch.zeros(2, 2, 3, 8)
    names = ("prev_attn_out", "prev_softmax_max", "prev_softmax_sum")
    base = dict(zip(names, (out, stats, stats), strict=True))
    base |= {name.replace("prev", "cur"): tensor for name, tensor in base.items()}
    with pytest.raises(error, match=message):
        update(**{**base, **arguments})


@pytest.mark.parametrize("given", [None, torch.tensor([2, 4]), torch.tensor([2.0, 3.0])])
def test_a_packed_ring_update_needs_the_ends_of_its_sequences(given) -> None:
    out, stats = torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)
    with pytest.raises(ValueError, match="actual_seq_qlen"):
        update(out, stats, stats, out, stats, stats, actual_seq_qlen=given, input_layout="TND")
