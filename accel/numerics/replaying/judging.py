"""The verdict on one operator, from its arguments and what it returned."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.numerics.replaying import references
from accel.numerics.replaying.calls import Call, Given, Results, bound, first_line, widened
from accel.numerics.replaying.choices import same_choice
from accel.numerics.replaying.judged import Judged, Verdict
from accel.numerics.replaying.known import (
    ROUNDED_SCALARS,
    UNDECIDED_ON_CPU,
    adds_by_inputs,
    is_wide_result,
    keeps_16_bits,
    known_inaccuracy,
)
from accel.numerics.replaying.limits import badness, rules, why_out
from accel.numerics.replaying.operators import (
    has_jumps,
    is_exact,
    is_pointwise,
    is_view,
    kind_of,
    short_name,
)
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.replaying.responses import (
    is_inexact,
    mean_squares,
    real,
    roundoff,
    widened_squares,
    with_fast_exponentials,
    with_rounded_scalars,
)
from accel.numerics.replaying.yardstick import SIXTEEN_BIT, Measured, measured


def judge_call(
    op: torch._ops.OpOverload,
    args: Sequence[Given],
    kwargs: Mapping[str, Given],
    outputs: Sequence[Tensor | None],
    written: Mapping[str, Sequence[Tensor]] | None = None,
    *,
    device_type: str | None = None,
) -> Judged:
    """Judge one call of an operator by its float64 replay.

    Args:
        op: The operator.
        args: What it was given, with the values before it ran; any device.
        kwargs: Likewise.
        outputs: What it returned, flattened, without arguments that it wrote to.
        written: The arguments that it wrote to, with the values afterwards.
        device_type: Whose kernel ran: a chip family, or `cpu` for torch's CPU kernels (None is the
            same), which alone are excused by what is known of them.
    """
    try:
        call = bound(op, args, kwargs, tuple(written or ()))
    except Exception as error:  # a failure of the check is no failure of the program
        name = str(op._schema.name)
        return Judged(name, name, "other", "unchecked", reason=f"{first_line(error):.200}")
    return judge(call, outputs, written or {}, device_type=device_type)


def judge(
    call: Call,
    outputs: Sequence[Tensor | None],
    written: Mapping[str, Sequence[Tensor]],
    operator: str | None = None,
    *,
    device_type: str | None = None,
) -> Judged:
    """Judge one call; see `judge_call`. `operator` is what the result calls it, or its name."""
    began = time.perf_counter()
    kind = kind_of(call.name, call.overload)
    empty = Judged(operator or call.name, call.name, kind, "unchecked")
    recorded = Results(tuple(outputs), {name: tuple(given) for name, given in written.items()})
    try:
        found = _found(call, recorded, empty, device_type or _CPU)
    except CannotReplayError as error:
        found = replace(empty, reason=str(error))
    except Exception as error:  # a failure of the check is no failure of the program
        found = replace(empty, reason=f"its replay failed: {first_line(error):.200}")
    return replace(found, milliseconds=(time.perf_counter() - began) * 1e3)


def _found(call: Call, recorded: Results, empty: Judged, device_type: str) -> Judged:
    if is_view(call.name, call.overload):
        return replace(empty, verdict="exact", reason="a view computes nothing")
    call = references.spelt_out(call)
    replay = references.replayer(call, recorded)
    unit = roundoff(call)
    is_elementwise = is_pointwise(call.name, call.overload)
    if is_elementwise and unit > _DOUBLE:
        call = with_rounded_scalars(call, torch.float32)
    truth = replay(widened(call))
    if not {name for name, _ in recorded.named()} & {name for name, _ in truth.named()}:
        return replace(empty, reason="there is nothing to compare: it has no result with a truth")
    wrong = _why_not_alike(call, recorded, truth)
    if wrong is not None:
        return replace(empty, verdict="out", output=wrong[0], reason=wrong[1])
    if is_exact(call.name, call.overload) or not any(is_inexact(t) for _, t in recorded.named()):
        return _exactly(empty, recorded, truth)
    squares = mean_squares(call, replay, truth, unit)
    found = _worst(empty, _measured(call, recorded, truth, squares, unit))
    if found.verdict != "out":
        return found
    return _excused(call, recorded, truth, squares, unit, found, device_type)


_DOUBLE = 2.0**-53
_CPU = "cpu"


def _why_not_alike(call: Call, recorded: Results, truth: Results) -> tuple[str, str] | None:
    """The first result with other shape, or other integers, and why; None if there is none."""
    expected = dict(truth.named())
    for name, actual in recorded.named():
        right = expected.get(name)
        if right is None:
            continue
        if actual.shape != right.shape:
            return name, f"its shape is {list(actual.shape)} and not {list(right.shape)}"
        if is_inexact(actual) or is_inexact(right):
            continue
        there = actual.detach().cpu()
        if not torch.equal(there, right) and not same_choice(call, there, right):
            return name, f"{int((there != right).sum())} of {there.numel()} elements differ"
    return None


def _exactly(empty: Judged, recorded: Results, truth: Results) -> Judged:
    """The verdict on an operator whose results are determined to the last bit."""
    expected = dict(truth.named())
    for name, actual in recorded.named():
        right = expected.get(name)
        if right is None or not is_inexact(actual):  # integers have been compared
            continue
        there = actual.detach().cpu()
        rounded = right.to(there.dtype)
        same = (there == rounded) | (there.isnan() & rounded.isnan())
        if not bool(same.all()):
            reason = f"{int((~same).sum())} of {same.numel()} elements are not exact"
            return replace(empty, verdict="out", output=name, reason=reason)
    return replace(empty, verdict="exact")


def _measured(
    call: Call, recorded: Results, truth: Results, squares: Mapping[str, Tensor], unit: float
) -> dict[str, Measured]:
    expected = dict(truth.named())
    # What jumps by noise in one element says nothing of the others.
    floors = not has_jumps(call.name, call.overload)
    return {
        name: measured(
            real(actual.detach().cpu()), real(expected[name]), squares[name], unit, floors=floors
        )
        for name, actual in recorded.named()
        if name in squares and is_inexact(actual)
    }


def _worst(empty: Judged, found: Mapping[str, Measured], strict: bool = True) -> Judged:
    if not found:
        return replace(empty, reason="none of its results has a truth")
    name = max(found, key=lambda key: badness(found[key], strict))
    worst = found[name]
    reason = why_out(worst, strict)
    verdict: Verdict = "within" if reason is None else "out"
    return replace(
        empty,
        verdict=verdict,
        R=worst.rms,
        M=worst.worst,
        excess=worst.excess,
        misrounding=worst.misrounding,
        expected=worst.expected,
        nonfinite=worst.nonfinite,
        reason=reason,
        output=name,
        dtype=str(worst.dtype).removeprefix("torch."),
        at=worst.at,
        **_limits(worst, strict),
    )


def _limits(found: Measured, strict: bool) -> dict[str, Any]:
    """What a result is held to, by the fields of `Judged`; None for the others."""
    none: dict[str, float | None] = dict.fromkeys(
        ("limit_R", "limit_M", "limit_excess", "limit_misrounding")
    )
    return {**none, **{rule.field: rule.most for rule in rules(found, strict)}}


def _excused(
    call: Call,
    recorded: Results,
    truth: Results,
    squares: Mapping[str, Tensor],
    unit: float,
    found: Judged,
    device_type: str,
) -> Judged:
    """What the verdict is by what is known of this operator's kernels."""
    coarse = _coarse_dtype(call)
    if coarse is None:
        strictly = _measured(call, recorded, truth, squares, unit)
        return _known(call, found, strictly, strictly, device_type)
    if device_type == _CPU and short_name(call.name) in ROUNDED_SCALARS:
        truth = _nearer(call, recorded, truth, coarse)
        again = _worst(found, _measured(call, recorded, truth, squares, unit))
        if again.verdict == "within":
            return again
    if device_type == _CPU and short_name(call.name) in UNDECIDED_ON_CPU:
        return replace(
            Judged(found.operator, found.name, found.kind, "unchecked"),
            reason=UNDECIDED_ON_CPU[short_name(call.name)],
        )
    half = torch.finfo(coarse).eps / 2
    replay = references.replayer(call, recorded)
    wider = widened_squares(call, replay, truth, squares, unit, half)
    if found.kind == "attention" and device_type == _CPU:
        wider = with_fast_exponentials(call, wider)
    strictly = _measured(call, recorded, truth, squares, unit)
    coarsely = _measured(call, recorded, truth, wider, unit)
    if keeps_16_bits(call, found.kind, strictly.values(), unit, device_type):
        again = _worst(found, coarsely, strict=False)
        wrong = [n for n, m in strictly.items() if is_wide_result(call, n) and why_out(m)]
        if again.verdict == "within" and not wrong:
            return again
    by_dtype = {
        n: m if m.dtype in SIXTEEN_BIT or adds_by_inputs(call, n) else strictly[n]
        for n, m in coarsely.items()
    }
    return _known(call, found, strictly, by_dtype, device_type)


def _nearer(call: Call, recorded: Results, truth: Results, dtype: torch.dtype) -> Results:
    """Of the truths that 16-bit scalars may give, the nearest to the result, by element."""
    ways = _scalar_ways(call, dtype)
    others = [dict(references.replayer(way, recorded)(widened(way)).named()) for way in ways]
    actual = dict(recorded.named())

    def nearest(name: str, value: Tensor) -> Tensor:
        out = actual[name].detach().cpu().to(value.dtype)
        for other in others:
            value = torch.where((out - other[name]).abs() < (out - value).abs(), other[name], value)
        return value

    return Results(
        tuple(None if t is None else nearest(str(i), t) for i, t in enumerate(truth.outputs)),
        {name: tuple(nearest(name, t) for t in given) for name, given in truth.written.items()},
    )


def _scalar_ways(call: Call, dtype: torch.dtype) -> list[Call]:
    """A sum with its scalars, and with the scaled addend too, rounded to `dtype`."""
    ways = [with_rounded_scalars(call, dtype)]
    other, alpha = call.arguments.get("other"), call.arguments.get("alpha", 1)
    if isinstance(other, Tensor) and alpha != 1:
        for one in (alpha, ways[0].arguments["alpha"]):
            scaled = (other.detach().cpu().double() * one).to(dtype)
            ways.append(replace(call, arguments={**call.arguments, "other": scaled, "alpha": 1}))
    return ways


def _coarse_dtype(call: Call) -> torch.dtype | None:
    return next((t.dtype for t in call.tensors if t.dtype in SIXTEEN_BIT), None)


def _known(
    call: Call,
    found: Judged,
    strictly: Mapping[str, Measured],
    measures: Mapping[str, Measured],
    device_type: str,
) -> Judged:
    out = [name for name, measure in strictly.items() if why_out(measure) is not None]
    reasons = {
        name: known
        for name in out
        if (known := known_inaccuracy(call, name, measures[name], device_type)) is not None
    }
    if not out or len(reasons) < len(out):
        return found
    name = max(reasons, key=lambda one: measures[one].rms / reasons[one].most_rms)
    known, worst = reasons[name], measures[name]
    return replace(
        _worst(found, {name: worst}),
        verdict="known",
        reason=known.reason,
        limit_R=known.most_rms,
        limit_M=known.most_worst,
        limit_excess=None,
        limit_misrounding=None,
    )
