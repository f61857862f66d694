"""The page of a run and the map: self-contained, complete, whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor

from accel.alignment.evaluation.collapse import Collapse
from accel.alignment.evaluation.monitor import CollapseMonitor
from accel.alignment.evaluation.page import TrainingReport, page_of, write_page
from accel.alignment.evaluation.page_verdict import chance_error, is_above_chance
from accel.alignment.evaluation.projection_map import principal_map
from accel.alignment.evaluation.retrieval import retrieve, retrieve_all_pairs
from accel.alignment.evaluation.zero_shot import class_prototypes, zero_shot_accuracy

HOSTILE = "<script>alert('x')</script>"


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, and collects tags, text and what would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def embeddings(n: int = 30, depth: int = 8, noise: float = 0.1) -> dict[str, Tensor]:
    shared = torch.randn(n, depth)
    return {name: shared + noise * torch.randn(n, depth) for name in ("text", "image", "audio")}


def full_report(**changes: object) -> TrainingReport:
    rows = embeddings()
    monitor = CollapseMonitor(interval=1)
    for scale in (3.0, 1.0, 0.3):
        monitor.update({name: one + scale for name, one in rows.items()})
    labels = torch.arange(30) % 3
    given = {
        "title": "A run",
        "embeddings": rows,
        "labels": [f"name {i}" for i in range(30)],
        "trained": [("text", "image"), ("image", "audio")],
        "steps": (0, 10, 20),
        "losses": {"all": (3.0, 2.0, 1.0), "text-image": (3.0, math.nan, 1.0)},
        "temperatures": {"text-image": (14.0, 15.0, 16.0)},
        "readings": monitor.history,
        "zero_shot": {
            "classes": zero_shot_accuracy(
                rows["image"], class_prototypes(rows["text"], labels), labels
            )
        },
        "facts": {"device": "cpu", "seconds": 1.5},
        **changes,
    }
    return TrainingReport(**given)


def test_a_page_is_whole_and_loads_nothing(tmp_path) -> None:
    path = tmp_path / "run.html"
    write_page(path, full_report())
    page = path.read_text()
    parsed = Balanced(page)
    assert parsed.open == []
    assert parsed.loads == []
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme:dark" in page
    for heading in (
        "Training", "Temperatures, as scales", "Health during training", "Retrieval",
        "Zero-shot classification", "Similarity", "Map", "Nearest neighbours", "This run",
        "text against image", "Modality gap", "Effective rank", "text → audio", "emergent",
    ):  # fmt: skip
        assert heading in parsed.text, heading
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]


def test_the_figures_are_those_measured() -> None:
    report = full_report(embeddings=embeddings(noise=1.0))
    page = Balanced(page_of(report)).text
    found = retrieve_all_pairs(report.embeddings, trained=report.trained)
    for one in found:
        assert f"{one.found.recall[1]:.1%}" in page
    trained = [one for one in found if one.is_trained]
    for which in (max, min):
        one = which(trained, key=lambda one: one.found.recall[1])
        assert f"{one.query} finds its {one.target} first in {one.found.recall[1]:.1%}" in page
    error = math.sqrt(1 / 30 * 29 / 30 / 30)
    assert f"chance is {1 / 30:.2%} ± {error:.2%}" in page
    assert "took 3 readings and said nothing" in page
    given = dataclasses.replace(report, retrieval=found[:1])
    table = page_of(given).split("Retrieval between all modalities")[1].split("</table>")[0]
    assert table.count("<tr>") == 2  # what was computed already is not computed again


def test_neighbours_are_marked() -> None:
    rows = {"text": torch.eye(4), "image": torch.eye(4)}
    rows["image"][[2, 3]] = rows["image"][[3, 2]]
    page = page_of(TrainingReport("t", rows, labels=["p", "q", "r", "s"]))
    body = page.split("image nearest to text")[1].split("</table>")[0]
    lines = re.findall(r'<th scope="row">(\w)</th><td[^>]*><span class="(\w+)">', body)
    assert lines == [("p", "right"), ("q", "right"), ("r", "wrong"), ("s", "wrong")]
    groups = torch.tensor([0, 1, 2, 2])
    page = page_of(TrainingReport("t", rows, groups=groups))
    body = page.split("image nearest to text")[1].split("</table>")[0]
    assert len(re.findall(r'<th scope="row">[^<]+</th><td[^>]*><span class="right">', body)) == 4


# --- the verdict -------------------------------------------------------------------------------


def headline_of(report: TrainingReport) -> tuple[str, str, str]:
    """Tone, label and all text of the headline."""
    page = page_of(report)
    tone = re.search(r'class="headline (\w+)"', page).group(1)
    box = page.split('class="headline')[1].split("</div>")[0]
    label = re.search(r'class="label">([^<]+)<', box).group(1)
    return tone, label, Balanced(f'<div class="{box}</div>').text


def test_a_warning_of_the_monitor_is_the_headline() -> None:
    event = Collapse(40, "image", "spread", 1e-4, 0.05, 0.7)
    tone, label, text = headline_of(full_report(events=[event]))
    assert (tone, label) == ("bad", "Collapsed")
    assert "The monitor warned of image." in text
    assert "mean cosine 0.9999" in text
    event = Collapse(40, "image", "finite", 3.0, 0.0, math.nan)
    assert headline_of(full_report(events=[event]))[:2] == ("bad", "Broken")
    tone, label, text = headline_of(full_report())
    assert (tone, label) == ("good", "Aligned")
    assert "Recall of every trained pair" in text


@pytest.mark.parametrize("events", [[], None])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-2])
def test_one_point_is_a_collapse_though_no_monitor_warned(spread: float, events) -> None:
    shared = torch.randn(200, 16)
    rows = {
        name: torch.ones(200, 16) + spread * (shared + 0.5 * torch.randn(200, 16))
        for name in ("text", "image")
    }
    changes = {} if events is None else {"events": events}
    tone, label, text = headline_of(TrainingReport("t", rows, **changes))
    assert (tone, label) == ("bad", "Collapsed")
    assert "text, image are nearly one point" in text
    assert re.search(r"text: mean cosine (1\.0000|0\.999\d)", text)
    assert "text finds its image" in text or "image finds its text" in text
    page = Balanced(page_of(TrainingReport("t", rows))).text
    assert "mean cosine, text" in page
    assert "mean cosine, text; effective rank" not in page  # rounding errors have any rank


def test_one_point_is_no_class() -> None:
    """Two classes may rightly end as two points; one that all queries find is a collapse."""
    rows = {name: torch.eye(2)[torch.arange(100) % 2] for name in ("text", "image")}
    assert headline_of(TrainingReport("t", rows, groups=torch.arange(100) % 2))[1] == "Aligned"
    rows["image"] = torch.eye(2)[torch.zeros(100, dtype=torch.int64)]
    assert headline_of(TrainingReport("t", rows))[:2] == ("bad", "Collapsed")


def test_random_embeddings_are_not_above_chance() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        rows = {name: torch.randn(150, 16) for name in ("text", "image", "audio")}
        assert headline_of(TrainingReport("t", rows))[:2] == ("warn", "Not above chance")
    rows = {name: torch.randn(150, 16) + 7 for name in ("text", "image")}
    tone, label, text = headline_of(TrainingReport("t", rows))
    assert (tone, label) == ("warn", "Not above chance")
    assert "text: mean cosine 0.98" in text
    assert "Untrained and collapsing encoders are as narrow." in text


def test_chance_and_its_standard_error_are_those_of_random_orders() -> None:
    """The share of random models that count as above chance is below 1.5 %, at some k."""
    torch.manual_seed(1)
    for count in (40, 300):
        above, recalls, trials = 0, [], 400
        for _ in range(trials):
            found = retrieve(torch.randn(count, 12), torch.randn(count, 12))
            above += is_above_chance(found)
            recalls.append(found.recall[1])
        assert above <= 0.015 * trials
        drawn = torch.tensor(recalls, dtype=torch.float64)
        error = chance_error(found, 1)
        assert drawn.mean().item() == pytest.approx(1 / count, abs=4 * error / math.sqrt(trials))
        assert drawn.std().item() == pytest.approx(error, rel=0.25)


def test_one_pair_that_finds_nothing_is_named() -> None:
    rows = embeddings(100, 12)
    rows["audio"] = torch.randn(100, 12)
    trained = [("text", "image"), ("text", "audio")]
    tone, label, text = headline_of(TrainingReport("t", rows, trained=trained))
    assert (tone, label) == ("warn", "Partly aligned")
    assert "standard errors: text → audio, audio → text." in text
    assert "The worst trained pair: " in text
    # What was not trained may fail; then it is no failure of the training.
    trained = [("text", "image")]
    assert headline_of(TrainingReport("t", rows, trained=trained))[1] == "Aligned"


def test_too_few_samples_prove_nothing() -> None:
    for count in (1, 2):
        rows = {name: torch.eye(4)[:count] for name in ("text", "image")}
        assert headline_of(TrainingReport("t", rows))[:2] == ("warn", "Not above chance")


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("names", [(), [f"name {i}" for i in range(200)]])
def test_broken_rows_are_counted_and_named_and_left_out(value: float, names, tmp_path) -> None:
    rows = embeddings(200, 12)
    whole = {name: one[7:].clone() for name, one in rows.items()}
    for name in ("image", "audio"):
        rows[name][:7] = value
    rows["text"][:7] = value  # so that the others are those of the smaller report
    report = TrainingReport("t", rows, labels=names)
    write_page(tmp_path / "run.html", report)
    assert Balanced((tmp_path / "run.html").read_text()).open == []
    tone, label, text = headline_of(report)
    assert (tone, label) == ("bad", "Broken")
    assert "Rows of text, image, audio are zero, NaN or infinite." in text
    assert "image: 7 of 200 rows have no direction" in text
    assert ("row 4 (name 4) and 2 more" if names else "row 4 and 2 more") in text
    pages = [page_of(one) for one in (report, TrainingReport("t", whole))]
    found = [
        re.findall(r"<td[^>]*>([^<]+)</td>", page.split("Similarity</h2>")[0]) for page in pages
    ]
    assert found[0] == found[1]  # retrieval and health of the others
    assert len(found[0]) > 60


def test_a_run_of_broken_rows_only_has_a_page() -> None:
    report = TrainingReport("t", {"x": torch.zeros(30, 2), "y": torch.full((30, 2), math.nan)})
    assert Balanced(page_of(report)).open == []
    tone, label, text = headline_of(report)
    assert (tone, label) == ("bad", "Broken")
    assert "x: 30 of 30 rows" in text
    assert "mean cosine, x" not in page_of(report)  # it has none
    # Absent rows are not looked at.
    rows = embeddings(40)
    rows["audio"][:9] = math.nan
    there = {name: torch.ones(40, dtype=torch.bool) for name in rows}
    there["audio"] = torch.arange(40) >= 9
    assert headline_of(TrainingReport("t", rows, presence=there))[1] == "Aligned"


# --- figures and tables ------------------------------------------------------------------------


def test_emergent_pairs_are_among_the_figures() -> None:
    rows = dict(zip("abcde", torch.randn(5, 60, 8), strict=True))
    for names, trained, most in (
        ("abc", [("a", "b"), ("a", "c")], 4),
        ("abcde", [("a", other) for other in "bcde"], 4),
    ):
        report = TrainingReport("t", {name: rows[name] for name in names}, trained=trained)
        tiles = page_of(report).split('class="figures"')[1].split("</div></div>")[0]
        shown = re.findall(r"<b>([^<]+)</b><span>recall@1 (\w) → (\w)(, emergent)?<", tiles)
        assert len(shown) == most + (2 if names == "abc" else most)
        found = retrieve_all_pairs(report.embeddings, trained=trained)
        for is_trained in (True, False):
            kept = [one for one in shown if (not one[3]) == is_trained]
            recalls = [one.found.recall[1] for one in found if one.is_trained == is_trained]
            for extreme in (max(recalls), min(recalls)):
                assert f"{extreme:.1%}" in [one[0] for one in kept]
        assert "mean cosine, a" in tiles


def test_an_untrained_model_has_no_emergent_pairs() -> None:
    text = Balanced(page_of(full_report(trained=()))).text
    assert "untrained" in text
    assert ", emergent" not in text


def test_shares_are_numbers_and_have_their_chance() -> None:
    table = page_of(full_report()).split("Retrieval between all modalities")[1].split("</table>")[0]
    heads = re.findall(r"<th([^>]*)>([^<]+)</th>", table)
    number = ' scope="col" class="number"'
    assert [head for head in heads if head[0] == number][:7] == [
        (number, name)
        for name in (
            "recall@1",
            "chance",
            "recall@5",
            "chance",
            "recall@10",
            "chance",
            "times chance",
        )
    ]
    cells = re.findall(r'<td class="number" data-sort="([^"]+)">([^<]+%)</td>', table)
    assert len(cells) == 6 * 6  # directions, and recall and chance at three k
    for key, shown in cells:
        assert float(shown[:-1]) / 100 == pytest.approx(float(key), abs=5e-4)
    health = page_of(full_report()).split("Spread of each modality")[1].split("</table>")[0]
    assert re.search(r'<td class="number">[\d.]+%</td>', health)


def test_long_labels_keep_their_beginning() -> None:
    names = [f"{i} LATIN SMALL LETTER TURNED DELTA WITH HOOK" for i in range(30)]
    page = page_of(full_report(labels=names))
    assert re.search(r"</title>0 LATIN SMALL[^<]*…</text>", page)
    assert "</title>…" not in page


def test_presence_by_name_does_not_depend_on_the_order() -> None:
    rows = embeddings(40)
    there = torch.rand(40, 3) < 0.6
    named = dict(zip(rows, there.unbind(1), strict=True))
    backwards = dict(reversed(named.items()))
    page = page_of(TrainingReport("t", rows, presence=there))
    assert page_of(TrainingReport("t", rows, presence=named)) == page
    assert page_of(TrainingReport("t", rows, presence=backwards)) == page


# --- sizes and errors --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 63, 400])
@pytest.mark.parametrize("names", [("text",), ("text", "image"), ("a", "b", "c", "d", "e")])
def test_sizes(count: int, names: tuple[str, ...]) -> None:
    rows = {name: torch.randn(count, 6) for name in names}
    page = page_of(TrainingReport("t", rows))
    assert Balanced(page).open == []
    assert len(page) < 2_500_000
    assert Balanced(page_of(TrainingReport("t", {"x": torch.randn(5, 1), "y": torch.ones(5, 1)})))


def test_presence_and_samples_that_share_nothing() -> None:
    rows = embeddings(20)
    presence = torch.rand(20, 3) < 0.5
    page = page_of(TrainingReport("t", rows, presence=presence))
    assert Balanced(page).open == []
    presence = torch.zeros(20, 3, dtype=torch.bool)
    presence[:10, 0], presence[10:, 1] = True, True
    page = Balanced(page_of(TrainingReport("t", rows, presence=presence))).text
    assert "No pair of modalities shares a sample." in page


def test_everything_is_escaped() -> None:
    rows = embeddings(6)
    report = TrainingReport(
        HOSTILE, {HOSTILE: rows["text"], "image": rows["image"]}, labels=[HOSTILE] * 6,
        steps=[0], losses={HOSTILE: [1.0]}, facts={HOSTILE: HOSTILE},
    )  # fmt: skip
    page = page_of(report)
    assert Balanced(page).tags.count("script") == 1
    assert "alert('x')" not in page


def test_the_same_run_gives_the_same_page() -> None:
    report = full_report()
    assert page_of(report) == page_of(dataclasses.replace(report))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a"]}, "1 labels for 30 samples"),
        ({"losses": {"all": (1.0,)}}, "'all' has 1 values for 3 steps"),
        ({"temperatures": {"t": (1.0,)}}, "'t' has 1 values"),
        ({"embeddings": {}}, "at least one modality"),
        ({"embeddings": {"a": torch.randn(3, 2), "b": torch.randn(2, 2)}}, "one row per sample"),
        ({"shown": 65}, "shown must be from 1 to 64"),
        ({"mapped": 0}, "mapped at least 1"),
        ({"groups": torch.zeros(29, dtype=torch.int64)}, r"groups must be int64 \[30\]"),
        ({"groups": torch.zeros(30)}, "got torch.float32"),
    ],
)
def test_a_wrong_report_writes_nothing(changes, message, tmp_path) -> None:
    path = tmp_path / "run.html"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        write_page(path, full_report(**{"trained": None, "zero_shot": {}, **changes}))
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.arange(30)}, "sequence of str.*Tensor.*are groups"),
        ({"labels": list(range(30))}, "list.*of other values"),
        ({"labels": "abc"}, "sequence of str"),
        ({"groups": [0] * 30}, "int64 tensor"),
        ({"embeddings": {"a": torch.ones(30, 2, dtype=torch.int64)}}, "floating-point"),
        ({"presence": [True] * 30}, "bool tensor, or a mapping"),
    ],
)
def test_a_wrong_type_is_one_clear_error(changes, message) -> None:
    with pytest.raises(TypeError, match=message):
        page_of(full_report(**{"trained": None, "zero_shot": {}, **changes}))


# --- the map -----------------------------------------------------------------------------------


@pytest.mark.parametrize("center", ["joint", "modality"])
@pytest.mark.parametrize(("n", "depth"), [(1, 2), (3, 8), (100, 5)])
def test_the_map_is_that_of_the_singular_vectors(n: int, depth: int, center: str) -> None:
    rows = {name: torch.randn(n, depth, dtype=torch.float64) + i for i, name in enumerate("xy")}
    found = principal_map(rows, center=center)
    units = {name: one / one.norm(dim=1, keepdim=True) for name, one in rows.items()}
    joint = torch.cat(list(units.values())).mean(0)
    centred = torch.cat([u - (joint if center == "joint" else u.mean(0)) for u in units.values()])
    _, singular, vectors = torch.linalg.svd(centred, full_matrices=True)
    spectrum = torch.zeros(depth, dtype=torch.float64)
    spectrum[: len(singular)] = singular.square()
    whole = spectrum.sum().item()
    for i in range(2):
        share = spectrum[i].item() / whole if whole > 1e-20 else 0.0
        if whole > 1e-20:
            assert found.explained[i] == pytest.approx(share, abs=1e-9)
        if spectrum[i] > 1e-9:
            axis = vectors[i] * vectors[i][vectors[i].abs().argmax()].sign()
            places = torch.cat([found.places[name][:, i] for name in "xy"])
            torch.testing.assert_close(places, centred @ axis, rtol=0, atol=1e-7)


def test_the_map_does_not_depend_on_the_signs_of_a_library() -> None:
    rows = {"x": torch.randn(50, 6, dtype=torch.float64)}
    found = principal_map(rows)
    again = principal_map({"x": rows["x"].clone()})
    assert torch.equal(found.places["x"], again.places["x"])
    for column in found.places["x"].T:
        axis = torch.linalg.lstsq(
            rows["x"] / rows["x"].norm(dim=1, keepdim=True) - _mean(rows["x"]), column
        ).solution
        assert axis[axis.abs().argmax()] > 0


def _mean(x: Tensor) -> Tensor:
    return (x / x.norm(dim=1, keepdim=True)).mean(0)


def test_bad_maps() -> None:
    x = torch.randn(4, 3)
    for rows, options, message in (
        ({"x": x}, {"components": 4}, "from 1 to 3"),
        ({"x": x}, {"center": "none"}, "center must be"),
        ({"x": x, "y": x[:, :2]}, {}, "one depth"),
        ({"x": x[:0]}, {}, "one depth"),
        ({}, {}, "one depth"),
    ):
        with pytest.raises(ValueError, match=message):
            principal_map(rows, **options)
