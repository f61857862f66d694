"""One computation on one engine, and what was found of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.limits import MOST_EXCESS, MOST_M, MOST_R
from accel.testing.stability import Stability


@dataclass(frozen=True)
class Check:
    """One computation on one engine.

    Attributes:
        name: What was computed.
        engine: What computed it: `cpu/sdpa`, `cuda:0/fused`, …
        dtype: What it computed in.
        tensor: The result that is nearest to its limits; the figures below are its own.
        R: Its rms error in units of what its inputs' rounding warrants.
        M: Its largest error, likewise.
        misrounding: Share of its elements that are not the truth rounded; 0 if it is wider than 16
            bits.
        share: The part of its limits that it uses up; infinite if nothing was computed.
        verdict: `within`, `out`, `exact`, `unchecked` or `known`, as `accel.numerics.replay` has
            it.
        reason: Why it failed; None if it passed.
        note: What is known of it, or why it was not checked.
    """

    name: str
    engine: str
    dtype: str
    tensor: str
    R: float
    M: float
    misrounding: float
    share: float
    verdict: str
    reason: str | None = None
    note: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it was computed and is within its limits."""
        return self.reason is None


def dtype_text(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def of_stability(name: str, engine: str, dtype: torch.dtype, found: Sequence[Stability]) -> Check:
    """The check of the result that is out of its limits, or else nearest to them."""
    worst = max(found, key=lambda one: one.share)
    measured = worst.measured
    return Check(
        name=name,
        engine=engine,
        dtype=dtype_text(dtype),
        tensor=worst.name,
        R=measured.rms,
        M=measured.worst,
        misrounding=measured.misrounding,
        share=worst.share,
        verdict="within" if worst.reason is None else "out",
        reason=worst.reason,
    )


def of_judged(name: str, engine: str, dtype: torch.dtype, found: Judged) -> Check:
    """The check of one operator."""
    return Check(
        name=name,
        engine=engine,
        dtype=dtype_text(dtype),
        tensor=f"output {found.output}" if (found.output or "-").isdigit() else found.output or "-",
        R=found.R,
        M=found.M,
        misrounding=found.misrounding,
        share=_share(found),
        verdict=found.verdict,
        reason=found.reason if found.verdict == "out" else None,
        note=found.reason if found.verdict in ("known", "unchecked") else None,
    )


def _share(found: Judged) -> float:
    if found.verdict == "out":
        return math.inf
    if found.dtype in ("float16", "bfloat16"):
        return found.excess / MOST_EXCESS if found.verdict == "within" else 1.0
    return max(found.R / MOST_R, found.M / MOST_M)


def of_many(name: str, engine: str, dtype: torch.dtype, found: Sequence[Judged]) -> Check:
    """The check of a whole run's operators: the first that is out, or else the nearest to be."""
    out = [one for one in found if one.verdict == "out"]
    checked = [one for one in found if one.verdict != "unchecked"]
    if not checked:
        return failed(name, engine, dtype, "no operator could be checked")
    worst = out[0] if out else max(checked, key=_share)
    check = of_judged(name, engine, dtype, worst)
    values = {**vars(check), "tensor": worst.operator}
    values["note"] = f"{len(checked)} of {len(found)} operators checked"
    return Check(**values)


def failed(name: str, engine: str, dtype: torch.dtype, reason: str) -> Check:
    """The check of what could not be computed."""
    infinite = math.inf
    text = dtype_text(dtype)
    return Check(name, engine, text, "-", infinite, infinite, 0.0, infinite, "out", reason)


def raised(name: str, engine: str, dtype: torch.dtype, error: Exception) -> Check:
    """The check of what raised."""
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return failed(name, engine, dtype, f"raised {line}")
