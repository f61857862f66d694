"""`accel compare`, `accel replay` and `accel record`: outputs, exit status, wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from accel.cli import main
from tests.numerics.numerics_zoo import case, made, one_thread, recorded, threads  # noqa: F401
from tests.numerics.page_parser import Page
from tests.numerics.test_numerics_compare_runs import Faulty, accel, tanh_gelu


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, one = tmp_path_factory.mktemp("runs"), case("language")
    with threads(1):
        recorded(path / "a", one, seed=1, level="full")
        recorded(path / "same", one, seed=2, level="full")
        recorded(path / "sketch", one, level="sketch")
        with Faulty("gelu", tanh_gelu, at=0):
            recorded(path / "wrong", one, level="full")
        with Faulty("gelu", tanh_gelu, at=0):
            recorded(path / "wrong-sketch", one, level="sketch")
        model = made(one.model)
        model.set_submodule("blocks.0.mlp.1", nn.GELU("tanh"))
        recorded(path / "tanh", one, model=model)
    return path


# --- compare --------------------------------------------------------------------------------------


def test_agreement_exits_0_and_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs / "a"), str(runs / "same"), "--no-replay"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Same: all ")
    assert [line.split() for line in out.splitlines() if line.startswith("seed")] == [
        ["seed", "1", "2"]
    ]


def test_a_fault_exits_1_and_names_the_operator(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, document = tmp_path / "r.html", tmp_path / "r.json"
    command = ["compare", str(runs / "a"), str(runs / "wrong"), "--worst", "3"]
    assert main([*command, "--html", str(page), "--json", str(document)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("Faulty operator: the candidate's gelu in blocks.0.mlp.1 (tests/")
    assert out.splitlines()[-1] == f"report: {page}"
    found = json.loads(document.read_text())
    assert found["ok"] is False
    assert found["verdict"]["operator"] == "forward:blocks.0.mlp.1/gelu#0"
    text = page.read_text()
    assert Page(text).loads == []
    assert "forward:blocks.0.mlp.1/gelu#0" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_another_program_exits_1(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs / "sketch"), str(runs / "tanh")]) == 1
    assert "argument approximate is 'tanh'" in capsys.readouterr().out


def test_what_cannot_be_decided_exits_3_with_a_command(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(runs / "sketch"), str(runs / "wrong-sketch")]) == 3
    out = capsys.readouterr().out
    assert out.startswith("Cannot decide: gelu in blocks.0.mlp.1 (tests/")
    assert "accel record --level full --only blocks.0.mlp.1 --steps 0 --out " in out


def test_an_unreadable_recording_exits_2(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "r.html"
    assert main(["compare", str(runs / "a"), str(tmp_path / "no"), "--html", str(page)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("accel compare: ")
    assert captured.err.count("\n") == 1
    assert not page.exists()


def test_an_unwritable_output_exits_2_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, missing = tmp_path / "r.html", tmp_path / "missing" / "r.json"
    # the recordings do not exist either: the outputs are looked at first
    assert main(["compare", "x", "y", "--html", str(page), "--json", str(missing)]) == 2
    assert f"cannot write {missing}: No such file or directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--step", "7"], "no step 7 in common"),
        (["--scale", "0"], "scale must be a positive number"),
    ],
)
def test_wrong_values_exit_2(
    runs: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert main(["compare", str(runs / "a"), str(runs / "same"), *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--worst", "-1"], ["--worst", "x"], ["--step", "1.5"]])
def test_wrong_usage_exits_2(runs: Path, given: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["compare", str(runs / "a"), str(runs / "same"), *given])
    assert exit_status.value.code == 2


@pytest.mark.parametrize("command", ["compare", "replay"])
def test_a_reader_that_leaves_is_no_error(runs: Path, command: str) -> None:
    recordings = [str(runs / "a"), str(runs / "wrong")] if command == "compare" else [
        str(runs / "wrong")
    ]  # fmt: skip
    reading, writing = os.pipe()
    os.close(reading)  # nobody reads
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "accel", command, *recordings, "--worst", "10000"],
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert done.returncode == 1  # what it found, not what became of the pipe
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


# --- replay ---------------------------------------------------------------------------------------


def test_replay_of_a_right_run_exits_0(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(runs / "a")]) == 0
    assert capsys.readouterr().out.startswith("Every operator computed what its inputs say: ")


def test_replay_of_a_fault_exits_1(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, document = tmp_path / "r.html", tmp_path / "r.json"
    command = ["replay", str(runs / "wrong"), "--html", str(page), "--json", str(document)]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "forward:blocks.0.mlp.1/gelu#0" in out
    row = next(line for line in out.splitlines() if line.startswith("out "))
    assert row.split()[1] == "forward:blocks.0.mlp.1/gelu#0"
    found = json.loads(document.read_text())
    assert found["ok"] is False
    assert found["counts"]["out"] == 1
    text = page.read_text()
    assert Page(text).loads == []
    assert "forward:blocks.0.mlp.1/gelu#0" in text


def test_replay_of_sketches_exits_3(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(runs / "sketch")]) == 3
    assert capsys.readouterr().out.startswith("Nothing could be replayed")


def test_replay_of_nothing_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.startswith("accel replay: ")


# --- record ---------------------------------------------------------------------------------------

SHOW = "import os, sys; print(os.environ['ACCEL_RECORD']); sys.exit(7)"


def test_record_hands_its_options_to_the_program(tmp_path: Path) -> None:
    done = accel(
        tmp_path, "record", "--level", "full", "--only", "a.*", "--only", "b", "--steps", "0,2-3",
        "--out", "run", "--", sys.executable, "-c", SHOW,
    )  # fmt: skip
    assert done.returncode == 7
    assert json.loads(done.stdout) == {
        "level": "full", "only": ["a.*", "b"], "steps": [0, 2, 3], "path": str(tmp_path / "run"),
    }  # fmt: skip


def test_record_leaves_what_is_not_asked_for_to_the_program(tmp_path: Path) -> None:
    done = accel(tmp_path, "record", "--", sys.executable, "-c", SHOW)
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no command is given"),
        (["--steps", "x", "--", "true"], "steps are written as"),
        (["--", "no-such-program-anywhere"], "cannot run 'no-such-program-anywhere': No such file"),
    ],
)
def test_record_refuses(capsys: pytest.CaptureFixture[str], given: list[str], said: str) -> None:
    assert main(["record", *given]) == 2
    assert said in capsys.readouterr().err


def test_record_writes_into_no_directory_that_holds_something(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", "--out", str(runs / "a"), "--", "true"]) == 2
    assert "is not empty: choose another directory" in capsys.readouterr().err
