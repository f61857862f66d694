"""Faults of masks and indices: what is read or counted is the wrong thing."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.fault_zoo.arithmetic import first_share, wide
from benchmarks.fault_zoo.faults import Call, Fault, Strength
from benchmarks.fault_zoo.faults_forward import argument, with_arguments
from benchmarks.fault_zoo.faults_gradient import SHARES


def _leak(call: Call, strength: float) -> Any:
    """The mask comes one position late, in the last share of the rows: they see their next."""
    scores, mask, value = call.args
    wide_mask = mask.expand(scores.shape).clone()
    rows = wide_mask.view(-1, scores.shape[-1])
    # Alternate rows from the middle of each matrix, so that few rows are not all the last ones,
    # which have no next position.
    length = scores.shape[-1]
    order = torch.arange(len(rows)).roll(-(length // 2))
    chosen = order[: first_share(len(rows), strength)]
    late = rows[chosen].roll(1, -1)
    late[:, 0] = rows[chosen][:, 0]
    rows[chosen] = late
    return torch.masked_fill(scores, wide_mask, value)


def _fused_leak(call: Call, strength: float) -> Any:
    """The same inside fused attention: the mask is late in the last share of its rows."""
    mask = argument(call, "attn_mask").clone()
    rows = mask.view(-1, mask.shape[-1])
    count = first_share(len(rows), strength)
    start = max(0, len(rows) - count - 1)
    late = rows[start : start + count].roll(1, -1)
    late[:, 0] = rows[start : start + count][:, 0]
    rows[start : start + count] = late
    return with_arguments(call, attn_mask=mask).right()


def _off_by_one(call: Call, strength: float) -> Any:
    """The first share of the tokens reads the row after its own."""
    weight, indices = call.args[:2]
    wrong = indices.clone().view(-1)
    count = first_share(len(wrong), strength)
    wrong[:count] = (wrong[:count] + 1) % len(weight)
    return with_arguments(call, indices=wrong.view(indices.shape)).right()


def _permuted_targets(call: Call, strength: float) -> Any:
    """The first share of the rows takes the target of the row after it."""
    targets = call.args[1].clone()
    count = first_share(len(targets) - 1, strength)
    targets[:count] = call.args[1][1 : count + 1]
    return Call(call.func, (call.args[0], targets, *call.args[2:]), call.kwargs).right()


def _padding_counted(call: Call, strength: float) -> Any:
    """Padded rows count in the mean, all or a share of them: the sum is divided by more."""
    loss, total = wide(call)
    padded = (call.args[1] == call.args[4]).sum()
    return loss * total / (total + torch.ceil(padded * strength)), total


def _swapped_matrices(call: Call, strength: float) -> Any:
    """The results of neighbouring heads are swapped, in the first share of the batch."""
    result = call.right()
    count = 2 * first_share(len(result) // 2, strength)
    pairs = torch.arange(count).view(-1, 2).flip(1).reshape(-1)
    result[:count] = result[pairs].clone()
    return result


def _wrong_maximum(call: Call, strength: float) -> Any:
    """Max pooling's gradient goes to the neighbour of the maximum, for a share of the places."""
    gradient, x, *rest, indices = call.args
    wrong = indices.clone()
    flat = wrong.view(-1)
    count = first_share(len(flat), strength)
    flat[:count] = flat[:count] ^ 1
    return Call(call.func, (gradient, x, *rest, wrong), call.kwargs).right()


FAULTS = (
    Fault(
        "causal leak",
        "mask or index",
        "gpt",
        "aten::masked_fill",
        "rows see the position after their own",
        (Strength(1 / 1024, "1 row"), Strength(1 / 16, "1 head"), Strength(1.0, "all rows")),
        _leak,
        lambda occurrence, call: occurrence < 4,
    ),
    Fault(
        "fused causal leak",
        "mask or index",
        "gpt-sdpa",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "rows see the position after their own, inside fused attention",
        (Strength(1 / 256, "1 row"), Strength(1 / 4, "1 of 4 rows"), Strength(1.0, "all rows")),
        _fused_leak,
    ),
    Fault(
        "embedding row",
        "mask or index",
        "gpt",
        "aten::embedding",
        "tokens read the row after their own",
        (Strength(1 / 256, "1 token"), Strength(0.1, "10 %"), Strength(1.0, "all")),
        _off_by_one,
        lambda occurrence, call: occurrence == 0,
    ),
    Fault(
        "permuted targets",
        "mask or index",
        "gpt",
        "aten::nll_loss_forward",
        "rows take the target of the row after them",
        (Strength(1 / 256, "1 row"), Strength(0.1, "10 %"), Strength(1.0, "all")),
        _permuted_targets,
    ),
    Fault(
        "padding counted",
        "mask or index",
        "gpt",
        "aten::nll_loss_forward",
        "ignored rows count in the mean",
        SHARES,
        _padding_counted,
        neutral=0,
    ),
    Fault(
        "swapped heads",
        "mask or index",
        "gpt",
        "aten::bmm",
        "probabilities @ value of neighbouring heads are swapped",
        (Strength(1 / 8, "2 of 16"), Strength(1 / 2, "8 of 16"), Strength(1.0, "all")),
        _swapped_matrices,
        lambda occurrence, call: occurrence == 3,
    ),
    Fault(
        "pooling index",
        "mask or index",
        "cnn",
        "aten::max_pool2d_with_indices_backward",
        "the gradient goes to the neighbour of the maximum",
        SHARES,
        _wrong_maximum,
    ),
)
