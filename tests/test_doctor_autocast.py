"""`accel doctor --autocast`: measured on this machine, and what a broken one makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from accel.doctor import LocalMachine
from accel.doctor.autocast import render_autocast, survey_autocast
from accel.doctor.process import Completed
from accel.precision.autocast import TABLE

LINE = {
    "schema": "accel.autocast",
    "torch": "2.13.0",
    "default_dtype": "bfloat16",
    "operators": 3,
    "not_called": ["inner"],
    "devices": [
        {
            "device": "npu:0",
            "name": "Ascend910B2",
            "default_dtype": "float16",
            "dtype": "bfloat16",
            "called": 2,
            "absent": ["fused_cell"],
            "differs": [
                {"operator": "rms_norm", "operands": "bfloat16", "table": "float32",
                 "native": "bfloat16", "portable": "float32"},
            ],
            "not_portable": [],
            "unknown": ["new_operator"],
        }
    ],
}  # fmt: skip


class Recorded(LocalMachine):
    """A machine on which the census ends in a given way."""

    def __init__(self, completed: Completed) -> None:
        super().__init__()
        self.completed, self.commands = completed, []

    def run(
        self, command: Sequence[str], timeout: float, overrides: Mapping[str, str]
    ) -> Completed:
        self.commands.append((list(command), timeout))
        return self.completed


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accel", "doctor", "--autocast", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert "Traceback" not in result.stderr
    return result


def test_this_machine_is_measured():
    result = run("--json", "--timeout", "150")
    document = json.loads(result.stdout)
    assert result.returncode == 0
    assert document["problem"] == ""
    assert document["operators"] == len(TABLE)
    for device in document["devices"]:
        assert device["called"] + len(document["not_called"]) == len(TABLE)
        assert device["not_portable"] == device["unknown"] == []
        assert device["differs"]
    cpu = document["devices"][-1]
    assert cpu["device"] == "cpu"
    assert cpu["default_dtype"] == "bfloat16"
    differs = {(row["operator"], row["operands"]): row for row in cpu["differs"]}
    for name in ("layer_norm", "softmax.int", "rms_norm", "exp", "sum", "logsumexp"):
        row = differs[name, "bfloat16"]
        assert (row["native"], row["table"]) == ("bfloat16", "float32")
    assert differs["mv", "float32"]["native"] == "float32"
    assert differs["trace", "bfloat16"]["native"] == "float32"
    assert differs["binary_cross_entropy", "float32"]["table"] == "refused"
    # The right dtype, and products of operands rounded to 16 bits.
    assert differs["bilinear", "float32"]["native"] == "float32, rounded inside"
    assert ("linear", "float32") not in differs
    assert ("mse_loss", "bfloat16") not in differs


def test_the_text_is_a_table():
    completed = Completed(0, stdout=f"chatter\n{json.dumps(LINE)}\nmore chatter\n")
    machine = Recorded(completed)
    report = survey_autocast(machine, timeout=7.0)
    text = render_autocast(report)
    assert report.status == 0
    ((command, timeout),) = machine.commands
    assert command[-2:] == ["-m", "accel.precision.autocast.census"]
    assert timeout == 7.0
    lines = text.splitlines()
    assert "torch.autocast float16, portable_autocast bfloat16: another" in text
    assert "1 of 2 operators differ" in text
    assert "    rms_norm  bfloat16  bfloat16  float32" in lines
    assert "  not on this device: fused_cell" in lines
    assert "  treated natively and not in the table: new_operator" in lines
    assert "PROBLEM" not in text


def test_an_operator_that_escapes_is_a_problem():
    row = {**LINE["devices"][0]["differs"][0], "portable": "float16"}
    device = {**LINE["devices"][0], "not_portable": [row], "differs": []}
    completed = Completed(0, stdout=json.dumps({**LINE, "devices": [device]}))
    report = survey_autocast(Recorded(completed))
    assert report.status == 1
    assert "PROBLEM: rms_norm of bfloat16 gives float16" in render_autocast(report)


@pytest.mark.parametrize(
    ("completed", "words"),
    [
        (Completed(None, refused="no such file"), "could not be started: no such file"),
        (Completed(None, timed_out=True), "--timeout"),
        (Completed(-11), "SIGSEGV: it printed nothing"),
        (Completed(1, stderr="ModuleNotFoundError: No module named 'torch'"), "named 'torch'"),
        (Completed(0, stdout='{"schema": "accel.autocast", "dev'), "no JSON"),
        (Completed(0, stdout='{"schema": "other"}'), "another document"),
    ],
)
def test_a_broken_machine_is_one_sentence(completed, words):
    report = survey_autocast(Recorded(completed))
    assert report.status == 1
    assert words in report.problem
    assert report.to_json()["devices"] == []
    assert render_autocast(report) == f"accel doctor: autocast was not measured: {report.problem}\n"
