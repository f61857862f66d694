"""The doctor's answer for people."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

from accel._version import __version__
from accel.doctor.finding import Finding
from accel.doctor.report import VARIABLES, Report
from accel.doctor.survey import Survey
from accel.doctor.torch_facts import SmokeResult, TorchFacts

_COLOURS: dict[str, str] = {"error": "31;1", "warning": "33", "note": "36", "ok": "32"}
_LONG = 60  # characters of a variable's value that are shown
_LABEL = 11  # columns before a finding's text


def render(report: Report, colour: bool, width: int = 0) -> str:
    """Lay the report out as text.

    Args:
        report: What to say.
        colour: Whether to use terminal colours.
        width: Columns; 0 for the terminal's, within 72 and 100.

    Returns:
        Lines, the verdict first. Commands are never wrapped.
    """
    width = width or min(100, max(72, shutil.get_terminal_size().columns))
    painter = _Painter(colour)
    lines = [painter.paint("error" if report.status else "ok", f"accel doctor: {report.verdict}")]
    lines += ["", "Facts", *(f"  {name:<10} {value}" for name, value in _facts(report.survey))]
    lines += ["", "Smoke tests (matmul forward and backward, compared exactly)"]
    lines += [_smoke(painter, result) for result in report.survey.smoke] or ["  none could be run"]
    if report.findings:
        lines += ["", "Findings"]
    for finding in report.findings:
        lines += [*_finding(painter, finding, width), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


class _Painter:
    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def paint(self, kind: str, text: str) -> str:
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if self._colour else text


def _facts(survey: Survey) -> Iterator[tuple[str, str]]:
    machine = survey.machine
    yield "Python", f"{machine.python_version}  {machine.executable}  ({machine.system})"
    yield "accel", __version__
    yield "torch", _torch(survey)
    yield "torch_npu", survey.torch_npu_version or "not installed"
    yield "numpy", survey.working.numpy or survey.installed.versions.get("numpy") or "not installed"
    yield "CANN", _cann(survey)
    yield "NVIDIA", _nvidia(survey)
    yield "Ascend", _ascend(survey)
    if survey.amd.kfd_gpus or survey.amd.pci:
        yield "AMD", f"{max(survey.amd.kfd_gpus, survey.amd.pci)} GPU"
    shown = [name for name in VARIABLES if name in machine.environment]
    for label, name in zip(["variables", *[""] * len(shown)], shown, strict=False):
        yield label, f"{name}={_short(machine.environment[name])}"


def _short(value: str) -> str:
    return value if len(value) <= _LONG else f"{value[:_LONG]}…"


def _torch(survey: Survey) -> str:
    recorded = survey.installed.versions.get("torch", "")
    if survey.torch.imported:
        return _build(survey.torch)
    reason = f"`import torch` {survey.torch.probe.ended}"
    if survey.working.imported:
        return f"{_build(survey.working)}; {reason}, except with {survey.working.probe.setting}"
    return f"{recorded}: {reason}" if recorded else "not installed"


def _build(facts: TorchFacts) -> str:
    kind = f", devices: {', '.join(facts.devices)}" if facts.devices else ""
    return f"{facts.version} ({facts.build}){kind}"


def _cann(survey: Survey) -> str:
    cann = survey.ascend.cann
    if cann.home:
        if not cann.home_exists:
            return f"not at {cann.home}, where ASCEND_HOME_PATH points"
        return f"{cann.version or 'unknown version'} at {cann.home}"
    if cann.scripts:
        return f"{cann.version or 'unknown version'}, not sourced: {cann.scripts[0]}"
    return "not found"


def _hardware(
    tool: str, path: str, error: str, driver: str, seen: list[str], count: int, noun: str
) -> str:
    """One vendor's line: what is there, the driver, and what the tool said."""
    parts = [f"{count} {noun}" if count else f"no {noun}"]
    if seen:
        parts[0] += f" ({', '.join(dict.fromkeys(seen))})"
    parts.append(f"driver {driver}" if driver else "no driver")
    parts.append(f"{tool} not found" if not path else f"{tool}: {error}" if error else f"{tool} ok")
    return ", ".join(parts)


def _nvidia(survey: Survey) -> str:
    facts = survey.nvidia
    seen = [f"{gpu.name}, {gpu.memory}" for gpu in facts.gpus]
    tool = facts.tool
    return _hardware("nvidia-smi", tool.path, tool.error, facts.driver, seen, facts.count, "GPU")


def _ascend(survey: Survey) -> str:
    facts = survey.ascend
    seen = [f"{npu.name}, {npu.memory}" for npu in facts.npus]
    tool = facts.tool
    return _hardware("npu-smi", tool.path, tool.error, facts.driver, seen, facts.count, "NPU")


def _smoke(painter: _Painter, result: SmokeResult) -> str:
    word = painter.paint("ok", "ok  ") if result.ok else painter.paint("error", "FAIL")
    rest = f"{result.seconds:.2f} s" if result.ok else result.detail
    setting = f"  with {result.setting}" if result.setting else ""
    return f"  {result.device:<10} {word}  {rest}{setting}"


def _finding(painter: _Painter, finding: Finding, width: int) -> Iterator[str]:
    head, *rest = _wrapped(finding.severity.upper(), f"{finding.what} [{finding.id}]", width)
    word = head[:_LABEL]
    yield painter.paint(finding.severity, word) + head[_LABEL:]
    yield from rest
    if finding.why:
        yield from _wrapped("  why", finding.why, width)
    for label, mend in zip(["mend", *["or"] * len(finding.mends)], finding.mends, strict=False):
        yield f"{'    ' + label:<{_LABEL}}{mend.command}"
        effect = [mend.effect] if mend.effect else []
        if mend.verified is not None:
            effect.append("tried, it works" if mend.verified else "tried, it does not help")
        if effect:
            yield from _wrapped("", f"({'; '.join(effect)})", width)


def _wrapped(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=f"{'  ' + label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )
