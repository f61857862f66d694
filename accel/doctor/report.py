"""The doctor's answer as data: verdict, exit status, JSON document."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from accel._version import __version__
from accel.doctor.checks import CHECKS
from accel.doctor.finding import SEVERITIES, Finding
from accel.doctor.survey import Survey, autoload_enabled
from accel.doctor.torch_facts import TorchFacts

SCHEMA = "accel.doctor"
SCHEMA_VERSION = 1

# Variables that change what torch, the drivers or Accel do.
VARIABLES = (
    "ACCEL_BACKEND",
    "ACCEL_DEVICE",
    "ASCEND_HOME_PATH",
    "ASCEND_OPP_PATH",
    "ASCEND_RT_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "LOCAL_RANK",
    "PYTHONPATH",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NPU_ALLOC_CONF",
    "ROCR_VISIBLE_DEVICES",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
)


@dataclass(frozen=True)
class Report:
    """The doctor's answer.

    Attributes:
        survey: What was found on the machine.
        findings: What to say about it, errors first.
    """

    survey: Survey
    findings: tuple[Finding, ...]

    @property
    def status(self) -> int:
        """Exit status: 0 where everything that was found can be used, else 1."""
        return int(any(finding.severity == "error" for finding in self.findings))

    @property
    def verdict(self) -> str:
        """The whole answer in one line."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        warnings = sum(finding.severity == "warning" for finding in self.findings)
        passed = ", ".join(self.survey.passed())
        setting = next((r.setting for r in self.survey.smoke if r.ok and r.setting), "")
        usable = f"usable: {passed}" if passed else "no device is usable"
        if setting:
            usable = f"usable only with {setting}: {passed}"
        if errors:
            return f"{_plural(errors, 'problem')} found; {usable}"
        return f"all well; {usable}" + (f"; {_plural(warnings, 'warning')}" if warnings else "")

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON document."""
        survey = self.survey
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "accel_version": __version__,
            "status": self.status,
            "verdict": self.verdict,
            "facts": _facts(survey),
            "devices": _devices(survey),
            "smoke_tests": [asdict(result) for result in survey.smoke],
            "findings": [finding.to_json() for finding in self.findings],
            "plugins": [
                {**asdict(plugin), "outcome": probe.outcome, "detail": probe.detail}
                for plugin, probe in survey.plugins.items()
            ],
            "probes": [probe.to_json() for probe in _probes(survey)],
        }


def draw_findings(survey: Survey) -> tuple[Finding, ...]:
    """Every check's findings, errors first.

    Where `ACCEL_DEVICE` says which family this environment is for, what is wrong with another
    family keeps nothing from working and is a warning.

    Args:
        survey: What was found on the machine.

    Returns:
        The findings.
    """
    chosen = survey.machine.environment.get("ACCEL_DEVICE", "").partition(":")[0]
    meant = {"cuda", "rocm"} if chosen in {"cuda", "rocm"} and survey.working.hip else {chosen}
    findings = []
    for check in CHECKS:
        for finding in check(survey):
            other = bool(chosen and finding.family) and finding.family not in meant
            mild = other and finding.severity == "error"
            findings.append(replace(finding, severity="warning") if mild else finding)
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _probes(survey: Survey) -> list[Any]:
    facts = (survey.torch, survey.retry, survey.torch_npu)
    return [f.probe for f in facts if f is not None] + list(survey.plugins.values())


def _torch(facts: TorchFacts | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    return {
        "imported": facts.imported,
        "outcome": facts.probe.outcome,
        "detail": facts.probe.detail,
        "with": dict(facts.probe.overrides),
        "version": facts.version,
        "file": facts.file,
        "cuda": facts.cuda,
        "hip": facts.hip,
        "device_type": facts.device_type,
        "device_count": len(facts.device_names),
        "reason": facts.reason,
    }


def _facts(survey: Survey) -> dict[str, Any]:
    machine = survey.machine
    return {
        "python": {"version": machine.python_version, "executable": machine.executable},
        "system": machine.system,
        "variables": {v: machine.environment[v] for v in VARIABLES if v in machine.environment},
        "autoload": autoload_enabled(machine),
        "torch": _torch(survey.torch),
        "torch_without_plugins": _torch(survey.retry),
        "torch_with_torch_npu": _torch(survey.torch_npu),
        "torch_npu": survey.torch_npu_version,
        "numpy": survey.working.numpy or survey.installed.versions.get("numpy", ""),
        "nvidia": asdict(survey.nvidia),
        "amd": asdict(survey.amd),
        "ascend": asdict(survey.ascend),
        "unreadable_metadata": list(survey.installed.broken),
    }


def _devices(survey: Survey) -> list[dict[str, Any]]:
    """The devices torch offers; hardware that it does not reach is under facts."""
    names: dict[str, str] = {"cpu": survey.machine.system}
    for facts in (survey.working, survey.torch_npu):
        if facts is not None:
            names.update(zip(facts.devices, facts.device_names, strict=True))
    passed = survey.passed()
    tested = [result.device for result in survey.smoke]
    return [{"device": d, "name": names.get(d, ""), "usable": d in passed} for d in tested]
