"""The formula of `npu_fusion_attention` from its pages, row by row, and data for its tests.

Nothing is shared with the references but torch: a mask is a rule on row and column, a layout a
permutation, and gradients are autograd's of the row formula.
"""

import torch

LOWEST = torch.finfo(torch.float32).min
TRIANGLE = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
PREFIX_MASK = torch.cat(
    [TRIANGLE, (torch.arange(2048) >= 1024).expand(1024, 2048)]
)  # as the page draws it: 1024 rows, the right half masked
LAYOUTS = ("BNSD", "BSND", "BSH", "SBH")
SAVED = ("softmax_max", "softmax_sum", "attention_in")
Q, K = [3, 0, 5, 2], [4, 2, 3, 6]
"""Lengths of the sequences in packed tests: of queries and of keys."""


def rows(query, key, value, kept=None, scale=1.0, bias=None, inside=True, sink=None, dropped=None):
    """Output `[N, S, D]`, maxima and sums of one sequence; `kept` is `[N, Sq, Skv]`."""
    heads, length, _ = query.shape
    group = heads // key.shape[0]
    outs, maxima, sums = [], [], []
    for n in range(heads):
        for i in range(length):
            seen = [j for j in range(key.shape[1]) if kept is None or kept[n, i, j]]
            logits = []
            for j in seen:
                dot = (query[n, i] * key[n // group, j]).sum()
                if bias is None:
                    logits.append(scale * dot)
                else:
                    logits.append(
                        scale * (dot + bias[n, i, j]) if inside else scale * dot + bias[n, i, j]
                    )
            if sink is not None:
                logits.append(sink[n])
            if not logits:
                outs.append(query[n, i, :1].repeat(value.shape[-1]) * 0)
                maxima.append(query.new_tensor(LOWEST))
                sums.append(query.new_tensor(0.0))
                continue
            stacked = torch.stack(logits)
            top = stacked.max()
            weights = (stacked - top).exp()
            out = query[n, i, :1].repeat(value.shape[-1]) * 0
            for j, weight in zip(seen, weights, strict=False):
                factor = 1.0 if dropped is None else dropped[n, i, j]
                out = out + weight / weights.sum() * factor * value[n // group, j]
            outs.append(out)
            maxima.append(top)
            sums.append(weights.sum())
    shape = (heads, length)
    return (
        torch.stack(outs).view(*shape, -1) if outs else query.new_zeros(*shape, value.shape[-1]),
        torch.stack(maxima).view(shape) if maxima else query.new_zeros(shape),
        torch.stack(sums).view(shape) if sums else query.new_zeros(shape),
    )


def whole(query, key, value, kept=None, bias=None, sink=None, **kwargs):
    """`rows` over a batch `[B, N, S, D]`."""
    parts = [
        rows(
            query[b],
            key[b],
            value[b],
            None if kept is None else kept[b],
            bias=None if bias is None else bias[b],
            sink=sink,
            **kwargs,
        )
        for b in range(query.shape[0])
    ]
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def rule(batch, heads, length, columns, keeps):
    """`[B, N, Sq, Skv]` from `keeps(b, i, j)`."""
    kept = torch.zeros(batch, heads, length, columns, dtype=torch.bool)
    for b in range(batch):
        for i in range(length):
            for j in range(columns):
                kept[b, :, i, j] = keeps(b, i, j)
    return kept


def lay(tensor, layout):
    """`[B, N, S, D]` in a layout."""
    if layout == "BNSD":
        return tensor
    if layout == "BSND":
        return tensor.permute(0, 2, 1, 3)
    batch, heads, length, depth = tensor.shape
    flat = tensor.permute(0, 2, 1, 3).reshape(batch, length, heads * depth)
    return flat if layout == "BSH" else flat.permute(1, 0, 2)


def numbers(*shape, requires_grad=False, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_(requires_grad)


def inputs(batch=2, heads=4, kv_heads=2, length=5, columns=7, depth=6, value_depth=6):
    return (
        numbers(batch, heads, length, depth),
        numbers(batch, kv_heads, columns, depth),
        numbers(batch, kv_heads, columns, value_depth),
    )


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def differs(actual, wrong):
    assert not torch.allclose(actual, wrong, rtol=1e-3, atol=1e-3), "the control passes too"


def packed(lengths_q, lengths_k, heads=4, kv_heads=2, depth=6, value_depth=6, idle=0):
    """Sequences `[N, S, D]` and the packed TND tensors, with `idle` unused tokens at the end."""
    query = [numbers(heads, length, depth) for length in lengths_q]
    key = [numbers(kv_heads, length, depth) for length in lengths_k]
    value = [numbers(kv_heads, length, value_depth) for length in lengths_k]
    joined = []
    for parts in (query, key, value):
        tail = numbers(parts[0].shape[0], idle, parts[0].shape[2])
        joined.append(torch.cat([*parts, tail], 1).transpose(0, 1).contiguous())
    return (query, key, value), joined


def ends(lengths):
    return [sum(lengths[: index + 1]) for index in range(len(lengths))]
