"""The project's own commands on the simulated chip, as a user calls them there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import accel
from accel.numerics import compare, record

ROOT = Path(__file__).parents[2]


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def test_the_doctor_sees_the_chip_and_says_that_it_is_simulated():
    result = command("-m", "accel", "doctor", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {finding["id"]: finding["severity"] for finding in report["findings"]} == {
        "npu-simulated": "note"
    }
    assert "usable: cpu, npu:0, npu:1" in report["verdict"]
    assert "the NPU is simulated" in report["findings"][0]["what"]


def test_it_is_the_device_that_is_chosen():
    device = accel.current_device()
    assert (device.family, device.torch_device) == ("npu", torch.device("npu", 0))
    assert device.collective_backend == "hccl"
    assert device.chip.generation == "A2"
    assert dict(accel.numerics_mode().environment)["ACCEL_SIMULATE"].startswith("devices=2")


def test_validate_on_the_chip(tmp_path):
    out = tmp_path / "card.json"
    result = command("-m", "accel", "validate", "--device", "npu", "--json", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "npu" in out.read_text()


@pytest.mark.parametrize(("policy", "apart"), [("float32", 0.001), ("bfloat16", 0.01)])
def test_the_example_trains_as_on_the_cpu(tmp_path, monkeypatch, policy, apart):
    def final_loss(device):
        monkeypatch.setenv("ACCEL_DEVICE", device)
        small = ("--batch", "4", "--context", "32")
        options = ("--steps", "6", "--policy", f"compute={policy}", *small)
        result = command(ROOT / "examples/train_lm.py", *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"device {device}" in result.stdout
        return float(re.search(r"validation loss ([\d.]+)", result.stdout).group(1))

    assert final_loss("npu:0") == pytest.approx(final_loss("cpu"), abs=apart)


def test_recordings_of_cpu_and_chip_agree(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 2))
    x = torch.randn(4, 8)
    for device in ("cpu", "npu"):
        moved, batch = model.to(device), x.to(device)
        moved.zero_grad()
        with record(moved, tmp_path / device):
            moved(batch).square().mean().backward()
    report = compare(tmp_path / "cpu", tmp_path / "npu")
    assert report.ok, report.to_text()
    assert "ACCEL_SIMULATE" in (tmp_path / "npu" / "rank-0" / "manifest.json").read_text()
