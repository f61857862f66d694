from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from accel.cli import main
from tests.numerics_zoo import case, made, one_thread, recorded, threads  # noqa: F401
from tests.test_report_pages import Balanced


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, one = tmp_path_factory.mktemp("runs"), case("language")
    with threads(1):
        recorded(path / "a", one, seed=1)
        recorded(path / "same", one, seed=2)
        model = made(one.model)
        model.set_submodule("blocks.0.mlp.1", nn.GELU("tanh"))
        recorded(path / "tanh", one, model=model)
        recorded(path / "plain", one, reference=False)
    return path


def test_agreement_exits_0_and_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs / "a"), str(runs / "same")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("They are the same: all ")
    assert [line.split() for line in out.splitlines() if line.startswith("seed")] == [
        ["seed", "1", "2"]
    ]


def test_divergence_exits_1_and_names_the_module(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, document = tmp_path / "r.html", tmp_path / "r.json"
    command = ["compare", str(runs / "a"), str(runs / "tanh"), "--worst", "3"]
    assert main([*command, "--html", str(page), "--json", str(document)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("blocks.0.mlp.1 (GELU) diverges first: its output 0 in call 0 computes")
    assert out.splitlines()[-1] == f"report: {page}"
    table = out[out.index("tensor ") :].splitlines()
    assert [line.split()[0] for line in table[2:5]] == ["out"] * 3
    found = json.loads(document.read_text())
    assert found["ok"] is False
    assert found["first_divergence"]["module"] == "blocks.0.mlp.1"
    assert found["verdict"] == out.splitlines()[0]
    assert sum(found["counts"].values()) == len(found["entries"])
    text = page.read_text()
    parsed = Balanced(text)
    assert parsed.open == []
    assert parsed.loads == []
    assert parsed.tags.count("svg") == 3  # forward, backward, parameters
    assert found["verdict"] in text.replace("&#x27;", "'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


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
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, missing = tmp_path / "r.html", tmp_path / "missing" / "r.json"
    # the recordings do not exist either: the outputs are looked at first
    assert main(["compare", "x", "y", "--html", str(page), "--json", str(missing)]) == 2
    assert f"cannot write {missing}: No such file or directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_budget_serves_recordings_without_reference(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(runs / "plain"), str(runs / "tanh")]
    assert main(command) == 2
    assert "carries no float64 reference" in capsys.readouterr().err
    assert main([*command, "--budget", "0.1"]) == 0
    assert main([*command, "--budget", "1e-6"]) == 1
    assert "exceeds its budget 1e-06" in capsys.readouterr().out
