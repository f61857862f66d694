from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.numerics.comparing.given import described
from accel.numerics.pages.replayed import replay_to_html
from accel.numerics.recorder import record
from accel.numerics.replaying.walk import Replay, replay
from accel.numerics.storage.entries import Key, Operator, Ref, Special, Value
from tests.numerics.page_parser import Page


class WrongGelu(TorchDispatchMode):
    """Its tanh approximation, whatever is asked for."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is torch.ops.aten.gelu.default:
            return op(*args, approximate="tanh")
        return op(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("replays") / "run"
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 4))
    with WrongGelu(), record(model, path, level="full", steps=[0, 1]) as recorder:
        model(torch.randn(32, 8)).square().mean().backward()
        recorder.step()
        model(torch.randn(32, 8)).square().mean().backward()
    return replay(path, chained=True)


def test_the_page_names_the_operator_its_line_and_its_worst_elements(wrong: Replay) -> None:
    text = replay_to_html(wrong)
    page = Page(text)
    assert page.loads == page.handlers == []
    assert page.texts("strong")[0] == wrong.sentence
    assert '<div class="headline bad"' in text
    assert "forward:1/gelu#0" in page.texts("code")
    assert any("test_numerics_replay_pages.py:" in code for code in page.texts("code"))
    assert page.text.count("The 16 elements furthest from float64") == 2  # one in each step
    (first, *_) = wrong.out
    assert first.judged.reason is not None
    assert first.judged.reason in page.text
    drawings = [found["aria-label"] for tag, found in page.attributes if tag == "svg"]
    counts = [drawing for drawing in drawings if drawing.startswith("error against float64")]
    assert len(counts) == 2
    bins = [int(part.rsplit(": ", 1)[1]) for part in counts[0].partition("): ")[2].split(", ")]
    assert sum(bins) == 32 * 16


def test_what_was_not_checked_is_counted_with_its_reason(wrong: Replay) -> None:
    page = Page(replay_to_html(wrong))
    assert wrong.counts["unchecked"] > 0
    assert "What was not checked is not said to be right." in page.text
    assert "it draws random numbers" in page.text
    rows = page.data["rows"]
    assert len(rows) == len(wrong.operators)
    verdicts = [cells[2]["sort"] for cells in rows]
    views = verdicts.count("view")
    assert views > 0
    counted = {kind: verdicts.count(kind) for kind in set(verdicts) - {"view"}}
    assert counted == dict(wrong.counts)
    assert f"{views} views, which compute nothing" in page.text
    # R and M belong to what was measured; an unchecked operator has no number that looks good.
    assert all(cells[6] is None for cells in rows if cells[2]["sort"] in ("unchecked", "view"))
    assert len(rows[0]) == 13  # with rank and step, since there are two steps


def test_the_accumulated_error_is_drawn_in_units_of_u(wrong: Replay) -> None:
    text = replay_to_html(wrong)
    depth = text[text.index('id="depth"') : text.index('id="isolated"')]
    assert "first out of its limits" in depth
    assert "Rank 0, step 0." in depth
    errors = [cells[9] for cells in Page(text).data["rows"] if cells[0] == "forward:1/gelu#0"]
    assert all(100 < error < 1e6 for error in errors)


def test_without_a_chain_the_page_says_how_to_get_it(wrong: Replay) -> None:
    one = replay(wrong.path, steps=[0])
    text = replay_to_html(one)
    assert "accel replay --chained" in text
    assert len(Page(text).data["rows"][0]) == 11


def test_a_recording_that_is_gone_is_stated(wrong: Replay, tmp_path: Path) -> None:
    shutil.copytree(wrong.path, tmp_path / "run")
    found = replay(tmp_path / "run", steps=[1])
    shutil.rmtree(tmp_path / "run")
    page = Page(replay_to_html(found))
    assert "source lines, arguments and elements are missing" in page.text
    assert "the recording cannot be read any more" in page.text
    assert len(page.data["rows"]) == len(found.operators)


def test_nothing_checked_is_not_called_right(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    with record(model, tmp_path / "run"):
        model(torch.ones(2, 4))
    text = replay_to_html(replay(tmp_path / "run"))
    assert '<span class="label">nothing checked</span>' in text
    assert '<div class="headline neutral"' in text
    assert "No operator was measured" in text


def test_a_right_run_is_called_right(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    with record(model, tmp_path / "run", level="full"):
        model(torch.ones(2, 4))
    text = replay_to_html(replay(tmp_path / "run"))
    assert '<div class="headline good"' in text
    assert 'id="flagged"' not in text


def test_arguments_are_described_by_dtype_shape_and_value() -> None:
    given = {
        "self": Ref(0),
        "tensors": [Ref(0), Ref(1)],
        "eps": 1e-5,
        "dtype": Special("dtype", "bfloat16"),
        "weight": None,
        "name": "x" * 1000,
    }
    operator = Operator(0, Key("forward", "", 0, "", "f", 0), "aten::f", "default", given)
    found = described(operator, {0: Value(0, "float32", (4, 48)), 1: Value(1, "int64", ())})
    assert found.pop("name") == "'" + "x" * 158 + "…"
    assert found == {
        "self": "float32 [4, 48]",
        "tensors": "[float32 [4, 48], int64 []]",
        "eps": "1e-05",
        "dtype": "bfloat16",
    }


def test_what_the_table_leaves_out_is_stated_and_not_linked_to(
    wrong: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("words", "replay_sections"):
        monkeypatch.setattr(f"accel.numerics.pages.{module}.MOST_ROWS", 1)
    text = replay_to_html(wrong)
    assert f"The first 1 of {len(wrong.operators)} operators; the JSON has all." in text
    assert "#value-" not in text
