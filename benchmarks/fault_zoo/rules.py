"""The rules of other tools, written anew from their documents and sources.

Each takes one output of one operator and says whether the tool would report it. Isolated rules
compare with float64 from the run's own operands; the others with another machine's run, aligned as
those tools do, by the operator's name and a counter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Against = Literal["float64 of its operands", "another machine", "both", "another machine, float64"]


@dataclass(frozen=True)
class Evidence:
    """All that a rule may ask of one output.

    Attributes:
        out: What the run made.
        alone: What float64 makes of the run's own operands.
        other: What another machine's run made, of its operands.
        other_alone: What float64 makes of those operands.
        truth: What a run in float64 throughout made.
        inputs: The run's floating operands, each with the other machine's.
    """

    out: Tensor
    alone: Tensor
    other: Tensor | None
    other_alone: Tensor | None
    truth: Tensor | None
    inputs: tuple[tuple[Tensor, Tensor], ...]


class Rule(NamedTuple):
    """A rule with its name, what it compares with, where it is written, and itself."""

    name: str
    against: Against
    source: str
    flags: Callable[[Evidence], bool]


def _close(out: Tensor, expected: Tensor, rtol: float, atol: float) -> bool:
    return torch.allclose(out.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)


_ASSERT_CLOSE = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}


def assert_close_alone(e: Evidence) -> bool:
    """torch.testing.assert_close with its defaults against float64, rounded to the dtype."""
    return not _close(e.out, e.alone.to(e.out.dtype), *_ASSERT_CLOSE[e.out.dtype])


def assert_close_other(e: Evidence) -> bool:
    """The same against another machine's value."""
    if e.other is None or e.other.shape != e.out.shape:
        return False
    return not _close(e.out, e.other, *_ASSERT_CLOSE[e.out.dtype])


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors in float64; 1 if both are zero."""
    a, b = finite(a.double().reshape(-1)), finite(b.double().reshape(-1))
    lengths = a.norm() * b.norm()
    return float(a @ b / lengths) if lengths > 0 else 1.0 if torch.equal(a, b) else 0.0


def finite(x: Tensor) -> Tensor:
    """With 0 for what is not finite, as tools do before they take means."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def cosine_alone(e: Evidence) -> bool:
    """A cosine below 0.99."""
    return cosine(e.out, e.alone) < 0.99


def msprobe_acc_check(e: Evidence) -> bool:
    """Its single-operator check, with its early pass for errors below 1e-3."""
    if cosine(e.out, e.alone) <= 0.99:
        return True
    out, expected = finite(e.out.double()), finite(e.alone)
    if float((out - expected).abs().amax()) < 1e-3:
        return False
    bounds = (1e-2, 1e-3) if e.out.dtype != torch.float32 else (1e-3, 1e-4)
    relative = (out - expected).abs() / expected.abs().clamp(min=1e-30)
    shares = [float((relative < bound).double().mean()) for bound in bounds]
    return shares[0] < 0.99 or shares[1] < 0.999


def _within_a_thousandth(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    relative = (a - b).abs() / b.abs().clamp(min=1e-30)
    return float(((relative < 1e-3) | (a == b)).double().mean())


def msprobe_compare(e: Evidence) -> bool:
    """The `error` of its comparison of two dumps; its warnings are not counted."""
    if e.other is None or e.other.shape != e.out.shape:
        return False
    if e.other.dtype != e.out.dtype:
        return True
    if bool(e.out.isfinite().all()) != bool(e.other.isfinite().all()):
        return True
    alike = all(_within_a_thousandth(a, b) > 0.9 for a, b in e.inputs)
    return alike and bool(e.inputs) and _within_a_thousandth(e.out, e.other) < 0.6


def msprobe_first_difference(e: Evidence) -> bool:
    """`-da`: a relative difference of max, min, mean or norm above one half."""
    if e.other is None:
        return False
    statistics = (torch.amax, torch.amin, torch.mean, torch.linalg.vector_norm)
    a, b = finite(e.out.double()), finite(e.other.double())
    pairs = [(float(of(a)), float(of(b))) for of in statistics]
    return any(abs(one - two) > 0.5 * abs(two) for one, two in pairs if two != 0)


_ASCEND = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-13}


def ascend_relative(e: Evidence) -> bool:
    """Mean relative error at most T and largest at most 10 T."""
    bound = _ASCEND.get(e.out.dtype, 2**-13)
    relative = _relative(e.out, e.alone)
    return float(relative.mean()) >= bound or float(relative.amax()) >= 10 * bound


def ascend_mixed(e: Evidence) -> bool:
    """99 % within T + T |g|, and the largest error within a limit or 32 units."""
    bound = _ASCEND.get(e.out.dtype, 2**-13)
    out, expected = finite(e.out.double()), finite(e.alone)
    error = (out - expected).abs()
    matches = float((error <= bound + bound * expected.abs()).double().mean())
    limit = 1e-2 if e.out.dtype == torch.float32 else 1e-1
    units = 32 * torch.finfo(e.out.dtype).eps * expected.abs()
    return matches < 0.99 or bool((error > torch.clamp(units, min=limit)).any())


def _relative(out: Tensor, expected: Tensor) -> Tensor:
    out, expected = finite(out.double()), finite(expected.double())
    return (out - expected).abs() / (expected.abs() + 1e-7)


def dual_benchmark(e: Evidence) -> bool:
    """Ascend's level L0: errors at most 10, 2, 2 times another chip's: largest, mean, RMS."""
    if e.other is None or e.other_alone is None or e.other.shape != e.out.shape:
        return False
    own, others = _relative(e.out, e.alone), _relative(e.other, e.other_alone)
    squares = _rms(e.out, e.alone), _rms(e.other, e.other_alone)
    ratios = (
        (float(own.amax()), float(others.amax()), 10),
        (float(own.mean()), float(others.mean()), 2),
        (*squares, 2),
    )
    return any(mine > factor * theirs for mine, theirs, factor in ratios)


def _rms(out: Tensor, expected: Tensor) -> float:
    return float((finite(out.double()) - finite(expected.double())).square().mean().sqrt())


def dynamo_same(e: Evidence) -> bool:
    """`torch._dynamo.utils.same`: close within 1e-4, or about as near to float64 as the other."""
    if e.other is None or e.truth is None or e.other.shape != e.out.shape:
        return False
    if _close(e.out, e.other, 1e-4, 1e-4):
        return False
    small = e.out.numel() < 1000 or e.out.dtype in (torch.float16, torch.bfloat16)
    allowed = (3 if small else 2) * _rms(e.other, e.truth) + 1e-4 / 10
    return _rms(e.out, e.truth) > allowed


def rms_ratio(e: Evidence) -> bool:
    """More than four times as far from a float64 run as another machine is."""
    if e.other is None or e.truth is None or e.truth.shape != e.out.shape:
        return False
    return _rms(e.out, e.truth) > 4 * _rms(e.other, e.truth)


def kernel_bench(e: Evidence) -> bool:
    """KernelBench: allclose with 1e-4 in float32, 1e-2 in 16 bits."""
    bound = 1e-4 if e.out.dtype == torch.float32 else 1e-2
    return not _close(e.out, e.alone, bound, bound)


RULES = (
    Rule(
        "assert_close, isolated",
        "float64 of its operands",
        "torch.testing, default tolerances",
        assert_close_alone,
    ),
    Rule(
        "assert_close, A against B",
        "another machine",
        "torch.testing, default tolerances",
        assert_close_other,
    ),
    Rule(
        "msprobe acc_check",
        "float64 of its operands",
        "Ascend/msprobe, single operator check",
        msprobe_acc_check,
    ),
    Rule(
        "msprobe compare, error",
        "another machine",
        "Ascend/msprobe, compare, result rules",
        msprobe_compare,
    ),
    Rule(
        "msprobe -da",
        "another machine",
        "Ascend/msprobe, diff_analyze_threshold.yaml",
        msprobe_first_difference,
    ),
    Rule(
        "Ascend MERE/MARE",
        "float64 of its operands",
        "hicann/opbase, experimental_standard.md",
        ascend_relative,
    ),
    Rule(
        "Ascend mixed tolerance",
        "float64 of its operands",
        "hicann/opbase, mixed_tolerance_standard.md",
        ascend_mixed,
    ),
    Rule(
        "Ascend dual benchmark 10/2/2",
        "both",
        "hicann/opbase, commercial_standard.md, L0",
        dual_benchmark,
    ),
    Rule("cosine < 0.99", "float64 of its operands", "common to many tools", cosine_alone),
    Rule(
        "dynamo same()",
        "another machine, float64",
        "torch/_dynamo/utils.py",
        dynamo_same,
    ),
    Rule(
        "RMSE ratio 4",
        "another machine, float64",
        "RMSE(B, float64) > 4 RMSE(A, float64)",
        rms_ratio,
    ),
    Rule("KernelBench allclose", "float64 of its operands", "KernelBench", kernel_bench),
)
