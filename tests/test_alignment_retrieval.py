"""Ranks, recall, zero-shot accuracy against brute force; ties and NaN count against the model."""

from __future__ import annotations

import itertools
import logging
import math
import statistics

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accel import alignment
from accel.alignment.evaluation import retrieval
from accel.alignment.evaluation.health import modality_health
from accel.alignment.evaluation.ranking import nearest, retrieval_ranks
from accel.alignment.evaluation.retrieval import (
    retrieve,
    retrieve_all_pairs,
    retrieve_both_ways,
)
from accel.alignment.evaluation.zero_shot import class_prototypes, zero_shot_accuracy


def unit(x: Tensor) -> Tensor:
    return x.double() / x.double().norm(dim=1, keepdim=True)


def brute(x: Tensor, y: Tensor, is_right: Tensor) -> list[int]:
    """The rank of each query by its definition, one pair at a time, in float64."""
    cosines = (unit(x) @ unit(y).T).tolist()
    ranks = []
    for row, right in zip(cosines, is_right.tolist(), strict=True):
        good = [value for value, one in zip(row, right, strict=True) if one]
        wrong = [value for value, one in zip(row, right, strict=True) if not one]
        ranks.append(1 + sum(value >= max(good) - 1e-9 for value in wrong) if good else 0)
    return ranks


@pytest.mark.parametrize(("n", "depth"), [(1, 3), (3, 2), (63, 16), (300, 5), (1000, 32)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ranks_are_those_of_brute_force(n: int, depth: int, dtype: torch.dtype, device) -> None:
    if dtype == torch.float64 and device.family != "cpu":
        pytest.skip("not every chip has float64")
    x = torch.randn(n, depth, dtype=dtype)
    y = x + 0.7 * torch.randn(n, depth, dtype=dtype)
    ranks = retrieval_ranks(x.to(device.torch_device), y.to(device.torch_device))
    truth = torch.tensor(brute(x, y, torch.eye(n, dtype=torch.bool)))
    assert ranks.dtype == torch.int64
    if dtype == torch.float64:
        assert ranks.tolist() == truth.tolist()
    else:  # two wrong targets may be as near as float32 can tell
        assert ((ranks - truth).abs() <= 1).all()
        assert (ranks == truth).double().mean() >= 0.99
    found = retrieve(x, y, ks=(1, 2, 10))
    if dtype == torch.float64:
        assert found.mean_rank == pytest.approx(statistics.mean(truth.tolist()), rel=1e-12)
        assert found.median_rank == statistics.median(truth.tolist())
        for k in (1, 2, 10):
            assert found.recall[k] == pytest.approx((truth <= k).double().mean().item(), rel=1e-12)
            assert found.chance[k] == pytest.approx(min(k, n) / n)
    assert (found.queries, found.targets, found.left_out) == (n, n, 0)


@pytest.mark.parametrize("chunk_size", [1, 63, 128, 129, 1000, 10**9])
def test_the_chunk_size_changes_no_bit(chunk_size: int, device) -> None:
    x, y = (torch.randn(500, 24).to(device.torch_device) for _ in range(2))
    x[250:] = x[250:256].repeat_interleave(42, 0)[:250]  # near ties, where a bit decides
    groups = torch.arange(500) % 90
    for options in ({}, {"query_groups": groups, "target_groups": groups.flip(0)}):
        whole = retrieval_ranks(x, y, **options)
        assert torch.equal(retrieval_ranks(x, y, chunk_size=chunk_size, **options), whole)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 8)
        return out


def test_no_matrix_of_all_pairs_is_made() -> None:
    """Neither here nor for the measures of health."""
    n, x = 1200, torch.randn(1200, 8)
    groups = torch.arange(n) // 3
    with Largest() as seen:
        retrieve_both_ways(x, x, x_groups=groups, y_groups=groups, chunk_size=128)
        modality_health(x, chunk_size=256)
        zero_shot_accuracy(x, x[:400], groups, chunk_size=128)
    assert seen.elements <= 128 * n < n * n / 8


def test_more_queries_than_targets_and_several_right_ones() -> None:
    x, y = torch.randn(70, 6, dtype=torch.float64), torch.randn(31, 6, dtype=torch.float64)
    own, other = torch.randint(-1, 9, (70,)), torch.randint(-1, 9, (31,))
    own[0], own[1] = 77, -1  # without a right target; in no group
    right = (own[:, None] == other[None]) & (own >= 0)[:, None]
    found = retrieve_both_ways(x, y, x_groups=own, y_groups=other)
    assert found.x_to_y.ranks.tolist() == brute(x, y, right)
    assert found.y_to_x.ranks.tolist() == brute(y, x, right.T)
    assert found.x_to_y.left_out == int((~right.any(1)).sum()) > 0
    assert found.x_to_y.queries == 70 - found.x_to_y.left_out
    assert (found.x_to_y.targets, found.y_to_x.targets) == (31, 70)
    counted = [rank for rank in brute(x, y, right) if rank]
    assert found.x_to_y.recall[5] == sum(rank <= 5 for rank in counted) / len(counted)
    assert found.x_to_y.median_rank == statistics.median(counted)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_chance_is_that_of_a_random_order(k: int) -> None:
    own, other = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 3, 3])
    found = retrieve(
        torch.randn(3, 4), torch.randn(7, 4), ks=(k,), query_groups=own, target_groups=other
    )
    orders = list(itertools.permutations(range(7)))
    of_first = sum(any(i < 3 for i in order[:k]) for order in orders) / len(orders)
    of_second = sum(any(i in (3, 4) for i in order[:k]) for order in orders) / len(orders)
    assert found.chance[k] == pytest.approx((of_first + of_second) / 2, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_collapsed_model_finds_nothing(dtype: torch.dtype, device) -> None:
    """Also one whose rows differ by rounding only."""
    if dtype == torch.float64 and device.family != "cpu":
        pytest.skip("not every chip has float64")
    point = torch.randn(1, 96).to(dtype)
    forms = [point.expand(300, 96)]
    if dtype != torch.bfloat16:  # in which rounding another length gives another direction
        noise = 0.3 * torch.finfo(dtype).eps * torch.randn(300, 96).to(dtype)
        forms += [point * torch.rand(300, 1).to(dtype), point + point * noise]
    for x in forms:
        on_chip = x.to(device.torch_device)
        found = retrieve(on_chip, on_chip)
        assert found.recall == {1: 0.0, 5: 0.0, 10: 0.0}
        assert found.mean_rank == found.median_rank == 300


def test_equal_targets_count_against_the_model() -> None:
    y = torch.randn(40, 8)
    y[7] = 3 * y[11]
    found = retrieval_ranks(y.clone(), y)
    assert found[7] == found[11] == 2
    assert (found == 1).sum() == 38
    groups = torch.arange(40)
    groups[7] = 11  # unless both are right
    assert (retrieval_ranks(y, y, query_groups=groups, target_groups=groups) == 1).all()


def test_nan_ranks_last_and_is_said(caplog) -> None:
    x, y = torch.randn(20, 4), torch.randn(20, 4)
    clean = retrieval_ranks(x, y)
    x[3, 1], y[5] = math.nan, math.inf
    with caplog.at_level(logging.WARNING, "accel"):
        ranks = retrieval_ranks(x, y)
    assert "1 of 20 queries and 1 of 20 targets are not finite" in caplog.text
    assert ranks[3] == ranks[5] == 20
    others = [i for i in range(20) if i not in (3, 5)]
    # The target that is not finite is before the right one of every other query.
    assert (ranks[others] >= clean[others]).all()
    known = retrieval_ranks(x, y, pool=torch.arange(20) != 5)
    assert torch.equal(ranks[others], known[others] + 1)
    whole = retrieve(torch.full((5, 3), math.nan), torch.randn(5, 3))
    assert whole.recall[1] == 0.0
    assert whole.mean_rank == 5
    groups = torch.tensor([0, 0, 1])  # one of two right targets is known
    found = retrieval_ranks(
        torch.tensor([[1.0, 0.0]]), torch.tensor([[math.nan, 0.0], [1.0, 0.1], [0.0, 1.0]]),
        query_groups=groups[:1], target_groups=groups,
    )  # fmt: skip
    assert found.tolist() == [1]


def test_zero_rows_are_near_to_nothing() -> None:
    x, y = torch.randn(9, 4), torch.randn(9, 4)
    x[2] = 0
    assert retrieval_ranks(x, y)[2] == 9


def test_a_pool_restricts_the_search() -> None:
    x, y = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    pool = torch.rand(50) < 0.4
    found = retrieve(x, y, pool=pool)
    right = torch.eye(50, dtype=torch.bool)[:, pool]
    assert found.ranks.tolist() == brute(x, y[pool], right)
    assert (found.targets, found.queries) == (int(pool.sum()), int(pool.sum()))
    assert found.left_out == 50 - found.queries
    assert found.chance[1] == pytest.approx(1 / found.targets)


def test_scales_and_layouts() -> None:
    x, y = torch.randn(80, 12), torch.randn(80, 12)
    whole = retrieval_ranks(x, y)
    lengths = torch.rand(80, 1).mul(40).exp2()
    assert torch.equal(retrieval_ranks(x * lengths * 1e20, y * 1e-20), whole)
    assert torch.equal(retrieval_ranks(x.T.contiguous().T, torch.cat([y, y], 1)[:, :12]), whole)
    for nothing in (
        retrieve(x[:4], y[:4], pool=torch.zeros(4, dtype=torch.bool)),
        retrieve(x[:4], y[:0], query_groups=torch.arange(4), target_groups=torch.arange(0)),
    ):
        assert (nothing.ranks.tolist(), nothing.left_out, nothing.targets) == ([0] * 4, 4, 0)
        assert math.isnan(nothing.recall[1])
    empty = retrieve(x[:0], y[:0])
    assert (empty.queries, empty.ranks.tolist()) == (0, [])
    assert math.isnan(empty.recall[1])
    assert math.isnan(empty.median_rank)


def test_all_pairs_with_presence_and_emergent_ones() -> None:
    names = ("text", "image", "audio")
    rows = {name: torch.randn(40, 5, dtype=torch.float64) for name in names}
    presence = torch.rand(40, 3) < 0.8
    found = retrieve_all_pairs(
        rows, trained=[("image", "text"), ("audio", "image")], presence=presence
    )
    assert [(one.query, one.target, one.is_trained) for one in found] == [
        ("text", "image", True),
        ("image", "text", True),
        ("image", "audio", True),
        ("audio", "image", True),
        ("text", "audio", False),
        ("audio", "text", False),
    ]
    samples = torch.arange(40)
    for one in found:
        here, there = presence[:, names.index(one.query)], presence[:, names.index(one.target)]
        right = samples[here][:, None] == samples[there][None]
        ranks = brute(rows[one.query][here], rows[one.target][there], right)
        assert one.found.ranks.tolist() == ranks
        assert one.found.left_out == int((here & ~there).sum())
    groups = torch.arange(40) // 2
    grouped = retrieve_all_pairs(rows, groups=groups)
    assert all(one.is_trained and one.found.queries == 40 for one in grouped)
    right = groups[:, None] == groups[None]
    assert grouped[0].found.ranks.tolist() == brute(rows["text"], rows["image"], right)
    with pytest.raises(ValueError, match="without embeddings: smell"):
        retrieve_all_pairs(rows, trained=[("text", "smell")])


def test_a_sample_in_no_group_is_its_own_target() -> None:
    rows = {"x": torch.eye(4), "y": torch.eye(4)}
    groups = torch.tensor([-1, -1, -1, 5])
    for one in retrieve_all_pairs(rows, groups=groups):
        assert (one.found.queries, one.found.left_out, one.found.recall[1]) == (4, 0, 1.0)
        assert one.found.chance[1] == pytest.approx(1 / 4)  # and no other's
    x, y = (torch.randn(60, 5, dtype=torch.float64) for _ in range(2))
    groups = torch.randint(-3, 6, (60,))
    groups[:2] = torch.tensor([torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min])
    presence = torch.rand(60, 2) < 0.8
    right = (groups[:, None] == groups[None]) & (groups >= 0) | torch.eye(60, dtype=torch.bool)
    right = right[presence[:, 0]][:, presence[:, 1]]
    there, back = retrieve_all_pairs({"x": x, "y": y}, groups=groups, presence=presence)
    x, y = x[presence[:, 0]], y[presence[:, 1]]
    assert there.found.ranks.tolist() == brute(x, y, right)
    assert back.found.ranks.tolist() == brute(y, x, right.T)
    for wrong in (groups[:59], groups.double()):
        with pytest.raises(ValueError, match=r"groups must be int64 \[60\]"):
            retrieve_all_pairs({"x": torch.randn(60, 2), "y": torch.randn(60, 2)}, groups=wrong)


def test_each_name_has_one_home() -> None:
    assert alignment.nearest is nearest
    assert "nearest" not in vars(retrieval)


def test_nearest_orders_ties_by_place_and_nan_last() -> None:
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.0], [math.nan, 0.0], [2.0, 0.0], [1.0, 1.0]])
    cosines, order = nearest(torch.tensor([[1.0, 0.0]]), targets, 9)
    assert order.tolist() == [[1, 3, 4, 0, 2]]
    assert cosines[0, :2].tolist() == [1.0, 1.0]
    assert nearest(torch.randn(3, 2), targets, 2)[1].shape == (3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.randn(4, 3)}, "4 queries and 5 targets"),
        ({"queries": torch.randn(5, 2)}, "one depth"),
        ({"queries": torch.randn(5)}, "one depth"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"ks": ()}, "ks must be positive"),
        ({"ks": (0,)}, "ks must be positive"),
        ({"query_groups": torch.arange(5)}, "for both"),
        (
            {"query_groups": torch.arange(5), "target_groups": torch.arange(4)},
            r"target_groups must be torch.int64 \[5\]",
        ),
        (
            {"query_groups": torch.rand(5), "target_groups": torch.arange(5)},
            "query_groups must be torch.int64",
        ),
        ({"pool": torch.arange(5)}, "pool must be torch.bool"),
    ],
)
def test_bad_arguments(change, message) -> None:
    given = {"queries": torch.randn(5, 3), "targets": torch.randn(5, 3), **change}
    with pytest.raises(ValueError, match=message):
        retrieve(**given)


def test_integers_are_no_embeddings() -> None:
    with pytest.raises(TypeError, match="floating-point"):
        retrieve(torch.ones(3, 2, dtype=torch.int64), torch.ones(3, 2))


# --- zero-shot ---------------------------------------------------------------------------------


def test_prototypes_are_means_of_directions() -> None:
    prompts = torch.randn(10, 4, dtype=torch.float64) * torch.rand(10, 1).mul(9).exp()
    labels = torch.tensor([0, 2, 1, 1, 2, 0, 0, 2, 1, 0])
    found = class_prototypes(prompts, labels)
    for label in range(3):
        mean = unit(prompts[labels == label]).mean(0)
        torch.testing.assert_close(found[label], mean / mean.norm())
    for wrong, message in (
        ((prompts, labels, 4), r"classes without a prompt: \[3\]"),
        ((prompts, labels, 2), "from 0 to 1, got 0 to 2"),
        ((prompts, labels - 1), "got -1"),
        ((prompts, labels[:3]), r"int64 \[10\]"),
        ((torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, dtype=torch.int64)), "direction"),
    ):
        with pytest.raises(ValueError, match=message):
            class_prototypes(*wrong)


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (63, 7), (1000, 11)])
def test_accuracy_is_that_of_brute_force(n: int, classes: int) -> None:
    x = torch.randn(n, 6, dtype=torch.float64)
    prototypes = torch.randn(classes, 6, dtype=torch.float64)
    labels = torch.randint(0, classes - 1, (n,))  # the last class does not occur
    cosines = unit(x) @ unit(prototypes).T
    found = zero_shot_accuracy(x, prototypes, labels, ks=(1, 3), chunk_size=100)
    for k in (1, 3):
        best = cosines.topk(min(k, classes), 1).indices
        right = (best == labels[:, None]).any(1).double()
        assert found.accuracy[k] == pytest.approx(right.mean().item(), rel=1e-12)
        each = [right[labels == label].mean().item() for label in labels.unique().tolist()]
        assert found.per_class[k] == pytest.approx(statistics.mean(each), rel=1e-12)
        assert found.chance[k] == min(k, classes) / classes
    assert (found.samples, found.classes) == (n, classes)


def test_equal_prototypes_classify_nothing() -> None:
    x, labels = torch.randn(30, 5), torch.arange(30) % 3
    found = zero_shot_accuracy(x, torch.ones(3, 5), labels, ks=(1, 2, 3))
    assert found.accuracy == {1: 0.0, 2: 0.0, 3: 1.0}
    with pytest.raises(ValueError, match="from 0 to 1"):
        zero_shot_accuracy(x, torch.randn(2, 5), labels)
    with pytest.raises(ValueError, match="ks must be positive"):
        zero_shot_accuracy(x, torch.randn(3, 5), labels, ks=(1.0,))
    assert math.isnan(zero_shot_accuracy(x[:0], torch.randn(3, 5), labels[:0]).accuracy[1])
