"""The doctor on recorded machines: fake file trees, tool outputs and probe results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import accel.doctor
from accel.doctor import LocalMachine, Report, diagnose, render
from accel.doctor.machine import Installed, Plugin
from accel.doctor.probe import MARK
from accel.doctor.process import Completed

MACHINES = Path(__file__).parent / "data" / "machines"
DOCS = Path(__file__).parents[1] / "docs" / "doctor.md"
NAMES = sorted(path.stem for path in MACHINES.glob("*.json"))


class RecordedMachine(LocalMachine):
    """A machine from a recording: its files hang below `root`, nothing is ever started."""

    def __init__(self, recording: Mapping[str, Any], root: Path) -> None:
        super().__init__(root)
        self.recording = recording
        self.environment = recording.get("environment", {})
        self.executable = "/env/bin/python"
        self.python_version = "3.11.9"
        self.system = "Linux x86_64"
        self.asked: set[str] = set()
        for path, text in recording.get("files", {}).items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def which(self, tool: str) -> str | None:
        return f"/usr/bin/{tool}" if tool in self.recording.get("tools", {}) else None

    def python_command(self) -> list[str]:
        return [self.executable]

    def installed(self) -> Installed:
        plugins = tuple(Plugin(*fields) for fields in self.recording.get("plugins", []))
        broken = tuple(self.recording.get("broken", []))
        return Installed(self.recording["distributions"], plugins, broken)

    def run(
        self, command: Sequence[str], timeout: float, overrides: Mapping[str, str]
    ) -> Completed:
        if command[0] != self.executable:
            return completed(self.recording["tools"][command[0]])
        setting = "".join(f"{name}={value} " for name, value in overrides.items())
        label = setting + " ".join(command[3:])
        self.asked.add(label)
        return probe_output(label.removeprefix(setting), self.recording["probes"][label])


def completed(recorded: Mapping[str, Any]) -> Completed:
    stdout = recorded.get("stdout", "")
    if "stdout_file" in recorded:
        stdout = (MACHINES / "tools" / recorded["stdout_file"]).read_text()
    timed_out = recorded.get("timed_out", False)
    refused = recorded.get("refused", "")
    code = None if timed_out or refused else recorded.get("returncode", 0)
    return Completed(code, stdout, recorded.get("stderr", ""), 60.0, timed_out, refused)


def probe_output(label: str, recorded: Mapping[str, Any]) -> Completed:
    """Write out what the probe script would have printed."""
    if "raw" in recorded:
        return completed(recorded["raw"])
    events = list(probe_events(label, recorded))
    stdout = "".join(f"chatter of a plugin\n{MARK}{json.dumps(event)}\n" for event in events)
    code = 1 if "raised" in recorded else 0
    return completed({"returncode": code, **recorded, "stdout": stdout})


def probe_events(label: str, recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
    events = [{"event": "stage", "name": stage} for stage in recorded.get("stages", [])]
    if "torch" in recorded:
        events += torch_events(recorded["torch"])
    if "smoke" in recorded:
        events.append(smoke_event(label.split()[1], recorded["smoke"]))
    if "plugin" in recorded:
        events.append({"event": "plugin", "family": recorded["plugin"]})
    if "raised" in recorded:
        message, cause = recorded["raised"]
        traceback = f"Traceback (most recent call last):\n{cause}\n{message}\n"
        events.append(
            {"event": "error", "message": message, "cause": cause, "traceback": traceback}
        )
    elif "stages" not in recorded and "then" not in recorded.get("torch", {}):
        events.append({"event": "done"})
    return events


def torch_events(torch: Mapping[str, Any]) -> list[dict[str, Any]]:
    build = {key: torch.get(key) for key in ("version", "cuda", "hip")}
    numpy = {"version": torch.get("numpy"), "error": torch.get("numpy_error")}
    names = torch.get("devices", [])
    events: list[dict[str, Any]] = [
        {"event": "stage", "name": "import torch"},
        {"event": "build", "file": "/env/lib/torch/__init__.py", **build},
        {"event": "numpy", **{key: value for key, value in numpy.items() if value}},
        {"event": "stage", "name": "smoke test on cpu"},
    ]
    if torch.get("then") == "smoke test on cpu":
        return events
    events += [smoke_event("cpu", True), {"event": "stage", "name": "counting devices"}]
    if torch.get("then") == "counting devices":
        return events
    counted = {"type": torch.get("type", ""), "count": len(names), "names": names}
    return [*events, {"event": "devices", "reason": torch.get("reason", ""), **counted}]


def smoke_event(device: str, result: bool | list[str]) -> dict[str, Any]:
    wrong = result if isinstance(result, list) else []
    return {"event": "smoke", "device": device, "ok": not wrong, "wrong": wrong, "seconds": 0.25}


def recording(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((MACHINES / f"{name}.json").read_text())
    return data


def examine(name: str, root: Path) -> tuple[Report, RecordedMachine]:
    machine = RecordedMachine(recording(name), root)
    return diagnose(machine), machine


@pytest.mark.parametrize("name", NAMES)
def test_recorded_machine(name: str, tmp_path: Path) -> None:
    report, machine = examine(name, tmp_path)
    expected = machine.recording["expected"]
    found = {
        finding.id: [finding.severity, finding.mends[0].command if finding.mends else ""]
        for finding in reversed(report.findings)
    }
    assert found == expected["findings"]
    assert report.status == expected["status"]
    assert machine.asked == set(machine.recording["probes"])  # a recording holds nothing unused


@pytest.mark.parametrize("name", NAMES)
def test_every_report_can_be_printed(name: str, tmp_path: Path) -> None:
    report, _ = examine(name, tmp_path)
    document = json.loads(json.dumps(report.to_json()))
    assert (document["schema"], document["schema_version"]) == ("accel.doctor", 1)
    assert document["status"] == report.status
    plain, coloured = render(report, colour=False, width=80), render(report, colour=True, width=80)
    assert plain.startswith("accel doctor: ")
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert "Traceback" not in plain
    for finding in report.findings:
        assert finding.id in plain
        assert finding.why
        # What somebody copies must be one line, as it stands.
        for mend in finding.mends:
            assert re.search(rf"(mend|or) +{re.escape(mend.command)}\n", plain)


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_has_a_mend(name: str, tmp_path: Path) -> None:
    report, _ = examine(name, tmp_path)
    problems = [f for f in report.findings if f.severity in {"error", "warning"}]
    assert all(finding.mends for finding in problems)
    assert all(mend.command.strip() for finding in problems for mend in finding.mends)


def test_autoload_off_is_offered_as_verified_only_where_it_was_seen_to_work(tmp_path: Path) -> None:
    report, machine = examine("torch-npu-without-cann", tmp_path)
    (finding,) = report.findings
    mend = next(m for m in finding.mends if "AUTOLOAD" in m.command)
    assert mend.verified is True
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0 torch" in machine.asked
    assert [(r.device, r.setting) for r in report.survey.smoke] == [
        ("cpu", "TORCH_DEVICE_BACKEND_AUTOLOAD=0")
    ]
    assert "usable only with TORCH_DEVICE_BACKEND_AUTOLOAD=0: cpu" in report.verdict


def test_where_the_retry_does_not_help_torch_itself_is_named(tmp_path: Path) -> None:
    broken = recording("torch-npu-without-cann")
    failure = {"raised": ["ImportError: libtorch_cpu.so"] * 2}
    broken["probes"] = dict.fromkeys(broken["probes"], failure)
    report = diagnose(RecordedMachine(broken, tmp_path))
    assert [finding.id for finding in report.findings] == ["torch-broken"]
    assert "no device is usable" in report.verdict


def test_hardware_is_read_from_the_tools(tmp_path: Path) -> None:
    survey = examine("healthy-ascend", tmp_path)[0].survey
    assert [(n.card, n.chip, n.name, n.health, n.memory) for n in survey.ascend.npus] == [
        (0, 0, "910B3", "OK", "65536 MB"),
        (1, 0, "910B3", "OK", "65536 MB"),
    ]
    assert survey.ascend.driver == "25.2.0"
    assert survey.ascend.cann.version == "9.1.0"
    survey = examine("npu-unhealthy", tmp_path / "a3")[0].survey
    assert [(n.card, n.chip, n.health) for n in survey.ascend.npus] == [
        (0, 0, "OK"),
        (0, 1, "Alarm"),
    ]
    survey = examine("healthy-cuda", tmp_path / "cuda")[0].survey
    assert [(g.index, g.name, g.memory) for g in survey.nvidia.gpus] == [
        (0, "NVIDIA H100 80GB HBM3", "81559 MiB"),
        (1, "NVIDIA H100 80GB HBM3", "81559 MiB"),
    ]
    assert survey.nvidia.driver == "580.82.07"


def test_report_lists_devices_and_smoke_tests(tmp_path: Path) -> None:
    document = examine("gpu-fails-smoke", tmp_path)[0].to_json()
    assert [(d["device"], d["usable"]) for d in document["devices"]] == [
        ("cpu", True),
        ("cuda:0", False),
        ("cuda:1", False),
    ]
    assert [s["ok"] for s in document["smoke_tests"]] == [True, False, False]
    wrong = next(f for f in document["findings"] if f["id"] == "smoke-wrong-result")
    assert "wrong product, gradient of the left factor" in wrong["why"]


def test_tracebacks_are_in_the_document_only(tmp_path: Path) -> None:
    report, _ = examine("backend-plugin-raises", tmp_path)
    finding = report.to_json()["findings"][0]
    assert finding["traceback"].startswith("Traceback")
    assert "libacme.so: file too short" in finding["why"]


def known_ids() -> set[str]:
    """Finding ids in the source: the first argument of `Finding`, or of the tuples that feed it."""
    names: set[str] = set()
    for path in Path(accel.doctor.__file__).parent.joinpath("checks").glob("*.py"):
        names |= set(re.findall(r'Finding\(\s*"([a-z-]+)"', path.read_text()))
        names |= set(re.findall(r'(?:return|: \()\s*"([a-z]+(?:-[a-z]+)+)", ', path.read_text()))
    return names


def test_every_finding_is_recorded_and_documented() -> None:
    recorded = {i for name in NAMES for i in recording(name)["expected"]["findings"]}
    documented = set(re.findall(r"^\| `([a-z-]+)` ", DOCS.read_text(), re.MULTILINE))
    assert known_ids() - {"torch-broken"} == recorded - {"torch-broken"}
    assert documented == recorded
