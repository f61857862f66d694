from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from accel.numerics.comparing.compare_runs import compare
from accel.numerics.comparing.comparison import (
    KINDS,
    Attribution,
    Comparison,
    Coverage,
    Kind,
    Precondition,
    RankCell,
    Row,
    StepSummary,
    Unmatched,
    Verdict,
)
from accel.numerics.pages.drill import details, why_no_elements
from accel.numerics.pages.page import to_html
from accel.numerics.pages.plots import regions
from accel.numerics.recorder import record
from accel.numerics.storage.entries import OUTSIDE, Key, Place
from tests.numerics.comparisons import accuracy, comparison, faulty, faulty_row, key, row
from tests.numerics.page_parser import Page

HOSTILE = "</script><script>alert('x')</script><!--<img src=x onerror=alert(1)>\"&\x00\x1b\u202e"

GIVEN = (
    ("self", "float32 [4, 8]", "float32 [4, 8]"),
    ("approximate", "'none'", "'tanh'"),
)


def given_row(given: tuple[tuple[str, str, str], ...]) -> Row:
    return replace(faulty_row(), arguments=given)


def everything() -> Comparison:
    """A comparison with something in every field."""
    swapped = RankCell(0, 1, 0.0, None, "unknown", None)
    return replace(
        faulty(),
        environment={"torch": ("2.12.0", "2.13.0")},
        preconditions=(
            Precondition("parameter", "head.weight", "float32 [8, 8]", "the same", "transposed",
                         1.4),
            Precondition("random", "cpu", "ab12", "cd34", decisive=False),
        ),
        unmatched=(Unmatched("reference", key(9), Place("net.py", 3, "f"), ("float32",)),),
        ranks=(RankCell(0, 0, 1e-7, 2e-4, "diverges", str(key(2))), swapped,
               RankCell(1, 0, 0.3, None, "unknown", None),
               RankCell(1, 1, 0.1, 1e-7, "carried", None)),
        steps=(StepSummary(0, "faulty operator", "first"), StepSummary(7, "same", "later")),
        zoom=("accel record --level full --only 'blocks.2' --out run-b-zoom -- python train.py",),
        notes=("the candidate is incomplete (rank 1)",),
        findings=(faulty().verdict, Verdict("different switch", "autocast differs")),
    )  # fmt: skip


def test_the_page_is_whole_loads_nothing_and_its_links_lead_somewhere() -> None:
    text = to_html(everything())
    page = Page(text)
    assert page.loads == []
    assert page.handlers == []
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text
    links = [found["href"] for tag, found in page.attributes if tag == "a"]
    rows = {f"value-{i}" for i in range(len(page.data["rows"]))}
    assert links
    assert {link.removeprefix("#") for link in links} <= {*page.ids, *rows}
    assert len(set(page.ids)) == len(page.ids)
    assert [i for i in page.ids if i != "value"] == [
        "zoom", "flagged", "depth", "isolated", "loss", "values", "modules", "also",
        "environment", "coverage", "ranks", "steps", "notes",
    ]  # fmt: skip


def test_drawings_tables_and_controls_are_named_for_who_cannot_see_them() -> None:
    page = Page(to_html(everything()))
    drawings = [found for tag, found in page.attributes if tag == "svg"]
    assert len(drawings) == 6  # forward, backward, R, M, the histogram, the waterfall
    assert all(found["role"] == "img" and found["aria-label"] for found in drawings)
    assert page.tags.count("caption") == page.tags.count("table")
    headings = [found for tag, found in page.attributes if tag == "th"]
    assert all(found.get("scope") in ("col", "row") for found in headings)
    kinds = page.tags
    controls = [i for i, tag in enumerate(kinds) if tag in ("input", "select")]
    assert controls
    assert all(kinds[i - 1] == "label" for i in controls)


def hostile(value: Any) -> Any:
    """The same value with every text replaced that a recording may choose."""
    chosen = set(KINDS) | {
        "reference", "candidate", "equal", "rounding", "carried", "diverges", "unknown", "name",
        "right", "faulty", "unchecked", "forward", "backward", "full", "float32", "parameter",
        "random",
    }  # fmt: skip
    if isinstance(value, str):
        return value if value in chosen else value + HOSTILE
    if isinstance(value, tuple):
        made = [hostile(item) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, dict):
        return {hostile(k): hostile(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: hostile(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return replace(value, **fields)
    return value


def test_hostile_names_stay_text() -> None:
    text = to_html(hostile(everything()))
    page, plain = Page(text), Page(to_html(everything()))
    assert page.tags.count("script") == plain.tags.count("script") == 2
    assert page.tags.count("img") == 0
    assert page.handlers == page.loads == []
    assert page.text.count("alert") > 50
    for character in "\x00\x1b\u202e":
        assert character not in text
    assert page.data["rows"][0][0].endswith('onerror=alert(1)>"&\ufffd\ufffd\ufffd')
    for inner in page.data["details"]:
        found = Page(inner)
        assert not {"script", "img"} & set(found.tags)
        assert found.handlers == []


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_verdict_is_a_sentence_with_its_kind_as_a_label(kind: Kind) -> None:
    tone = {"same": "good", "rounding only": "good", "faulty operator": "bad",
            "cannot decide": "neutral"}.get(kind, "warn")  # fmt: skip
    verdict = Verdict(kind, "the weight is transposed", ("a fact with 3 units",))
    text = to_html(comparison((row(0),), verdict=verdict))
    assert f'<div class="headline {tone}"' in text
    assert Page(text).texts("strong")[0] == "The weight is transposed."
    assert f'<span class="label">{kind}</span>' in text
    assert "a fact with 3 units" in Page(text).texts("li")


def test_the_operator_is_named_with_its_source_line_and_linked() -> None:
    text = to_html(faulty())
    assert '<a href="#value-2"><code>forward:blocks.2/gelu#0</code></a>' in text
    assert "models/net.py:12 (forward)" in text
    assert "candidate (run-b)" in text
    other = Verdict("different weight/input", "a weight differs", operator=key(0))
    page = to_html(comparison(faulty().rows, verdict=other, divergence=str(key(2))))
    assert "first divergence" in page
    # An operator that has no row is named all the same.
    lost = Verdict("faulty operator", "it is wrong", operator=key(77))
    assert "<code>forward:blocks.77/gelu#0</code>" in to_html(comparison((), verdict=lost))


def section(text: str, anchor: str) -> str:
    begin = text.index(f'<section id="{anchor}">')
    return text[begin : text.index("</section>", begin)]


def test_depth_shows_both_runs_against_float64_where_it_is_known() -> None:
    drawn = section(to_html(faulty()), "depth")
    theirs = re.findall(r"\ncandidate: ([\d.e+]+)\n", drawn)
    assert theirs == ["2.5", "2.5", "3.4e+03", "2.5", "2.5", "2.5"]
    assert re.findall(r"\nreference: ([\d.e+]+)\n", drawn) == ["2", "2", "3", "2", "2", "2"]
    apart = re.findall(r"\ncandidate - reference: ([\d.e+]+)\n", drawn)
    assert apart == ["1.68", "1.68", "3.36e+03", "1.68", "1.68", "1.68"]  # 1e-7 and 2e-4 in u
    assert drawn.count("floor: one rounding of float64, 1 u") == 2
    assert drawn.count("first divergence</text>") == 1
    assert "candidate: at most 3.4e+03 u, at forward:blocks.2/gelu#0" in drawn
    assert ">distance in u</text>" in drawn


def test_depth_at_sketch_shows_distances_in_units_of_u_and_says_why() -> None:
    rows = (row(0, distance=2.0**-23), row(1, distance=math.inf), row(2, distance=None),
            row(3, dtypes=("float32", "bfloat16"), distance=2.0**-8, expected=math.inf),
            row(4, dtypes=("int64", "int64")))  # fmt: skip
    drawn = section(to_html(comparison(rows, levels=("sketch", "sketch"))), "depth")
    assert re.findall(r"candidate - reference: ([\w.+-]+)\n", drawn) == ["2", "inf", "1"]
    assert "because the recordings hold no elements" in drawn
    assert "between the runs in u" in drawn
    nothing = section(to_html(comparison((rows[2], rows[4]))), "depth")
    assert "No distance of a floating-point value is known." in nothing


def test_a_chain_that_begins_anew_at_every_gap_is_no_truth() -> None:
    kept = row(0, reference=accuracy(accumulated=1.0), candidate=accuracy(accumulated=1.0))
    rows = (kept, row(1), row(2), row(3))
    drawn = section(to_html(comparison(rows)), "depth")
    assert "because the elements of most operators were not kept" in drawn
    assert "candidate - reference" in drawn


def test_the_strip_marks_what_is_at_fault() -> None:
    drawn = section(to_html(faulty()), "isolated")
    assert drawn.count("at fault (1)</text>") == 2
    assert re.findall(r"at fault \(1\): ([\d.e+]+)", drawn) == ["2.5e+03", "1.2e+04"]
    assert drawn.count("limit of R</text>") == drawn.count("limit of M</text>") == 1
    assert '"R of 6 replayed operators in execution order; 1 of them are at fault' in drawn
    right = section(to_html(comparison((row(0, candidate=accuracy()),))), "isolated")
    assert "at fault (" not in right
    # Within R and M and at fault all the same, by its misrounding.
    found = accuracy(verdict="faulty", reason="3 % of its elements are misrounded")
    subtle = section(to_html(comparison((row(0, candidate=found),))), "isolated")
    assert "at fault (1): 0.5" in subtle


def test_runs_of_different_dtypes_have_limits_of_their_own() -> None:
    narrow = accuracy(limit_rms=1.6, limit_worst=4.0)
    both = section(
        to_html(comparison((row(0, reference=accuracy(), candidate=narrow),))), "isolated"
    )
    assert "limit of R, reference</text>" in both
    assert "limit of R, candidate</text>" in both


def test_sections_without_data_say_why() -> None:
    text = to_html(comparison((row(0),), levels=("sketch", "sketch")))
    assert "both recordings hold sketches, which have no elements" in section(text, "isolated")
    assert "Not known from sketches" in section(text, "loss")
    assert "No operator was checked by replay" in section(text, "coverage")
    assert "No difference in versions" in section(text, "environment")
    off = to_html(comparison((row(0),)))
    assert "comparing was asked not to" in section(off, "isolated")
    assert "nothing is attributed" in section(off, "loss")
    for anchor in ("zoom", "flagged", "also", "modules", "ranks", "steps"):
        assert f'id="{anchor}"' not in text


def test_the_table_sorts_by_numbers_and_keeps_what_is_not_finite() -> None:
    rows = (row(0, distance=math.inf), row(1, distance=math.nan), row(2, distance=None), row(3),
            faulty_row(4))  # fmt: skip
    data = Page(to_html(comparison(rows))).data
    assert [cells[6] for cells in data["rows"]] == ["inf", "nan", None, 1e-7, 2e-4]
    assert data["rows"][4][2] == {"sort": "faulty", "tone": "bad"}
    assert data["rows"][4][8:10] == [2500.0, 12000.0]
    assert data["rows"][3][8:10] == [None, None]
    assert data["marked"] == [4]
    assert [column["hidden"] for column in data["columns"]].count(True) == 1
    short = Page(to_html(comparison(rows[:4]))).data  # nothing replayed: no columns for it
    assert len(short["columns"]) == len(data["columns"]) - 4


def test_the_less_accurate_run_is_shown_and_a_faulty_one_before_all() -> None:
    rows = (
        row(0, reference=accuracy(worst=9.0), candidate=accuracy(worst=2.0)),
        row(1, reference=accuracy(verdict="faulty", worst=None, rms=None, reason="its shape"),
            candidate=accuracy()),
    )  # fmt: skip
    data = Page(to_html(comparison(rows))).data
    assert [cells[9] for cells in data["rows"]] == [9.0, None]
    assert [cells[2]["sort"] for cells in data["rows"]] == ["rounding", "faulty"]


def test_the_drill_down_holds_circumstances_errors_histogram_and_elements() -> None:
    page = Page(details(faulty(), given_row(GIVEN)))
    for text in ("models/net.py:12 (forward)", "float32 [4, 8]", "blocks.2 (Block)"):
        assert text in page.text
    assert "0.00021 the candidate's own error, 0 came with the inputs, 4e-08 the" in page.text
    assert "their inputs by 0; inputs and rounding explain 4e-06" in page.text
    assert "R is 2500 and not at most 15" in page.text
    cells = [text for tag, text in page._texts if tag in ("td", "th")]
    assert cells[-5:] == ["1,\xa07", "-0.0254449", "-0.025116", "-0.02544500364", "1.8e+05"]
    (drawing,) = [found for tag, found in page.attributes if tag == "svg"]
    assert drawing["aria-label"].endswith("< 0.5: 5, ≥ 0.5: 7, ≥ 1: 20")
    assert cells[:3] == ["given", "reference", "candidate"]
    assert cells[3:9] == ["self", *["float32 [4, 8]"] * 2, "approximate", "'none'", "'tanh'"]
    assert page.tags.count("tr") == 3 + 3 + 2
    assert [f.get("class") for tag, f in page.attributes if tag == "tr"][:3] == [None, None, "bad"]
    assert "in both runs" in Page(details(faulty(), given_row(GIVEN[:1]))).text
    short = Page(details(faulty(), given_row(GIVEN), is_rich=False)).text
    assert "faulty, R 2.5e+03 (limit 15), M 1.2e+04 (limit 30), own error 4e-08" in short
    assert "approximate 'none' in the reference, 'tanh' in the candidate" in short


def test_the_page_says_why_there_are_no_elements() -> None:
    full, sketches = comparison(()), comparison((), levels=("sketch", "sketch"))
    assert "at sketch and sketch, which keep none" in why_no_elements(sketches, row(0))
    assert "only operators' outputs" in why_no_elements(full, row(0, key=None))
    assert "were not kept" in why_no_elements(full, row(0))
    skipped = row(0, candidate=accuracy(verdict="unchecked", reason="no reference"))
    assert "not replayed (no reference)" in why_no_elements(full, skipped)
    checked = row(0, candidate=accuracy(instance=key(1)))
    assert "checked in the run" in why_no_elements(full, checked)
    assert "of the same signature" in Page(details(full, checked)).text
    other = row(0, candidate=accuracy(), histogram=((0.0, 1),))
    assert "least accurate" in why_no_elements(full, other)


def test_the_waterfall_adds_up_and_cuts_what_is_small() -> None:
    parts = tuple((key(i), 2.0**-i) for i in range(40))
    found = Attribution("candidate - float64", None, 2.0, 5.0, None, parts)
    drawn = section(to_html(comparison((row(0),), attribution=found)), "loss")
    assert "28 others" in drawn
    assert "The 12 largest of 40" in drawn
    assert "is not known" in drawn
    crooked = replace(found, actual=-3.0, linear=False)
    said = section(to_html(comparison((row(0),), attribution=crooked)), "loss")
    assert "no attribution of the recorded difference" in said
    assert "recorded -3" not in said


def test_coverage_counts_what_was_not_checked_and_lists_what_is_missing() -> None:
    missing = tuple(
        Unmatched("candidate", Key("forward", "m", 0, "", "mul", k), None, ("float32",))
        for k in range(300)
    )
    found = replace(faulty(), unmatched=missing)
    text = section(to_html(found), "coverage")
    page = Page(f"<section>{text.split('>', 1)[1]}</section>")
    assert "6 operators replayed, 0 judged by another of the same signature" in page.text
    assert "2 not checked, 3 with nothing to check" in page.text
    assert "300 without a counterpart" in page.text
    assert "The first 200 of 300" in page.text
    assert "no reference" in page.text
    assert page.of_class("unchecked") == 1
    # What is not checked stands first, and its table is open.
    assert text.index("npu::") < text.index("gelu")
    assert '<details open="">' in text


def test_ranks_steps_environment_and_command_are_there() -> None:
    text = to_html(everything())
    assert "same inputs" in section(text, "ranks")
    assert section(text, "ranks").count('scope="row"') == 2
    assert "of step 0" in section(text, "steps")
    assert "transposed" in section(text, "environment")
    assert "2.12.0" in section(text, "environment")
    command = "accel record --level full --only &#x27;blocks.2&#x27; --out run-b-zoom"
    assert command in section(text, "zoom")
    assert 'class="copy"' in section(text, "zoom")
    assert "autocast differs" in section(text, "also").lower()
    assert "rank 1" in section(text, "notes")


def test_thousands_of_rows_are_all_there_and_plots_keep_the_worst() -> None:
    replayed = {"reference": accuracy(accumulated=2.0), "candidate": accuracy(accumulated=2.0)}
    rows = [row(i, **replayed) for i in range(5000)]
    rows[3777] = replace(faulty_row(3777), name="the one at fault")
    text = to_html(comparison(tuple(rows), divergence="the one at fault"))
    page = Page(text)
    assert len(page.data["rows"]) == len(page.data["details"]) == 5000
    assert page.data["first"] == 100
    assert "500 most urgent of 5000 values have histograms" in page.text
    assert len(text) < 10_000_000
    assert section(text, "depth").count("<circle") <= 3 * 500 + 4
    assert "of every 10 values the furthest" in section(text, "depth")
    assert "first divergence</text>" in section(text, "depth")
    assert "at fault (1)" in section(text, "isolated")
    assert "the one at fault" in section(text, "flagged")


def test_regions_follow_the_module_tree_as_deep_as_there_is_room() -> None:
    modules = ["", "blocks.0.up", "blocks.0.down", "blocks.1.up", OUTSIDE]
    assert [one.name for one in regions(modules)] == [
        "model", "blocks.0.up", "blocks.0.down", "blocks.1.up", "outside",
    ]  # fmt: skip
    many = [f"blocks.{i}.{part}" for i in range(20) for part in ("up", "down")]
    assert [one.name for one in regions(many)] == [f"blocks.{i}" for i in range(20)]
    assert regions(many)[1][:2] == (2, 4)
    assert regions([]) == []


def test_a_coverage_of_nothing_and_a_comparison_of_nothing_are_pages_too() -> None:
    empty = comparison((), coverage=(Coverage("reference", {}, {}, {}, 0),))
    assert Page(to_html(empty)).data["rows"] == []


def test_what_operators_were_given_is_on_the_page(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    inputs = torch.randn(4, 8)
    for name, eps in (("a", 1e-5), ("b", 1e-3)):
        model[1].eps = eps
        with record(model, tmp_path / name):
            model(inputs)
    found = compare(tmp_path / "a", tmp_path / "b")
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)  # the page needs no recordings
    page = Page(found.to_html())
    (row,) = (i for i, one in enumerate(found.rows) if one.name.endswith("layer_norm#0 output 0"))
    inside = Page(page.data["details"][row])
    cells = [text for tag, text in inside._texts if tag in ("td", "th")]
    at = cells.index("eps")
    assert cells[at : at + 3] == ["eps", "1e-05", "0.001"]
    assert "float32 [4, 8]" in cells
    document = json.loads(found.to_json())
    assert ["eps", "1e-05", "0.001"] in document["rows"][row]["arguments"]


def test_what_the_table_leaves_out_is_stated_and_not_linked_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("words", "values"):
        monkeypatch.setattr(f"accel.numerics.pages.{module}.MOST_ROWS", 2)
    text = to_html(faulty())
    assert "The first 2 of 6 values; the JSON has all." in text
    assert len(Page(text).data["rows"]) == 2
    assert "#value-" not in text
    assert "forward:blocks.2/gelu#0" in section(text, "flagged")
