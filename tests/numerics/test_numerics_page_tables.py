"""The tables of cost in docs/numerics.md are what the committed results say."""

from __future__ import annotations

import copy

import pytest

from benchmarks import recorder_page as page

COST, MSPROBE = page.load("recorder_cost"), page.load("recorder_msprobe")


def test_the_page_says_what_the_results_say() -> None:
    text = page.PAGE.read_text()
    assert page.written(text, COST, MSPROBE) == text, (
        "the tables are old: run python benchmarks/recorder_page.py"
    )


def test_other_results_make_another_page() -> None:
    other = copy.deepcopy(COST)
    other["rows"][0]["cpu"]["recorded_ratio"] += 1
    assert page.tables(other, MSPROBE) != page.tables(COST, MSPROBE)


def test_every_row_is_there_and_the_least_favourable_is_said() -> None:
    text = page.tables(COST, MSPROBE)
    for row in MSPROBE["rows"]:
        assert f"| {row['model']} |" in text
        assert "error" in row or f"| {row['ratio']:.1f} |" in text
    sketches = [row for row in MSPROBE["rows"] if row["level"] == "sketch"]
    worst = max(sketches, key=lambda row: float(row["ratio"]))
    assert f"takes {worst['ratio']:.1f} times as long at `sketch`" in text


def test_what_was_measured_is_shown_and_what_was_not_is_said() -> None:
    measured = copy.deepcopy(COST)
    row, bare = measured["rows"][:2]
    for key in ("run_of_200", "hooks_microseconds"):
        bare.pop(key, None)
    row["hooks_microseconds"] = {"median": 7.25, "lower_quartile": 6.5, "upper_quartile": 9.0}
    run = {"steps": 200, "ratio": 1.0123, "plain_halves_ratio": 0.9876}
    row["run_of_200"] = {"cpu": run, "wall": run}
    row["cpu"]["idle_ratio"], row["cpu"]["idle_quartiles"] = 1.0004, [0.991, 1.012]
    lines = dict(line.strip("| ").split(" | ", 1) for line in page.tables(measured, MSPROBE)
                 .splitlines() if line.count(" | ") == 2)  # fmt: skip
    assert lines["hooks of an idle step, µs"] == "7.2 [6.5, 9.0] | not measured"
    assert lines["200 steps with one recorded, measured"] == "1.012 (1.012) | not measured"
    assert lines["idle step"].startswith("1.000 [0.991, 1.012] (")


def test_a_recorder_that_does_not_run_is_listed_with_its_error() -> None:
    failed = copy.deepcopy(MSPROBE)
    last = failed["rows"][-1]
    failed["rows"][-1] = {key: last[key] for key in ("model", "tool", "task", "level")}
    failed["rows"][-1]["error"] = "ImportError: no such thing"
    assert "does not run: ImportError: no such thing" in page.tables(COST, failed)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no lines"):
        page.written("# A page", COST, MSPROBE)
