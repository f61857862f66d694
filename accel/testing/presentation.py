"""The conformance suite's results as text, JSON and a page."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Sequence
from typing import Any

import torch

from accel._version import __version__
from accel.devices import Device, numerics_mode
from accel.report import html, svg, text
from accel.testing.suite import Check

_HEADERS = (
    "check",
    "engine",
    "dtype",
    "error",
    "reference",
    "budget",
    "used",
    "",
    "nearest tensor",
)
SCHEMA = 1


def verdict(checks: Sequence[Check]) -> str:
    """The outcome in one sentence."""
    failed = [check for check in checks if check.reason is not None]
    if not checks:
        return "Nothing was checked."
    if not failed:
        worst = max(checks, key=lambda check: check.share)
        return (
            f"All {len(checks)} checks are within their budgets; the nearest, {worst.name} on "
            f"{worst.engine} in {worst.dtype}, uses {worst.share:.0%}."
        )
    first = failed[0]
    return (
        f"{len(failed)} of {len(checks)} checks exceed their budgets; the first is {first.name} on "
        f"{first.engine} in {first.dtype}: {first.tensor}: {first.reason}."
    )


def as_text(checks: Sequence[Check]) -> str:
    """A table and the verdict."""
    return f"{text.table(_HEADERS, [_row(check) for check in checks])}\n\n{verdict(checks)}"


def as_json(checks: Sequence[Check], devices: Sequence[Device]) -> str:
    """The whole result as one JSON document: a chip's quality card."""
    document = {
        "schema": SCHEMA,
        "ok": bool(checks) and all(check.reason is None for check in checks),
        "verdict": verdict(checks),
        "environment": environment(devices),
        "numerics_mode": numerics_mode().to_dict(),
        "checks": [
            {**_finite(dataclasses.asdict(check)), "passed": check.reason is None}
            for check in checks
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def as_html(checks: Sequence[Check], devices: Sequence[Device]) -> str:
    """One self-contained page."""
    labels = [f"{check.name} {check.engine}" for check in checks]
    series = [
        svg.Series(
            "engine",
            [check.error for check in checks],
            notes=[f"{check.dtype}, {check.tensor}" for check in checks],
        ),
        svg.Series("independent implementation", [check.reference_error for check in checks]),
        svg.Series("budget", [check.budget for check in checks], "steps"),
    ]
    failed = next((i for i, check in enumerate(checks) if check.reason is not None), None)
    plot = svg.error_plot(
        series,
        x_labels=labels,
        y_title="relative rms error against float64",
        mark=failed,
        mark_label="first out of budget",
    )
    rule = (
        "Each result is compared with float64 on the CPU. It may be twice as far from it as an "
        "independent implementation in the same dtype is, plus the rounding of the output. Of each "
        "check the tensor nearest to its budget is shown."
    )
    table = html.table(
        _HEADERS,
        [_row(check) for check in checks],
        sortable=True,
        bad=lambda row: row[7] != "ok",
    )
    body = [
        html.verdict(verdict(checks), good=failed is None and bool(checks)),
        html.paragraph(rule),
        html.section("Error against float64", plot),
        html.section("Checks", table),
        html.section("Machine", html.definitions(environment(devices))),
        html.section("Numerics mode", html.definitions(numerics_mode().to_dict())),
    ]
    return html.page("Conformance of this machine's engines", body)


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
    return (
        check.name,
        check.engine,
        check.dtype,
        check.error,
        check.reference_error,
        check.budget,
        f"{check.share:.0%}" if math.isfinite(check.share) else "-",
        "ok" if check.reason is None else "EXCEEDED",
        check.tensor if check.reason is None else f"{check.tensor}: {check.reason}",
    )
