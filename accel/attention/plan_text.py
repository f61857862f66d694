"""A plan of attention as text: the block that is printed, and the refusal of what cannot fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accel.attention.plan import AttentionPlan
    from accel_kernels.segmented_attention.workspace import Tiles

_STEPS = (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))


def described(plan: AttentionPlan) -> str:
    """A plan in aligned lines."""
    rows = [
        ("query", str(list(plan.shapes[0]))),
        ("key", str(list(plan.shapes[1]))),
        ("value", str(list(plan.shapes[2]))),
        ("mask", "none" if plan.mask is None else str(plan.mask)),
        ("segment size", _segment(plan)),
        ("tiles", _tiles(plan)),
        (
            "scores seen",
            f"{plan.seen_scores:,} of {plan.full_scores:,} ({plan.skipped:.1%} skipped)",
        ),
        ("FLOPs", _flops(plan)),
        ("inputs", _bytes(plan.input_bytes)),
        ("results", f"{_bytes(plan.result_bytes)}: {_results(plan)}"),
        ("workspace", _workspace(plan)),
        ("peak", _peak(plan)),
        ("plain formula", f"{_bytes(plan.score_matrix_bytes)} for matrices of scores"),
    ]
    if plan.memory_budget is not None and plan.peak_bytes is not None:
        left = plan.memory_budget - plan.input_bytes - plan.peak_bytes
        state = f"fits, {_bytes(left)} to spare" if left >= 0 else f"{_bytes(-left)} too little"
        rows.append(("budget", f"{_bytes(plan.memory_budget)}: {state}"))
    dtype = str(plan.dtype).removeprefix("torch.")
    head = f"segmented_attention on {plan.device} in {dtype}: {plan.backend} ({plan.how})"
    return "\n".join([head, *(f"  {name:<15}{text}" for name, text in rows)])


def refusal(plan: AttentionPlan) -> str:
    """Why a call cannot fit, for the plan of those tried that needs least, and what to do."""
    assert plan.peak_bytes is not None  # noqa: S101
    assert plan.memory_budget is not None  # noqa: S101
    needed, there = plan.input_bytes + plan.peak_bytes, plan.memory_budget
    segment = "" if plan.segment_size is None else f" with segments of {plan.segment_size}"
    return (
        f"attention of {list(plan.shapes[0])} against {list(plan.shapes[1])} does not fit: "
        f"{plan.backend} on {plan.device}{segment} needs {_bytes(needed)} "
        f"(inputs {_bytes(plan.input_bytes)}, results {_bytes(plan.result_bytes)}, workspace "
        f"{_bytes(plan.workspace_bytes or 0)}), and there are {_bytes(there)}. "
        f"{_remedies(plan, needed, there)}"
    )


def _remedies(plan: AttentionPlan, needed: int, there: int) -> str:
    key_heads, group = plan.shapes[1][1], plan.shapes[0][1] // max(plan.shapes[1][1], 1)
    found = []
    fitting = key_heads * there // needed * group if needed else 0
    if fitting >= group and key_heads > 1:
        found.append(f"about {fitting} of {plan.shapes[0][1]} heads a call")
    if plan.dtype in (torch.float32, torch.float64):
        found.append(f"bfloat16, about {_bytes(needed * 2 // plan.dtype.itemsize)}")
    if plan.needs_grad:
        found.append("if no backward follows, needs_grad=False")
    devices = -(-needed // there) if there > 0 else 0
    if devices:
        found.append(f"context parallelism over {devices} or more such devices")
    return f"Try {'; '.join(found)}." if found else "Try a device with more memory."


def _segment(plan: AttentionPlan) -> str:
    return "the kernel's own" if plan.segment_size is None else f"{plan.segment_size:,}"


def _tiles(plan: AttentionPlan) -> str:
    if plan.tiles is None:
        return "the kernel's own"
    text = _counts(plan.tiles)
    if plan.backward_tiles is not None and plan.backward_tiles != plan.tiles:
        text += f"; backward {_counts(plan.backward_tiles)}"
    return text


def _counts(tiles: Tiles) -> str:
    left_out = "" if tiles.empty is None else f", {tiles.empty:,} empty and left out"
    return f"{tiles.full:,} full, {tiles.partial:,} partial{left_out}"


def _flops(plan: AttentionPlan) -> str:
    text = f"forward {_number(plan.forward_flops)}"
    if plan.needs_grad:
        text += f", backward {_number(plan.backward_flops)}"
    return f"{text} ({_number(plan.full_flops)} without a mask)"


def _results(plan: AttentionPlan) -> str:
    return "output, log-sum-exp" + (", gradients" if plan.needs_grad else "")


def _workspace(plan: AttentionPlan) -> str:
    if plan.workspace_bytes is None:
        return f"not known: {plan.backend} does not tell"
    return _bytes(plan.workspace_bytes)


def _peak(plan: AttentionPlan) -> str:
    if plan.peak_bytes is None:
        return "not known"
    measured = "" if plan.measured else "; not measured on this device"
    return f"{_bytes(plan.peak_bytes)} over the inputs, at most (predicted{measured})"


def _bytes(count: int) -> str:
    return f"{_number(count)}B"


def _number(count: int) -> str:
    for letter, size in _STEPS:
        if count >= size:
            return (
                f"{count / size:.3g} {letter}"
                if count < 999.5 * size
                else f"{count / size:.0f} {letter}"
            )
    return f"{count} "
