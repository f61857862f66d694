"""Losses over the batch of two and four processes, against one process with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accel.alignment.ranks.global_batch import global_softmax_sums
from accel.simulate.activation import child_environment
from accel.simulate.machine import Machine
from accel_kernels.contrastive_loss.pairing import Guide, Pairing
from accel_kernels.contrastive_loss.passes import InputGradients, SoftmaxGradients
from accel_kernels.contrastive_loss.reference import relations
from tests import alignment_worker as worker
from tests.alignment_worker import CASES, FORMS, KINDS, LOSSES, Batch, batch_of, passes_of
from tests.process_groups import launched_well

WORKER = Path(worker.__file__)
SCENARIOS = (
    "sums", "losses", "own_pairs", "same_bits", "only_some_need_gradients", "memory", "overlap",
    "refusals",
)  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> Callable[[str, int], list[Any]]:
    """What every rank of a launch found in a scenario."""

    found = {}
    for ranks in (2, 4):
        out = tmp_path_factory.mktemp(f"{ranks}-ranks")
        launched_well(WORKER, ranks, str(out), *SCENARIOS)
        found |= {
            (name, ranks): [torch.load(out / f"{name}-{rank}.pt") for rank in range(ranks)]
            for name in SCENARIOS
        }
    return lambda name, ranks: found[name, ranks]


@pytest.fixture(params=[2, 4])
def ranks(request) -> int:
    return request.param


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, least: float = 1.0) -> None:
    """float64 to 1e-12 of the largest number, or of `least`; float32 to a few roundings of it."""
    assert found.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(finite, found.isfinite())
    if finite.any():
        size = max(least, expected[finite].abs().max().item())
        bound = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
        assert (found.double() - expected.double())[finite].abs().max() <= bound * size


def whole_in_float64(name: str, ranks: int) -> Batch:
    """The numbers of all ranks, which have the case's dtype, computed wide."""
    whole = batch_of(CASES[name], ranks, name)
    guide = whole.pairing.guide
    if guide is not None:
        whole.pairing = whole.pairing._replace(guide=Guide(*(t.double() for t in guide)))
    return Batch(
        whole.x.double(), whole.y.double(), whole.scale.double(), whole.bias.double(),
        tuple(t.double() for t in whole.references), whole.pairing,
        [t.double() for t in whole.upstream],
    )  # fmt: skip


def check_gradients(found: list[tuple[Tensor, ...]], expected: Any, dtype: torch.dtype) -> None:
    """Rows and columns lie on one rank each; of scale and bias every rank has a part."""
    x, y, *numbers = zip(*found, strict=True)
    close(torch.cat(x), expected.x, dtype)
    close(torch.cat(y), expected.y, dtype)
    for parts, total in zip(numbers, (expected.scale, expected.bias), strict=False):
        close(torch.stack(parts).sum(), total, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_softmax_sums_and_gradients_are_those_of_the_whole_batch(name, form, said, ranks) -> None:
    check_softmax(name, [one[f"{name} {form}"] for one in said("sums", ranks)])


def check_softmax(name: str, found: list[dict[str, Any]]) -> None:
    dtype, ranks = CASES[name].dtype, len(found)
    whole = whole_in_float64(name, ranks)
    given = whole.x, whole.y, whole.scale, *whole.references, whole.pairing
    passes = passes_of(CASES["even"])
    expected = passes.softmax(*given)
    for place, total in enumerate(expected):
        close(torch.cat([one["sums"][place] for one in found]), total, dtype, CASES[name].scale)
    upstream = [
        torch.where(lse.isfinite(), gradient, 0.0)
        for lse, gradient in zip(expected[:2], whole.upstream[:2], strict=True)
    ]
    gradients = SoftmaxGradients(*upstream, *whole.upstream[2:4])
    totals = passes.softmax_backward(*given, expected.x_lse, expected.y_lse, gradients)
    check_gradients([one["softmax"] for one in found], totals, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_sigmoid_sums_and_gradients_are_those_of_the_whole_batch(name, form, said, ranks) -> None:
    check_sigmoid(name, [one[f"{name} {form}"] for one in said("sums", ranks)])


def check_sigmoid(name: str, found: list[dict[str, Any]]) -> None:
    case, ranks = CASES[name], len(found)
    whole = whole_in_float64(name, ranks)
    passes = passes_of(CASES["even"])
    counts, _ = case.counts(ranks)
    rows = [[], torch.zeros_like(whole.y), torch.zeros(()).double(), torch.zeros(()).double()]
    for rank, one in enumerate(found):  # a rank's rows with all columns, by its own upstream
        mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        pairing, guide = whole.pairing, whole.pairing.guide
        pairing = pairing._replace(
            x_sample=pairing.x_sample[mine],
            x_group=None if pairing.x_group is None else pairing.x_group[mine],
            guide=guide and guide._replace(x=guide.x[mine], x_threshold=guide.x_threshold[mine]),
        )
        total, parts = passes.sigmoid(
            whole.x[mine], whole.y, whole.scale, whole.bias, pairing, with_gradients=True
        )
        close(one["sigmoid sum"], total, case.dtype)
        x, *others = (part * whole.upstream[4][rank] for part in parts)
        rows = [[*rows[0], x], *(a + b for a, b in zip(rows[1:], others, strict=True))]
    expected = InputGradients(torch.cat(rows[0]), *rows[1:])
    check_gradients([one["sigmoid"] for one in found], expected, case.dtype)


@pytest.fixture(scope="module")
def on_ascend(tmp_path_factory) -> list[Any]:
    """The same on two simulated Ascend chips, by hccl: the real torch_npu, memory poisoned."""
    out = tmp_path_factory.mktemp("hccl")
    environment = child_environment(Machine("910B2", devices=2, poison=True))
    environment.update(ACCEL_TEST_DEVICE="npu", ACCEL_TEST_BACKEND="hccl")
    launched_well(WORKER, 2, str(out), "in_float32", **environment)
    return [torch.load(out / f"in_float32-{rank}.pt") for rank in range(2)]


@pytest.mark.without_npu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.dtype == torch.float32])
def test_hccl_carries_what_gloo_carries(name, form, on_ascend) -> None:
    found = [one[f"{name} {form}"] for one in on_ascend]
    check_softmax(name, found)
    check_sigmoid(name, found)


def formula(kind: str, direction: str, x, y, scale, bias, pairing: Pairing) -> Tensor:
    """The loss of one process as it is written, with whole matrices."""
    positive, x_counts, y_counts = relations(pairing)
    logits = scale * (x @ y.T)
    logits = logits + torch.where(positive, 0.0, pairing.hardness * (x @ y.T).detach())
    if kind == "sigmoid":
        sign = torch.where(positive, 1.0, -1.0)
        losses = torch.nn.functional.softplus(-sign * (logits + bias))
        present = (pairing.x_sample >= 0).sum()
        return losses[x_counts & y_counts].sum() / present.clamp(min=1)
    sides = {
        "x_to_y": (logits, positive, x_counts), "y_to_x": (logits.T, positive.T, y_counts.T)
    }  # fmt: skip
    means = []
    for side in sides if direction == "both" else [direction]:
        terms = [
            row[counts].logsumexp(0) - row[positives].mean()
            for row, positives, counts in zip(*sides[side], strict=True)
            if positives.any()
        ]
        means.append(torch.stack(terms).mean() if terms else (logits * 0.0).sum())
    return torch.stack(means).mean()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("kind", "direction"), KINDS)
def test_the_loss_is_the_formula_and_averaged_gradients_are_its(
    kind, direction, name, form, said, ranks
) -> None:
    dtype = CASES[name].dtype
    found = [one[f"{name} {form} {kind} {direction}"] for one in said("losses", ranks)]
    whole = whole_in_float64(name, ranks)
    given = [t.requires_grad_() for t in (whole.x, whole.y, whole.scale, whole.bias)]
    expected = formula(kind, direction, *given, whole.pairing)
    wanted = given if kind == "sigmoid" else given[:3]
    gradients = torch.autograd.grad(expected, wanted, allow_unused=True, materialize_grads=True)
    values = [value for value, _ in found]
    assert all(torch.equal(value, values[0]) for value in values), "ranks disagree in bits"
    close(values[0], expected.detach(), dtype)
    x, y, *numbers = zip(*(one for _, one in found), strict=True)
    close(torch.cat(x) / ranks, gradients[0], dtype)
    close(torch.cat(y) / ranks, gradients[1], dtype)
    for parts, total in zip(numbers, gradients[2:], strict=True):
        close(torch.stack(parts).mean(), total, dtype)


def test_without_a_pairing_rows_of_other_ranks_are_negatives(said, ranks) -> None:
    counts, _ = CASES["uneven"].counts(ranks)
    for rank, (first, *both) in enumerate(said("own_pairs", ranks)):
        assert first == sum(counts[:rank])
        for place, form in enumerate(FORMS):
            for mine, given in zip(both[place], said("sums", ranks)[rank][f"uneven {form}"]["sums"],
                                   strict=True):  # fmt: skip
                assert torch.equal(mine, given)


def test_a_sum_over_ranks_has_the_same_bits_everywhere(said, ranks) -> None:
    for total, gradient in said("same_bits", ranks):
        # 1 + 2^-24 is 1 again: in another order, with 4 ranks, 2^-23 would be left.
        assert total == (1.0 if ranks == 2 else 0.0)
        assert gradient == ranks


def test_a_rank_that_needs_no_gradient_serves_those_that_do(said, ranks) -> None:
    for form in FORMS:
        first, *others = (one[form] for one in said("only_some_need_gradients", ranks))
        assert first.abs().sum() > 0.1
        assert all(gradient is None for gradient in others)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_memory_of_a_ring_does_not_grow_with_the_number_of_ranks(kind, said) -> None:
    two, four = (said("memory", ranks)[0] for ranks in (2, 4))
    assert four[f"ring {kind}"] == two[f"ring {kind}"]
    saved, largest = four[f"ring {kind}"]
    # x and y, and a few numbers for each row: of no block of another rank is anything kept.
    assert saved <= 4 * 700 * (2 * 4 + 8)
    assert largest <= 700 * 700
    # Gathering holds all columns while it computes, and no matrix of rows and columns either.
    assert four[f"all_gather {kind}"][0] <= 4 * 700 * (2 * 4 + 8)
    assert four[f"all_gather {kind}"][1] < 700 * 700 * 4


def test_the_next_columns_travel_while_the_present_ones_are_computed(said, ranks) -> None:
    for events in said("overlap", ranks):
        assert events.count("compute") == ranks
        assert events.count("send") == 2 * ranks - 1
        # The last stop has nothing to fetch any more.
        stops = [n for n, one in enumerate(events) if one == "compute"]
        sends = [events[:stop].count("send") for stop in stops]
        assert sends == [1 + 2 * n - (n == ranks - 1) for n in range(ranks)]
        assert "wait" not in events[: stops[0]]


def test_what_one_rank_does_otherwise_is_an_error_on_every_rank(said, ranks) -> None:
    alike = "ValueError: every rank must call the loss alike, but "
    other = "rank 1 cannot take part in the loss: "
    shapes = "ValueError: embeddings must be x [N, D] and y [M, D], not "
    dtypes = "TypeError: x and y must have one dtype, not "
    learned = "what is learned besides embeddings"
    one_by_one = "do not belong together one by one: give a pairing"
    on_rank_1 = {
        "x and y": f"{shapes}[2, 4] and [2, 3]",
        "dtype of y": f"{dtypes}torch.float32 and torch.bfloat16",
        "rows": f"ValueError: 2 rows and 1 columns {one_by_one}",
        "vector": f"{shapes}[4] and [2, 4]",
        "unknown form": "ValueError: form is one of all_gather, ring here, not 'star'",
        "length of pairing": "ValueError: the pairing is of 3 rows and 2 columns, the embeddings "
        "are 2 and 2",
        "refuse": "ValueError: nothing to do",
    }
    everywhere = {
        "D": f"{alike}D is 4 on rank 0 and 3 on rank 1",
        "dtype": f"{alike}the dtype is torch.float32 on rank 0 and torch.bfloat16 on rank 1",
        "form": f"{alike}form is ring on rank 0 and all_gather on rank 1",
        "kind": f"{alike}the kind is softmax on rank 0 and sigmoid on rank 1",
        "pairing": f"{alike}the pairing is none on rank 0 and given on rank 1",
        "guide": f"{alike}the guide is none on rank 0 and torch.float32 4 on rank 1",
        "hardness": f"{alike}hardness is 0.0 on rank 0 and 1.0 on rank 1",
        "direction": f"{alike}direction is x_to_y on rank 0 and y_to_x on rank 1",
        "learned scale": f"{alike}{learned} is nothing on rank 0 and scale on rank 1",
        "learned bias": f"{alike}{learned} is bias on rank 0 and nothing on rank 1",
        "gradient mode": f"{alike}the gradient mode is on on rank 0 and off on rank 1",
        "second derivative": "RuntimeError: a loss over the batch of all ranks has no second "
        "derivative: call backward without create_graph=True",
    }
    for rank, found in enumerate(said("refusals", ranks)):
        assert set(found) == {*on_rank_1, *everywhere}
        for name, text in everywhere.items():
            assert found[name] == text
        for name, text in on_rank_1.items():
            assert found[name] == (text if rank == 1 else f"ValueError: {other}{text}")


def test_without_a_process_group() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="init_process_group"):
        global_softmax_sums(
            passes_of(CASES["even"]), x, x, torch.tensor(1.0), x[:, 0], x[:, 0], None, "ring"
        )
