"""Comparisons made by hand, for tests of what is made from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accel.numerics.comparing.comparison import (
    Accuracy,
    Attribution,
    Comparison,
    Coverage,
    Decomposition,
    Element,
    ModuleRow,
    Row,
    StepSummary,
    Verdict,
)
from accel.numerics.storage.entries import Key, Phase, Place

PLACE = Place("models/net.py", 12, "forward")


def key(index: int, phase: Phase = "forward") -> Key:
    return Key(phase, f"blocks.{index}", 0, "" if phase == "forward" else "gelu#0", "gelu", 0)


def row(order: int, phase: Phase = "forward", **changes: Any) -> Row:
    made = Row(
        order=order,
        name=str(key(order, phase)),
        key=key(order, phase),
        phase=phase,
        module=f"blocks.{order}",
        module_class="Block",
        op="gelu",
        aligned="name",
        place=PLACE,
        dtypes=("float32", "float32"),
        shape=(4, 8),
        distance=1e-7,
        input_distance=0.0,
        expected=4e-6,
        status="rounding",
    )
    return replace(made, **changes)


def accuracy(**changes: Any) -> Accuracy:
    right = Accuracy("right", rms=0.5, worst=2.0, limit_rms=15.0, limit_worst=30.0, error=4e-8)
    return replace(right, **changes)


def faulty_row(order: int = 2) -> Row:
    return row(
        order,
        distance=2e-4,
        status="diverges",
        reference=accuracy(accumulated=3.0),
        candidate=accuracy(
            verdict="faulty", reason="R is 2500 and not at most 15", rms=2500.0, worst=1.2e4,
            accumulated=3400.0,
        ),
        contribution=-1.1e-5,
        decomposition=Decomposition(2.1e-4, 0.0, 4e-8),
        elements=(Element((1, 7), -0.0254449, -0.0251160, -0.02544500364, 1.8e5),),
        histogram=((0.0, 5), (0.5, 7), (1.0, 20)),
    )  # fmt: skip


def comparison(rows: tuple[Row, ...], **changes: Any) -> Comparison:
    made = Comparison(
        verdict=Verdict("same", "the runs are equal"),
        findings=(),
        reference="run-a",
        candidate="run-b",
        levels=("full", "full"),
        step=0,
        steps=(StepSummary(0, "same", "the runs are equal"),),
        environment={},
        preconditions=(),
        rows=rows,
        unmatched=(),
        modules=(),
        coverage=(),
        attribution=None,
        ranks=(),
        divergence=None,
        zoom=(),
        notes=(),
    )
    changed = replace(made, **changes)
    return replace(changed, findings=changed.findings or (changed.verdict,))


def faulty() -> Comparison:
    """One operator of five is at fault."""
    replayed = {
        "reference": accuracy(accumulated=2.0),
        "candidate": accuracy(accumulated=2.5),
        "contribution": 1e-9,
    }
    backward = [row(i, "backward", **(replayed | {"contribution": None})) for i in (5, 6)]
    verdict = Verdict(
        "faulty operator",
        f"{key(2)} of the candidate is not what float64 makes of its own inputs",
        ("R 2500 (floor 15)", "the runs differ there by 0.0002"),
        key(2), PLACE, "candidate",
    )  # fmt: skip
    return comparison(
        (row(0, **replayed), row(1, **replayed), faulty_row(), row(3, **replayed), *backward),
        verdict=verdict,
        divergence=str(key(2)),
        modules=(ModuleRow("blocks.2", "Block", 1, 0, 2e-4, None, "diverges", 1),),
        coverage=(
            Coverage("candidate", {"gelu": 6}, {"npu::x": 2}, {"npu::x": "no reference"}, 3),
        ),
        attribution=Attribution(
            "candidate - reference", -1.1e-5, -1.08e-5, 4.97, True,
            ((key(2), -1.1e-5), (key(0), 1e-9)),
        ),
    )  # fmt: skip
