"""The collapse monitor against losses that collapse embeddings and losses that do not."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from accel.alignment.evaluation.collapse import Collapse, CollapseError, CollapseLimits
from accel.alignment.evaluation.health import alignment_distance, mean_cosine
from accel.alignment.evaluation.monitor import CollapseMonitor


def encoder(width: int, layers: int) -> nn.Module:
    sizes = [width, *[64] * layers]
    parts = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(64, 32))


def all_ones(x: Tensor, y: Tensor) -> Tensor:
    """The published loss: partners should have a cosine of 1, and nothing else is asked."""
    return (1 - (x * y).sum(1)).mean()


def info_nce(x: Tensor, y: Tensor) -> Tensor:
    logits, own = x @ y.T / 0.07, torch.arange(len(x))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip(x: Tensor, y: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(x)) - 1
    return -F.logsigmoid(signs * (10 * x @ y.T - 10)).sum() / len(x)


def train(
    loss_of, seed: int, *, layers: int, offset: float = 0.0, steps: int = 100, rate: float = 1e-3,
    shared: str = "nothing",
) -> tuple[CollapseMonitor, list[float], float]:  # fmt: skip
    """Two small encoders; inputs far from the origin (`offset`) make their first cones narrow."""
    torch.manual_seed(seed)
    encoders = [encoder(20, layers), encoder(20, layers)]
    if shared == "encoder":
        encoders[1] = encoders[0]
    if shared == "head":
        encoders[1] = nn.Sequential(nn.Linear(20, 64), *encoders[0][1:])
    maps = torch.randn(2, 8, 20)
    maps[1] = maps[0] if shared == "encoder" else maps[1]
    unique = {id(p): p for one in encoders for p in one.parameters()}
    optimizer = torch.optim.AdamW(unique.values(), lr=rate)
    monitor = CollapseMonitor()
    losses, first = [], math.nan
    for step in range(steps):
        latent = torch.randn(32, 8)
        inputs = [latent @ one + 0.3 * torch.randn(32, 20) for one in maps]
        inputs = [one.abs() + offset if offset else one for one in inputs]
        x, y = (F.normalize(e(one), dim=1) for e, one in zip(encoders, inputs, strict=True))
        loss = loss_of(x, y)
        monitor.update({"text": x, "image": y})
        first = mean_cosine(x.detach()) if step == 0 else first
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return monitor, losses, first


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shared", ["nothing", "head"])
@pytest.mark.parametrize(("layers", "offset"), [(2, 0.0), (2, 5.0), (4, 0.0)])
def test_the_all_ones_loss_is_found_within_100_steps(seed, shared, layers, offset, caplog) -> None:
    with caplog.at_level(logging.WARNING, "accel"):
        monitor, losses, _ = train(all_ones, seed, layers=layers, offset=offset, shared=shared)
    assert monitor.events
    assert all(event.step < 100 for event in monitor.events)
    assert losses[-1] < min(0.05, losses[0] / 2)  # by the curve, all is well
    said = [record.message for record in caplog.records if record.name == "accel"]
    assert len(said) == len({event.modality for event in monitor.events})
    assert "collapsing to one point" in said[0]
    for part in ("mean cosine 0.9", "below the limit", "needs negatives"):
        assert part in said[0]
    assert any(f"{name!r}" in said[0] for name in ("text", "image"))


@pytest.mark.parametrize(
    ("shared", "seed"), [("nothing", 0), ("nothing", 1), ("head", 2), ("encoder", 3)]
)
@pytest.mark.parametrize("loss_of", [info_nce, siglip])
@pytest.mark.parametrize(("layers", "offset"), [(2, 0.0), (2, 5.0), (4, 0.0)])
def test_contrastive_training_is_never_called_a_collapse(
    shared, seed, loss_of, layers, offset
) -> None:
    monitor, _, first = train(loss_of, seed, layers=layers, offset=offset, shared=shared)
    assert monitor.events == []
    if offset:
        assert first > 0.8  # which a limit on the mean cosine alone would take for a collapse


def rows(spread: float, n: int = 64, depth: int = 16, towards: int = 0) -> Tensor:
    center = torch.zeros(depth)
    center[towards] = 1.0
    return center + spread * torch.randn(n, depth)


def feed(monitor: CollapseMonitor, *batches: dict[str, Tensor]) -> list[Collapse]:
    return [event for batch in batches for event in monitor.update(batch)]


def test_one_modality_alone_and_recovery() -> None:
    monitor = CollapseMonitor(interval=1)
    wide, narrow = {"x": rows(1.0)}, {"x": rows(0.01)}
    assert feed(monitor, wide, narrow, narrow) == []  # patience
    (event,) = feed(monitor, narrow)
    assert (event.rule, event.modality, event.step) == ("spread", "x", 3)
    assert event.value < event.limit <= 0.05 < event.peak
    assert feed(monitor, *[narrow] * 20) == []  # said once
    assert feed(monitor, wide, narrow, narrow) == []
    assert len(feed(monitor, narrow)) == 1  # and again if it happens again
    assert len(monitor.events) == 2


def test_modalities_that_keep_apart_have_not_collapsed_together() -> None:
    monitor = CollapseMonitor(interval=1)
    apart = {"x": rows(0.01), "y": rows(0.01, towards=1)}
    assert feed(monitor, {"x": rows(1.0), "y": rows(1.0)}, *[apart] * 10) == []
    together = {"x": rows(0.01), "y": rows(0.01)}
    found = feed(monitor, *[together] * 3)
    assert {event.modality for event in found} == {"x", "y"}


def test_a_line_and_a_model_that_never_moves() -> None:
    monitor = CollapseMonitor(interval=1)
    line = torch.randn(64, 1).sign() * torch.eye(16)[:1] + 1e-3 * torch.randn(64, 16)
    found = feed(monitor, {"x": rows(1.0)}, *[{"x": line}] * 3)
    assert [event.rule for event in found] == ["rank"]
    assert "onto a line: effective rank 1." in str(found[0])
    off = CollapseMonitor(interval=1, limits=CollapseLimits(rank=0.0))
    assert feed(off, {"x": rows(1.0)}, *[{"x": line}] * 9) == []

    limits = CollapseLimits(stuck_steps=5)
    monitor = CollapseMonitor(interval=1, limits=limits)
    found = feed(monitor, *[{"x": rows(1e-3)}] * 12)
    assert [(event.rule, event.step) for event in found] == [("stuck", 7)]
    assert "still one point" in str(found[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_rows_without_direction_are_said_at_once(value: float) -> None:
    monitor = CollapseMonitor(interval=1)
    bad = rows(1.0)
    bad[3] = value
    (event,) = feed(monitor, {"x": bad})
    assert (event.rule, event.value) == ("finite", 1.0)
    assert "1 rows without a direction" in str(event)
    assert feed(monitor, {"x": bad}) == []
    assert monitor.history[-1].modalities["x"].rows == 63
    everything = CollapseMonitor(interval=1)
    assert len(feed(everything, {"x": torch.full((4, 3), value)})) == 1


def test_it_raises_if_asked() -> None:
    monitor = CollapseMonitor(interval=1, raise_on_collapse=True)
    feed(monitor, {"x": rows(1.0)}, *[{"x": rows(0.01)}] * 2)
    with pytest.raises(CollapseError, match="mean cosine"):
        monitor.update({"x": rows(0.01)})
    assert len(monitor.events) == 1
    monitor.raise_on_collapse = False
    assert monitor.update({"x": rows(0.01)}) == []


def test_a_resumed_run_reads_the_same(tmp_path) -> None:
    batches = [{"x": rows(0.3**i), "y": rows(0.3**i)} for i in range(9)]
    whole = CollapseMonitor(interval=2)
    feed(whole, *batches)
    begun = CollapseMonitor(interval=2)
    feed(begun, *batches[:4])
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    resumed = CollapseMonitor(interval=2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    feed(resumed, *batches[4:])
    assert resumed.history == whole.history
    assert resumed.events == whole.events
    assert whole.events
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    with pytest.raises(ValueError, match="lacks"):
        resumed.load_state_dict({"step": 1})


def test_partners_by_presence() -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    presence = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1], [0, 0]], dtype=torch.bool)
    both = presence.all(1)
    truth = alignment_distance(x[both], y[both])
    present = {"x": x[presence[:, 0]], "y": y[presence[:, 1]]}
    for given in ({"x": x, "y": y}, present, {"x": x, "y": present["y"]}):
        monitor = CollapseMonitor()
        monitor.update(given, presence=presence)
        (reading,) = monitor.history
        assert reading.alignment["x-y"] == pytest.approx(truth, rel=1e-6)
        assert [one.rows for one in reading.modalities.values()] == [4, 4]
    monitor = CollapseMonitor()
    monitor.update({"x": x, "y": y[:3]})  # whose partners nobody knows
    assert math.isnan(monitor.history[0].alignment["x-y"])
    assert monitor.history[0].gap["x-y"] > 0
    monitor = CollapseMonitor()
    monitor.update({"x": x, "y": torch.randn(6, 7)})  # in no common space
    assert monitor.history[0].gap == {}
    for wrong, message in (
        (presence[:, :1], r"bool \[B, 2\]"),
        (presence.long(), "int64"),
        (presence[:4], "'x' has 6 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            CollapseMonitor().update({"x": x, "y": y}, presence=wrong)


@pytest.mark.parametrize("holes", ["first", "even", "most"])
def test_the_first_rows_that_are_present_are_read(holes: str) -> None:
    """Where the first rows of a modality are absent, the ones behind them are read."""
    presence, numbers = torch.ones(256, 2, dtype=torch.bool), torch.arange(256)
    there = {"first": numbers >= 64, "even": numbers % 2 == 1, "most": numbers >= 250}[holes]
    presence[:, 1] = there
    monitor = CollapseMonitor(interval=10, rows=256)

    def batch(spread: float) -> dict[str, Tensor]:
        return {"a": rows(1.0, n=256), "b": rows(spread, n=256, towards=1)}

    found = []
    for step in range(51):
        given = batch(1.0 if step == 0 else 1e-2)
        given["b"][~there] = math.nan  # whatever an encoder makes of what is absent
        found += monitor.update(given, presence=presence)
        if step == 1:
            kept = monitor._kept[0]
            first = there.nonzero().flatten()[:26]
            assert torch.equal(kept.samples["b"], first)
            assert torch.equal(kept.rows["b"], given["b"][first])
            assert torch.equal(kept.rows["a"], given["a"][:26])
    read = [reading.modalities["b"].rows for reading in monitor.history]
    share = min(26, int(there.sum()))
    assert read == [int(there.sum()), *[10 * share] * 5]
    assert found == []  # they keep apart: no collapse

    alone = CollapseMonitor(limits=CollapseLimits(apart=1e9))
    for step in range(51):
        alone.update(batch(1.0 if step == 0 else 1e-2), presence=presence)
    assert [(event.rule, event.modality) for event in alone.events] == [("spread", "b")]


def test_a_modality_that_is_absent_altogether() -> None:
    monitor, presence = CollapseMonitor(interval=1), torch.ones(8, 2, dtype=torch.bool)
    presence[:, 1] = False
    for batch in ({"a": rows(1.0, 8), "b": rows(1.0, 8)}, {"a": rows(1.0, 8), "b": rows(1.0, 0)}):
        assert monitor.update(batch, presence=presence) == []
        assert monitor.history[-1].modalities["b"].rows == 0
        assert math.isnan(monitor.history[-1].alignment["a-b"])


class Seen(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class SeenOfEmbeddings(Seen):
    """Only those that take embeddings, which are the only floating-point tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = tree_leaves((args, kwargs))
        if any(isinstance(one, Tensor) and one.is_floating_point() for one in given):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_between_readings_no_device_is_waited_for(device) -> None:
    """Only views and copies of a few rows: nothing is read, compared or moved."""
    monitor = CollapseMonitor(interval=10)
    batch = {name: torch.randn(512, 32).to(device.torch_device) for name in ("x", "y")}
    monitor.update(batch)
    with Seen() as seen:
        for _ in range(9):
            monitor.update(batch)
    assert seen.names <= {"detach", "slice", "clone", "arange", "alias"}, seen.names
    presence = torch.rand(512, 2) < 0.5
    other = CollapseMonitor(interval=10)
    other.update(batch, presence=presence)
    with SeenOfEmbeddings() as of_embeddings:
        for _ in range(9):
            other.update(batch, presence=presence)
    assert of_embeddings.names <= {"detach", "slice", "cat", "alias"}, of_embeddings.names
    assert len(monitor.history) == 1
    kept = sum(step.rows["x"].shape[0] for step in monitor._kept)
    assert kept <= 256
    monitor.update(batch)
    assert monitor._kept == []
    assert [reading.step for reading in monitor.history] == [0, 10]


def test_history_stays_short(monkeypatch) -> None:
    monkeypatch.setattr("accel.alignment.evaluation.monitor._HISTORY", 40)
    monitor = CollapseMonitor(interval=1, rows=4)
    for _ in range(95):
        monitor.update({"x": torch.randn(4, 3)})
    steps = [reading.step for reading in monitor.history]
    assert 20 <= len(steps) <= 40
    assert {b - a for a, b in itertools.pairwise(steps)} == {4}


def test_bad_settings() -> None:
    for setting in ({"interval": 0}, {"rows": 1}):
        with pytest.raises(ValueError, match="interval must be at least 1 and rows"):
            CollapseMonitor(**setting)
    for wrong in ({"spread": -1.0}, {"fall": 1.0}, {"patience": 0}, {"rank": math.nan}):
        with pytest.raises(ValueError, match="limits must be"):
            CollapseLimits(**wrong)
