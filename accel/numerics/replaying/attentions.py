"""Fused attention and its gradients as plain formulas in float64.

The operators of CUDA, the CPU and third-party backends differ in names and in what else they
return; what they compute is softmax(scale * query @ key^T + bias) @ value, with a causal mask that
starts at the top left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Given, Results
from accel.numerics.replaying.references import Formula
from accel.numerics.replaying.refusals import CannotReplayError

_MASKS = ("attn_mask", "attn_bias")


def _scores(given: Mapping[str, Given]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Scores `[B, H, Tq, Tk]`, key and value `[B, H, Tk, D]` of every query head, and the scale."""
    query, key, value = given["query"], given["key"], given["value"]
    if given.get("dropout_p"):
        raise CannotReplayError("its dropout draws random numbers that it does not return")
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scale = given.get("scale")
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    scores = query @ key.transpose(-1, -2) * scale
    for name in _MASKS:
        mask = given.get(name)
        if mask is None or not mask.numel():
            continue
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if is_bool else scores + mask
    if given.get("is_causal"):
        rows, columns = scores.shape[-2:]
        seen = torch.ones(rows, columns, dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    return scores, key, value, scale


def _forward(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    scores, _, value, _ = _scores(given)
    out = torch.softmax(scores, -1).nan_to_num(0.0) @ value
    lse = torch.logsumexp(scores, -1)
    outputs: list[Tensor | None] = [out, _padded(lse, _recorded(recorded, 1))]
    return outputs + [None] * (len(recorded.outputs) - 2)


def _recorded(recorded: Results, index: int) -> Tensor | None:
    return recorded.outputs[index] if index < len(recorded.outputs) else None


def _padded(lse: Tensor, recorded: Tensor | None) -> Tensor | None:
    """Some kernels round the rows of the log-sum-exp up; those beyond are not checked."""
    if recorded is None or recorded.dim() != 3 or recorded.shape[:2] != lse.shape[:2]:
        return None
    if recorded.shape[2] < lse.shape[2]:
        return None
    whole = recorded.detach().to("cpu", torch.float64).clone()
    # A row that sees no key has no sum: kernels say -inf, +inf, NaN or 0, and nobody uses it.
    rows = whole[..., : lse.shape[2]]
    rows.copy_(torch.where(torch.isinf(lse), rows, lse))
    return whole


def _gradients(given: Mapping[str, Given]) -> dict[str, Tensor]:
    grad = given["grad_out"] if "grad_out" in given else given["grad_out_"]
    out, lse = given["out"], given["logsumexp"]
    scores, key, value, scale = _scores(given)
    rows = scores.shape[2]
    lse = lse.reshape(*scores.shape[:2], -1)[..., :rows, None]
    weights = torch.exp(scores - lse).masked_fill(torch.isinf(scores) | torch.isinf(lse), 0.0)
    inner = grad @ value.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True)
    moved = weights * inner
    heads = given["key"].shape[1]
    return {
        "query": moved @ key * scale,
        "key": _per_group(moved.transpose(-1, -2) @ given["query"] * scale, heads),
        "value": _per_group(weights.transpose(-1, -2) @ grad, heads),
        "bias": moved,
    }


def _per_group(gradient: Tensor, heads: int) -> Tensor:
    """Sum over the query heads that share a key head."""
    summed: Tensor = gradient.unflatten(1, (heads, -1)).sum(2)
    return summed


def _backward(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    gradients = _gradients(given)
    outputs: list[Tensor | None] = [gradients[name] for name in ("query", "key", "value")]
    if len(recorded.outputs) > 3:
        outputs.append(_of_bias(gradients["bias"], recorded.outputs[3]))
    wanted = given.get("grad_input_mask")
    if isinstance(wanted, Sequence):
        pairs = zip(outputs, [*wanted, True, True], strict=False)
        outputs = [output if asked else None for output, asked in pairs]
    return outputs


def _of_bias(gradient: Tensor, recorded: Tensor | None) -> Tensor | None:
    if recorded is None or not _expands(tuple(recorded.shape), tuple(gradient.shape)):
        return None
    return gradient.sum_to_size(recorded.shape)


def _expands(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a tensor of `shape` expands to `whole`."""
    ends = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(size in (1, there) for size, there in ends)


FORMULAS: Mapping[str, Formula] = {
    f"aten::_scaled_dot_product_{name}": function
    for kernel in (
        "flash_attention{}", "flash_attention_for_cpu{}", "efficient_attention{}",
        "cudnn_attention{}", "fused_attention_overrideable{}",
    )
    for name, function in ((kernel.format(""), _forward), (kernel.format("_backward"), _backward))
}  # fmt: skip
"""By name; each takes `[B, H, T, D]`."""
