"""`accel validate` as a user calls it."""

import json
from pathlib import Path

import pytest

import accel.testing.suite
from accel.cli import main
from accel.testing import Check

GOOD = Check("attention", "cpu/cpu", "float32", "out", 1.1, 3.2, 0.0, 0.1, "within")
BAD = Check("attention", "cpu/cpu", "float32", "out", 90.0, 99.0, 0.0, 6.0, "out", "R is 90")


@pytest.fixture
def checks(monkeypatch):
    """Stand-in results; the suite itself is tested in test_testing.py."""
    found: list[Check] = [GOOD]

    def run(devices, *, on_check):
        for check in found:
            on_check(check)
        return list(found)

    monkeypatch.setattr(accel.testing, "conformance", run)
    return found


def test_within_limits(checks, capsys, tmp_path: Path) -> None:
    report, data = tmp_path / "r.html", tmp_path / "r.json"
    assert main(["validate", "--html", str(report), "--json", str(data)]) == 0
    assert "All 1 checks are within their limits" in capsys.readouterr().out
    assert json.loads(data.read_text())["ok"] is True
    assert report.read_text().startswith("<!doctype html>")


def test_a_check_out_of_its_limits_exits_with_1(checks, capsys) -> None:
    checks.append(BAD)
    assert main(["validate"]) == 1
    assert "1 of 2 checks are out of their limits" in capsys.readouterr().out


def test_nothing_checked_is_no_success(checks) -> None:
    checks.clear()
    assert main(["validate"]) == 1


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_unwritable_output_is_said_before_anything_runs(option, checks, capsys, tmp_path) -> None:
    target = tmp_path / "missing" / "r"
    assert main(["validate", option, str(target)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(target) in captured.err


@pytest.mark.parametrize(
    "name", [pytest.param("npu", marks=pytest.mark.without_npu), "nosuch", "cpu:x"]
)
def test_an_unknown_device(name, checks, capsys) -> None:
    assert main(["validate", "--device", name]) == 2
    assert name in capsys.readouterr().err


def test_a_backend_chosen_from_outside_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setenv("ACCEL_BACKEND", "segmented_attention=sdpa")
    assert main(["validate", "--device", "cpu"]) == 2
    assert "unset ACCEL_BACKEND" in capsys.readouterr().err


def test_a_mistyped_choice_of_device_is_said(monkeypatch, checks, capsys) -> None:
    monkeypatch.setenv("ACCEL_DEVICE", "nosuch")
    assert main(["validate"]) == 2
    assert "nosuch" in capsys.readouterr().err


def test_usage(capsys) -> None:
    for arguments in (["validate", "--nosuch"], ["nosuch"], []):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
