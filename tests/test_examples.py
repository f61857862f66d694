"""examples/train_lm.py: it runs, learns, resumes to the bit, and trains on two processes.

What has to do with processes (a fresh start, torchrun, an exit status) starts some; the rest calls
the example's `main` here, as starting takes longer than twenty steps.
"""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import accel

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "examples/train_lm.py"
SMALL = ["--batch", "4", "--context", "32"]
QUICK = {"long_attention.py": ["--tokens", "1000"]}  # its document is long


def run(*arguments: str, launcher: tuple[str, ...] = (), **environment: str):
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def here(monkeypatch, capsys) -> Callable[..., str]:
    """Runs an example's `main` in this process; what it printed."""

    def run_here(example: Path, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(example), *arguments])
        runpy.run_path(str(example))["main"]()
        return capsys.readouterr().out

    return run_here


def losses(output: str) -> tuple[float, float]:
    """Unigram entropy and validation loss, as printed."""
    match = re.search(r"entropy of the text ([\d.]+) nats; validation loss ([\d.]+) nats", output)
    assert match, output
    return float(match[1]), float(match[2])


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_every_example_runs_two_steps(example: Path) -> None:
    result = run(str(example), "--steps", "2", *QUICK.get(example.name, []))
    assert result.returncode == 0, result.stderr


def test_one_long_document_is_learned_within_its_budget() -> None:
    example = str(ROOT / "examples/long_attention.py")
    result = run(example, "--steps", "12", "--tokens", "2000")
    assert result.returncode == 0, result.stderr
    assert "above the unigram entropy" in result.stdout.splitlines()[2]
    assert "step 12  loss 2." in result.stdout
    assert "below the unigram entropy" in result.stdout.splitlines()[-2]


def test_more_than_the_budget_is_an_error(here) -> None:
    example = ROOT / "examples/long_attention.py"
    with pytest.raises(SystemExit, match="the budget was exceeded"):
        here(example, "--steps", "1", "--tokens", "1000", "--budget", "0")


@pytest.mark.parametrize("policy", ["compute=float32", "compute=bfloat16"])
def test_it_learns(policy: str, here) -> None:
    entropy, loss = losses(here(TRAIN, "--steps", "40", *SMALL, "--policy", policy))
    assert 3.2 < entropy < 3.3
    assert loss < 3.5  # 4.6 untrained


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole.pt", tmp_path / "parted.pt"
    assert run(str(TRAIN), "--steps", "101", *SMALL, "--checkpoint", str(whole)).returncode == 0
    killed = run(
        "-c",
        "import runpy, sys, torch\n"
        "original, calls = torch.save, []\n"
        "def save(*a, **k):\n"
        "    if calls: raise KeyboardInterrupt\n"
        "    calls.append(original(*a, **k))\n"
        "torch.save = save\n"
        f"sys.argv = ['train_lm.py', '--steps', '101', '--batch', '4', '--context', '32',"
        f" '--checkpoint', {str(parted)!r}]\n"
        f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')",
    )
    assert killed.returncode != 0
    assert accel.load(parted)["step"] == 100
    resumed = run(str(TRAIN), "--steps", "101", *SMALL, "--checkpoint", str(parted))
    assert "continuing after step 100" in resumed.stdout, resumed.stderr
    a, b = accel.load(whole), accel.load(parted)
    assert a["step"] == b["step"] == 101
    for name, tensor in a["model"].items():
        assert torch.equal(tensor, b["model"][name]), name
    for key, state in a["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][key][name])
    assert [path.name for path in tmp_path.iterdir() if "part" in path.suffix] == []


def test_a_finished_run_goes_on_to_more_steps(tmp_path: Path, here) -> None:
    checkpoint = str(tmp_path / "lm.pt")
    for steps in ("2", "4", "3"):
        here(TRAIN, "--steps", steps, *SMALL, "--checkpoint", checkpoint)
    assert accel.load(checkpoint)["step"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "must be at least 1"),
        (["--checkpoint", "missing/lm.pt"], "cannot write missing/lm.pt"),
        (["--checkpoint", "other.pt"], "other.pt is no checkpoint of this example"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    options, message, tmp_path, monkeypatch, here, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1}, "other.pt")
    with pytest.raises((SystemExit, ValueError, OSError)) as stopped:
        here(TRAIN, "--steps", "2", *SMALL, *options)
    assert message in f"{stopped.value} {capsys.readouterr().err}"


def test_two_processes_under_torchrun(tmp_path: Path) -> None:
    """DDP on gloo: one report, one checkpoint, and both processes finish."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    checkpoint = tmp_path / "lm.pt"
    result = run(
        str(TRAIN), "--steps", "10", *SMALL, "--checkpoint", str(checkpoint), launcher=launcher
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("validation loss") == 1
    assert "2 process(es)" in result.stdout
    assert losses(result.stdout)[1] < 4.0
    assert accel.load(checkpoint)["step"] == 10


def test_two_processes_take_the_gradient_of_both_batches(tmp_path: Path) -> None:
    """Steps of two processes with 4 excerpts each equal those of one with the same 8."""
    code = (
        "import runpy, sys, torch, os\n"
        "module = runpy.run_path(sys.argv[1])\n"
        "original = module['batch']\n"
        "def batch(text, size, context, seed):\n"
        "    parts = [original(text, 4, context, 2 * seed + i) for i in range(size // 4)]\n"
        "    return tuple(torch.cat(p) for p in zip(*parts))\n"
        "if 'WORLD_SIZE' not in os.environ:\n"
        "    module['main'].__globals__['batch'] = batch\n"
        "sys.argv = sys.argv[1:]\n"
        "module['main']()\n"
    )
    script = tmp_path / "wrapped.py"
    script.write_text(code)
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    common = [str(TRAIN), "--steps", "3", "--context", "32", "--checkpoint"]
    alone = run(str(script), *common, str(one), "--batch", "8")
    assert alone.returncode == 0, alone.stderr
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = run(str(script), *common, str(two), "--batch", "4", launcher=launcher)
    assert both.returncode == 0, both.stderr
    a, b = accel.load(one)["model"], accel.load(two)["model"]
    for name in a:
        # AdamW turns rounding of tiny gradients into whole steps; three are at most 0.6 % of lr.
        assert (a[name] - b[name]).abs().mean() < 1e-5, name
