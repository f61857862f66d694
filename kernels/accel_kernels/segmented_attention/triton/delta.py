"""The kernel for what each row owes: the inner product of its output and its gradient."""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from accel_kernels.segmented_attention.triton.language import constexpr, jit, tensor, tl
from accel_kernels.segmented_attention.triton.tiles import load_rows


@jit
def delta_kernel(
    grad_out: tensor, out: tensor, grad_lse: tensor, delta: tensor,
    grad_out_0: tensor, grad_out_1: tensor, grad_out_2: tensor, grad_out_3: tensor,
    out_0: tensor, out_1: tensor, out_2: tensor, out_3: tensor,
    items: tensor, heads: tensor, queries: tensor,
    LSE: constexpr, VALUE: constexpr, VALUE_WIDTH: constexpr, ROWS: constexpr,
) -> None:  # fmt: skip
    """`delta = sum(grad_out * out) - grad_lse`, all `[B, H, T]`; the latter two contiguous."""
    blocks = (queries + ROWS - 1) // ROWS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        first = (item % blocks) * ROWS
        entry = (item // blocks).to(tl.int64)
        b, h = entry // heads, entry % heads
        grad = load_rows(
            grad_out + b * grad_out_0 + h * grad_out_1, first, queries, grad_out_2, grad_out_3,
            VALUE, ROWS, VALUE_WIDTH, False,
        )  # fmt: skip
        there = load_rows(
            out + b * out_0 + h * out_1, first, queries, out_2, out_3,
            VALUE, ROWS, VALUE_WIDTH, False,
        )  # fmt: skip
        owed = tl.sum(grad.to(tl.float32) * there.to(tl.float32), 1)
        row = first + tl.arange(0, ROWS)
        at = entry * queries + row
        if LSE:
            owed -= tl.load(grad_lse + at, mask=row < queries, other=0.0).to(tl.float32)
        tl.store(delta + at, owed, mask=row < queries)
