"""Measures of spread against their plain formulas, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from accel.alignment.evaluation.health import (
    alignment_distance,
    broken_rows,
    effective_rank,
    mean_cosine,
    measure_health,
    modality_gap,
    modality_health,
    uniformity,
)

SIZES = [(2, 1), (3, 5), (63, 7), (64, 64), (200, 33), (1000, 16), (10, 300)]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def plain(x: Tensor) -> dict[str, float]:
    """The formulas, with the whole matrix of pairs, in float64."""
    u = unit(x.double())
    n = len(u)
    above = torch.ones(n, n, dtype=torch.bool).triu(1)
    cosines = (u @ u.T)[above]
    distances = (u[:, None] - u[None, :]).square().sum(-1)[above]
    singular = torch.linalg.svdvals(u - u.mean(0))
    shares = singular[singular > 1e-7] / singular[singular > 1e-7].sum()
    return {
        "mean_cosine": cosines.mean().item(),
        "uniformity": (-2 * distances).exp().mean().log().item(),
        "effective_rank": torch.exp(-(shares * shares.log()).sum()).item(),
    }


@pytest.mark.parametrize(("n", "depth"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_measures_are_their_formulas(n: int, depth: int, dtype: torch.dtype, device) -> None:
    if dtype == torch.float64 and device.family != "cpu":
        pytest.skip("not every chip has float64")
    # Rows of many lengths, about a point that is not the origin.
    x = ((torch.randn(n, depth) + 0.5) * torch.rand(n, 1).mul(8).exp2()).to(dtype)
    on_chip, truth = x.to(device.torch_device), plain(x)
    allowed = 1e-11 if dtype == torch.float64 else 3e-6
    found = modality_health(on_chip, chunk_size=50)
    assert found.rows == n
    assert found.mean_cosine == pytest.approx(truth["mean_cosine"], abs=allowed)
    assert found.uniformity == pytest.approx(truth["uniformity"], abs=allowed)
    if depth > 1:
        rank = truth["effective_rank"]
        assert found.effective_rank == pytest.approx(rank, rel=1e-5)
    assert mean_cosine(on_chip) == found.mean_cosine
    assert effective_rank(on_chip) == found.effective_rank


@pytest.mark.parametrize("chunk_size", [1, 7, 22, 23, 1000])
def test_chunks_change_nothing(chunk_size: int, device) -> None:
    x = torch.randn(23, 9).to(device.torch_device)
    assert uniformity(x, chunk_size=chunk_size) == pytest.approx(uniformity(x), abs=1e-6)
    assert uniformity(x, t=50.0, chunk_size=chunk_size) == pytest.approx(
        uniformity(x, t=50.0), rel=1e-5
    )


def test_a_large_t_does_not_underflow() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(x, t=500.0) == pytest.approx(-2000.0)


def test_known_values() -> None:
    one_point = torch.ones(9, 4)
    assert mean_cosine(one_point) == pytest.approx(1.0, abs=1e-7)
    assert uniformity(one_point) == pytest.approx(0.0, abs=1e-6)
    assert effective_rank(one_point) == 0.0
    assert effective_rank(one_point, centered=False) == pytest.approx(1.0)
    assert modality_health(one_point).ties == 1.0
    axes = torch.eye(8)
    assert mean_cosine(axes) == 0.0
    assert effective_rank(axes, centered=False) == pytest.approx(8.0)
    assert effective_rank(axes) == pytest.approx(7.0)
    assert modality_health(axes).ties == 0.0
    assert alignment_distance(axes, axes) == 0.0
    assert alignment_distance(axes, -axes) == pytest.approx(4.0)
    assert modality_gap(one_point, -3 * one_point) == pytest.approx(2.0)


def test_ties_are_pairs_that_rounding_could_swap() -> None:
    x = torch.randn(6, 32, dtype=torch.float64).float()
    x[1], x[2] = x[0] * 3.7, x[0] + 1e-9 * torch.randn(32)
    assert modality_health(x).ties == pytest.approx(3 / 15)


def test_pairs_against_formulas_with_presence() -> None:
    x, y, z = (torch.randn(40, 6, dtype=torch.float64) + shift for shift in (0.0, 0.5, 1.0))
    presence = torch.rand(40, 3) < 0.7
    found = measure_health({"x": x, "y": y, "z": z}, presence=presence, chunk_size=16)
    assert set(found.pairs) == {"x-y", "x-z", "y-z"}
    for (i, (a, p)), (j, (b, q)) in itertools.combinations(
        enumerate((("x", x), ("y", y), ("z", z))), 2
    ):
        both = presence[:, i] & presence[:, j]
        one = found.pairs[f"{a}-{b}"]
        truth = (unit(p[both]) - unit(q[both])).square().sum(1).mean().item()
        assert one.alignment == pytest.approx(truth, rel=1e-12)
        means = unit(p[presence[:, i]]).mean(0), unit(q[presence[:, j]]).mean(0)
        assert one.gap == pytest.approx((means[0] - means[1]).norm().item(), rel=1e-12)
        assert one.rows == int(both.sum())
    assert found.modalities["y"] == modality_health(y[presence[:, 1]], chunk_size=16)
    only = measure_health({"x": x, "y": y, "z": z}, pairs=[("z", "x")])
    assert set(only.pairs) == {"z-x"}


def test_presence_by_name() -> None:
    rows = {name: torch.randn(20, 4) for name in "xyz"}
    presence = torch.rand(20, 3) < 0.7
    named = {name: presence[:, i] for i, name in reversed(tuple(enumerate("xyz")))}
    assert measure_health(rows, presence=named) == measure_health(rows, presence=presence)
    for wrong, message in (
        ({"x": named["x"]}, "must name each modality, x, y, z; it names x"),
        ({**named, "w": named["x"]}, "it names z, y, x, w"),
        ({**named, "y": named["y"][:3]}, r"'y' must be bool \[20\], got torch.bool \[3\]"),
        ({**named, "y": named["y"].float()}, "got torch.float32"),
        ({**named, "y": [True] * 20}, "got list"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_health(rows, presence=wrong)
    with pytest.raises(TypeError, match="a mapping from modality to one, got list"):
        measure_health(rows, presence=[True] * 20)


def test_rows_without_a_direction_can_be_left_out() -> None:
    rows = {name: torch.randn(20, 4) for name in "xy"}
    rows["x"][[2, 5]], rows["y"][5] = math.nan, 0.0
    with pytest.raises(ValueError, match="2 of 20 rows of x"):
        measure_health(rows)
    lost = broken_rows(rows)
    assert {name: of.nonzero().flatten().tolist() for name, of in lost.items()} == {
        "x": [2, 5], "y": [5]
    }  # fmt: skip
    left = {name: ~of for name, of in lost.items()}
    assert measure_health(rows, broken="leave_out") == measure_health(rows, presence=left)
    # An absent row is not broken.
    absent = {"x": torch.arange(20) != 2, "y": torch.arange(20) < 5}
    lost = broken_rows(rows, absent)
    assert lost["x"].nonzero().flatten().tolist() == [5]
    assert not lost["y"].any()
    both = {name: of & ~lost[name] for name, of in absent.items()}
    found = measure_health(rows, presence=absent, broken="leave_out")
    assert found == measure_health(rows, presence=both)
    with pytest.raises(ValueError, match="broken must be"):
        measure_health(rows, broken="ignore")


def test_extremes_and_layouts() -> None:
    x = torch.randn(30, 12)
    for scale in (1e-42, 1e-30, 1e30, 3e37):
        assert mean_cosine(x * scale) == pytest.approx(mean_cosine(x), abs=2e-2)
    wide = torch.randn(12, 60)[:, ::2]
    assert uniformity(wide.T) == pytest.approx(plain(wide.T)["uniformity"], abs=1e-6)
    for few in (0, 1):
        found = modality_health(torch.randn(few, 3))
        assert found.rows == few
        assert all(map(math.isnan, found[1:]))
    assert math.isnan(alignment_distance(x[:0], x[:0]))
    assert math.isnan(modality_gap(x[:0], x))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.tensor([[1.0, math.nan], [1.0, 0.0]]), ValueError, "1 of 2 rows of embeddings"),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0]]), ValueError, "zero, NaN or infinite"),
        (torch.ones(3), ValueError, r"\[N, D\]"),
        (torch.ones(3, 0), ValueError, "D at least 1"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "floating-point"),
        ([[1.0]], TypeError, "list"),
    ],
)
def test_bad_rows_are_one_clear_error(value, error, message) -> None:
    for measure in (mean_cosine, uniformity, effective_rank, modality_health):
        with pytest.raises(error, match=message):
            measure(value)


def test_bad_arguments() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="t must be above 0"):
        uniformity(x, t=0.0)
    with pytest.raises(ValueError, match="chunk_size"):
        uniformity(x, chunk_size=0)
    with pytest.raises(ValueError, match="partners row by row"):
        alignment_distance(x, x[:2])
    with pytest.raises(ValueError, match="one depth"):
        modality_gap(x, x[:, :2])
    with pytest.raises(ValueError, match="one row per sample"):
        measure_health({"a": x, "b": x[:2]})
    with pytest.raises(ValueError, match=r"presence must be bool \[4, 2\]"):
        measure_health({"a": x, "b": x}, presence=torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no modality 'c'"):
        measure_health({"a": x, "b": x}, pairs=[("a", "c")])
