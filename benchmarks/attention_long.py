"""Attention over long sequences: the error of gradients by length, and a million tokens.

    python benchmarks/attention_long.py [--tokens 1000000] [--lengths 2048 8192 32768]

Errors are relative root mean squares against the reference kernel in float64, causal, one head of
64, beside those of SDPA in the same run. Of the million tokens' forward in bfloat16, rows are
checked against float64, each computed alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import environment
import torch
from torch import Tensor
from torch.nn import functional as F

import accel

NAMES = ("out", "query", "key", "value")
CHECKED_ROWS = 64


def drawn(length: int, dtype: torch.dtype) -> list[Tensor]:
    device = accel.current_device().torch_device
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(1, 1, length, 64, generator=generator).to(dtype).to(device) for _ in range(4)
    ]


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients of query, key and value."""
    *inputs, grad = tensors
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def errors(length: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per kernel: how far output and gradients are from float64."""
    tensors = drawn(length, dtype)
    truth = with_gradients(
        lambda *t: accel.segmented_attention(*t, is_causal=True, backend="reference"),
        [tensor.double() for tensor in tensors],
    )
    forms: dict[str, Callable[..., Tensor]] = {
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    }
    for spec in accel.backends("segmented_attention"):
        given = [tensor.requires_grad_() for tensor in tensors[:3]]
        answer = accel.explain("segmented_attention", *given, is_causal=True, backend=spec.name)
        if answer.chosen and spec.name != "sdpa":
            forms[f"accel {spec.name}"] = lambda *t, name=spec.name: accel.segmented_attention(
                *t, is_causal=True, backend=name
            )
    rows = []
    for name, form in forms.items():
        found = with_gradients(form, [tensor.detach() for tensor in tensors])
        row = {
            part: float((a.double() - t).norm() / t.norm())
            for part, a, t in zip(NAMES, found, truth, strict=True)
        }
        rows.append({"form": name, "length": length, "dtype": str(dtype)[6:], **row})
        print(rows[-1], flush=True)
    return rows


def forward_of(tokens: int) -> dict[str, Any]:
    """Time, memory and the worst checked row of one forward in bfloat16."""
    device = accel.current_device()
    query, key, value, _ = drawn(tokens, torch.bfloat16)
    accel.segmented_attention(*(t[:, :, :64] for t in (query, key, value)), is_causal=True)
    device.synchronize()
    device.reset_peak_memory()
    before, begun = device.memory().used, time.perf_counter()
    with torch.no_grad():
        out = accel.segmented_attention(query, key, value, is_causal=True)
    device.synchronize()
    seconds, extra = time.perf_counter() - begun, device.memory().peak - before
    chosen = accel.explain("segmented_attention", query, key, value, is_causal=True).chosen
    worst = 0.0
    for row in torch.linspace(0, tokens - 1, CHECKED_ROWS).long().tolist():
        k, v = (t[0, 0, : row + 1].double() for t in (key, value))
        truth = torch.softmax(k @ query[0, 0, row].double() / 8, 0) @ v
        error = (out[0, 0, row].double() - truth).norm() / truth.norm()
        worst = max(worst, float(error))
    return {
        "tokens": tokens,
        "backend": chosen,
        "seconds": seconds,
        "extra_bytes": extra,
        "gflops": 2 * 2 * tokens * (tokens + 1) / 2 * 64 / seconds / 1e9,
        "rows_checked": CHECKED_ROWS,
        "worst_relative_error_of_a_row": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192, 32768])
    options = parser.parse_args()
    rows = [
        row
        for dtype in (torch.bfloat16, torch.float32)
        for length in options.lengths
        for row in errors(length, dtype)
    ]
    longest = forward_of(options.tokens)
    print(longest)
    print(f"written: {environment.write('attention_long', {'errors': rows, 'longest': longest})}")


if __name__ == "__main__":
    main()
