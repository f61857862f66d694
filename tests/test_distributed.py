"""Collectives with gradients, in two and four processes on gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import distributed_worker as worker
from tests.distributed_worker import tensor_of, weight_of
from tests.process_groups import launched_well

WORKER = Path(worker.__file__)
SCENARIOS = (
    "shift", "not_contiguous", "exchange", "exchange_nothing", "gather",
    "gather_twice_differentiable", "dtypes", "sums_in_the_order_of_ranks", "mistakes",
)  # fmt: skip


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def out(ranks: int, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp(f"{ranks}-ranks")
    launched_well(WORKER, ranks, str(directory), *SCENARIOS)
    return directory


def said(out: Path, name: str, ranks: int) -> list[Any]:
    return [torch.load(out / f"{name}-{rank}.pt") for rank in range(ranks)]


def test_a_shift_brings_the_tensors_of_the_rank_behind_and_takes_gradients_back(
    out: Path, ranks: int
) -> None:
    for rank, found in enumerate(said(out, "shift", ranks)):
        assert len(found) == 2 * ranks + 1
        for distance, (arrived, grads) in found.items():
            before, after = (rank - distance) % ranks, (rank + distance) % ranks
            assert torch.equal(arrived[0], tensor_of(before))
            assert torch.equal(arrived[1], tensor_of(before, length=2))
            assert torch.equal(grads[0], weight_of(after, rank, torch.Size((rank, 3))))
            assert torch.equal(grads[1], weight_of(after, rank, torch.Size((2, 3))))


def test_what_is_not_contiguous_arrives_in_order(out: Path, ranks: int) -> None:
    for rank, arrived in enumerate(said(out, "not_contiguous", ranks)):
        assert torch.equal(arrived, tensor_of((rank - 1) % ranks, length=4).t())


def test_an_exchange_of_unequal_and_empty_parts(out: Path, ranks: int) -> None:
    for rank, (arrived, grads) in enumerate(said(out, "exchange", ranks)):
        for other in range(ranks):
            assert torch.equal(arrived[other], tensor_of(other, length=other + rank))
            shape = torch.Size((rank + other, 3))
            assert torch.equal(grads[other], weight_of(other, rank, shape))
    assert all(
        part.shape == (0, 3) for parts in said(out, "exchange_nothing", ranks) for part in parts
    )


def test_a_gather_of_unequal_and_empty_parts(out: Path, ranks: int) -> None:
    for rank, (shapes, arrived, grad) in enumerate(said(out, "gather", ranks)):
        assert shapes == [(one, 3) for one in range(ranks)]
        for other in range(ranks):
            assert torch.equal(arrived[other], tensor_of(other))
        total = torch.zeros(rank, 3, dtype=torch.float64)
        for receiver in range(ranks):
            total = total + weight_of(receiver, rank, torch.Size((rank, 3)))
        assert torch.equal(grad, total)


def test_gradients_are_of_the_sum_of_all_ranks_losses(out: Path, ranks: int) -> None:
    for rank, (first, second) in enumerate(said(out, "gather_twice_differentiable", ranks)):
        x = tensor_of(rank, length=2)
        torch.testing.assert_close(first, ranks * 3 * x.square())
        # Of the sum over ranks of (3 n x²)²: only this rank's depends on x, through n losses each.
        torch.testing.assert_close(second, 2 * (3 * ranks) ** 2 * 2 * x.pow(3))


def test_every_dtype_travels(out: Path, ranks: int) -> None:
    for rank, found in enumerate(said(out, "dtypes", ranks)):
        assert tuple(found) == worker.DTYPES
        for dtype, (shifted, exchanged, gathered) in found.items():
            all_of_them = [tensor_of(one, length=4).to(dtype) for one in range(ranks)]
            assert torch.equal(shifted, all_of_them[(rank - 1) % ranks])
            assert torch.equal(gathered, torch.cat(all_of_them))
            parts = [one.split(4 // ranks)[rank] for one in all_of_them]
            assert torch.equal(exchanged, torch.cat(parts))


def test_sums_are_taken_wide(out: Path, ranks: int) -> None:
    """In bfloat16, 1 + 2^-8 is 1 again, however often; in float32 four ranks make 1 + 2^-6."""
    exact = torch.tensor([1.0 + (ranks - 1) * 2.0**-8]).to(torch.bfloat16)
    assert all(torch.equal(grad, exact) for grad in said(out, "sums_in_the_order_of_ranks", ranks))
    if ranks == 4:
        assert exact > 1.0


def test_mistakes(out: Path, ranks: int) -> None:
    for rank, found in enumerate(said(out, "mistakes", ranks)):
        assert found == {
            "gradient": "RuntimeError: start_shift has no gradient: use ring_shift, or "
            "torch.no_grad()",
            "count": f"ValueError: all_to_all needs one tensor for each of {ranks} ranks, not 1",
            "shapes": f"ValueError: all_gather of (2,) on rank {rank} of {ranks} does not fit the "
            f"shapes {[(3,)] * ranks}",
            "number of shapes": "ValueError: 2 shapes are given for 1 tensors",
        }
