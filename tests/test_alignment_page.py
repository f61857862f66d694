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
from accel.alignment.evaluation.projection_map import principal_map
from accel.alignment.evaluation.retrieval import retrieve_all_pairs
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
        "Training", "Health during training", "Retrieval", "Zero-shot classification",
        "Similarity", "Map", "Nearest neighbours", "This run", "text against image",
        "Modality gap", "Effective rank", "text → audio", "emergent",
    ):  # fmt: skip
        assert heading in parsed.text, heading
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]


def test_the_figures_are_those_measured() -> None:
    report = full_report(embeddings=embeddings(noise=1.0))
    page = Balanced(page_of(report)).text
    found = retrieve_all_pairs(report.embeddings, trained=report.trained)
    for one in found:
        assert f"{one.found.recall[1]:.1%}" in page
    best = max(found, key=lambda one: one.found.recall[1])
    assert f"{best.query} finds its {best.target} first in {best.found.recall[1]:.1%}" in page
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


def test_a_collapse_is_the_headline() -> None:
    event = Collapse(40, "image", "spread", 1e-4, 0.05, 0.7)
    page = page_of(full_report(events=[event]))
    assert 'class="headline bad"' in page
    assert "The monitor warned of image." in page
    assert "mean cosine 0.9999" in page
    assert 'class="headline good"' in page_of(full_report())


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
        ({"embeddings": {"a": torch.zeros(30, 2), "b": torch.randn(30, 2)}}, "no direction"),
    ],
)
def test_a_wrong_report_writes_nothing(changes, message, tmp_path) -> None:
    path = tmp_path / "run.html"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        write_page(path, full_report(**{"trained": None, "zero_shot": {}, **changes}))
    assert path.read_text() == "before"


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
