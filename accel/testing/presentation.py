"""The conformance suite's results as text, JSON and a page."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from accel._version import __version__
from accel.devices import Device, numerics_mode
from accel.numerics.replaying.limits import MOST_M, MOST_R
from accel.report import html, svg, text
from accel.report.markup import Markup
from accel.testing.checks import Check

_HEADERS = ("check", "engine", "dtype", "R", "M", "misrounded", "", "nearest result", "note")
SCHEMA = 2
_RULE = (
    "Each result is compared with float64 on the CPU. R is its rms error, M its largest, in units "
    "of what rounding the inputs and the result must cost: about 1 for a right kernel, at most "
    f"{MOST_R:g} and {MOST_M:g} in float32. Of a 16-bit result the share of elements that are not "
    "the exact result rounded is given too. Of each check the result nearest to its limits is "
    "shown."
)


def verdict(checks: Sequence[Check]) -> str:
    """The outcome in one sentence."""
    failed = [check for check in checks if not check.passed]
    if not checks:
        return "Nothing was checked."
    if failed:
        first = failed[0]
        return (
            f"{len(failed)} of {len(checks)} checks are out of their limits; the first is "
            f"{first.name} on {first.engine} in {first.dtype}: {first.tensor}: {first.reason}."
        )
    judged = [check for check in checks if check.verdict == "within"] or checks
    worst = max(judged, key=lambda check: check.share)
    unchecked = sum(check.verdict == "unchecked" for check in checks)
    known = sum(check.verdict == "known" for check in checks)
    return (
        f"All {len(checks)} checks are within their limits"
        + (f", {known} of them known inaccuracies" if known else "")
        + (f", {unchecked} could not be checked" if unchecked else "")
        + f"; the nearest, {worst.name} on {worst.engine} in {worst.dtype}, uses "
        f"{worst.share:.0%}."
    )


def as_text(checks: Sequence[Check], absent: Mapping[str, str] | None = None) -> str:
    """A table and the verdict.

    Args:
        checks: What was found.
        absent: Engines that are not here, and why.
    """
    lines = [text.table(_HEADERS, [_row(check) for check in checks]), ""]
    lines += [f"not here: {name}: {reason}" for name, reason in (absent or {}).items()]
    return "\n".join([*lines, verdict(checks)])


def as_json(
    checks: Sequence[Check], devices: Sequence[Device], absent: Mapping[str, str] | None = None
) -> str:
    """The whole result as one JSON document: a chip's quality card."""
    document = {
        "schema": SCHEMA,
        "ok": bool(checks) and all(check.passed for check in checks),
        "verdict": verdict(checks),
        "environment": environment(devices),
        "numerics_mode": numerics_mode().to_dict(),
        "absent": dict(absent or {}),
        "checks": [
            {**_finite(dataclasses.asdict(check)), "passed": check.passed} for check in checks
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def as_html(
    checks: Sequence[Check], devices: Sequence[Device], absent: Mapping[str, str] | None = None
) -> str:
    """One self-contained page."""
    failed = next((i for i, check in enumerate(checks) if not check.passed), None)
    missing = [html.paragraph(f"Not here: {n}: {why}.") for n, why in (absent or {}).items()]
    table = html.table(
        _HEADERS,
        [_row(check) for check in checks],
        sortable=True,
        bad=lambda row: row[6] == "OUT",
    )
    body = [
        html.verdict(verdict(checks), good=failed is None and bool(checks)),
        html.paragraph(_RULE),
        *missing,
        html.section("Errors in units of the yardstick", _plot(checks, failed)),
        html.section("Checks", table),
        html.section("Machine", html.definitions(environment(devices))),
        html.section("Numerics mode", html.definitions(numerics_mode().to_dict())),
    ]
    return html.page("Conformance of this machine's engines", body)


def _plot(checks: Sequence[Check], failed: int | None) -> Markup:
    notes = [f"{check.dtype}, {check.tensor}" for check in checks]
    series = [
        svg.Series("R, rms", [check.R for check in checks], notes=notes),
        svg.Series("M, largest", [check.M for check in checks], notes=notes),
    ]
    return svg.error_plot(
        series,
        x_labels=[f"{check.name} {check.engine}" for check in checks],
        y_title="error over what rounding must cost",
        mark=failed,
        mark_label="first out of its limits",
    )


def environment(devices: Sequence[Device]) -> dict[str, Any]:
    """What the result depends on."""
    chips = {str(device): device.name for device in devices}
    return {
        "accel": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **chips,
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: what was not computed is null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def _row(check: Check) -> tuple[object, ...]:
    narrow = check.dtype in ("float16", "bfloat16")
    return (
        check.name,
        check.engine,
        check.dtype,
        check.R,
        check.M,
        f"{check.misrounding:.3%}" if narrow else "",
        "OUT" if not check.passed else check.verdict,
        check.tensor,
        check.reason or check.note or "",
    )
