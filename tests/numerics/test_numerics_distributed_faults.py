"""Faults on one rank, in one collective, and ranks that begin with something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.numerics import Comparison, compare, load_recording
from accel.numerics.comparing.collectives import checked
from accel.numerics.comparing.comparison import Verdict
from tests.numerics.distributed_runs import launched_well
from tests.numerics.distributed_worker import single
from tests.numerics.numerics_zoo import one_thread  # noqa: F401

FAULTY_OPERATORS = ("fault_ddp_operator", "fault_tp_operator")
FAULTY_COLLECTIVES = (
    "fault_ddp_allreduce", "fault_ddp_allreduce_on_one", "fault_tp_allreduce",
    "fault_fsdp_gather", "fault_fsdp_gather_kept", "fault_fsdp_scatter",
)  # fmt: skip
BEGINNINGS = ("fault_initial_copy", "swapped_rows", "swapped_weights", "same_ddp", "same_tp")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single")
    single(out / "sketch")
    single(out / "full", level="full")
    return out


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched_well(tmp_path_factory.mktemp("operators"), *FAULTY_OPERATORS)


@pytest.fixture(scope="module")
def collectives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched_well(tmp_path_factory.mktemp("collectives"), *FAULTY_COLLECTIVES)


@pytest.fixture(scope="module")
def beginnings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched_well(tmp_path_factory.mktemp("beginnings"), *BEGINNINGS)


def first(comparison: Comparison, kind: str) -> Verdict:
    verdict = comparison.verdict
    assert verdict.kind == kind, verdict
    return verdict


@pytest.mark.parametrize(
    ("run", "operator"),
    [("fault_ddp_operator", "forward:blocks.1/gelu#0"),
     ("fault_tp_operator", "forward:blocks.0.down/addmm#0")],
)  # fmt: skip
def test_an_operator_that_is_wrong_on_one_rank_is_named_with_its_rank(
    alone: Path, operators: Path, run: str, operator: str
) -> None:
    comparison = compare(alone / "sketch", operators / run)
    verdict = first(comparison, "faulty operator")
    assert str(verdict.operator) == operator
    assert "on rank 1 of the candidate" in verdict.sentence
    assert [one.kind for one in comparison.findings] == ["faulty operator"]
    (coverage,) = comparison.coverage
    assert coverage.run == "candidate"
    assert coverage.checked["addmm"] == 2 * 5  # of both ranks


def test_an_operator_that_is_wrong_is_where_sketches_diverge_first(
    alone: Path, operators: Path
) -> None:
    comparison = compare(alone / "sketch", operators / "fault_ddp_operator", replay=False)
    assert comparison.verdict.kind == "cannot decide", comparison.verdict
    assert comparison.divergence == "forward:blocks.1/gelu#0"


@pytest.mark.parametrize(
    ("run", "operator", "words"),
    [
        ("fault_ddp_allreduce", "c10d::allreduce_#0", "is not the sum of what its ranks put in"),
        ("fault_ddp_allreduce_on_one", "c10d::allreduce_#0", "put in, on rank 1"),
        ("fault_tp_allreduce", "blocks.1.down/_c10d_functional::all_reduce#0", "put in, on rank 1"),
        ("fault_fsdp_gather", "collective:/c10d::_allgather_base_#0", "left rank 1 something else"),
        ("fault_fsdp_gather_kept", "collective:/c10d::_allgather_base_#0", "left rank 1 something"),
        ("fault_fsdp_scatter", "c10d::_reduce_scatter_base_#0", "is not the avg of what"),
    ],
)
def test_a_collective_that_is_wrong_is_named(
    alone: Path, collectives: Path, run: str, operator: str, words: str
) -> None:
    comparison = compare(alone / "sketch", collectives / run)
    verdict = first(comparison, "faulty operator")
    assert str(verdict.operator).startswith("collective:")
    assert str(verdict.operator).endswith(operator)
    assert words in verdict.sentence
    assert verdict.run == "candidate"


def test_a_collective_that_is_wrong_is_named_between_two_processes_too(
    beginnings: Path, collectives: Path
) -> None:
    comparison = compare(beginnings / "same_ddp", collectives / "fault_ddp_allreduce_on_one")
    verdict = first(comparison, "faulty operator")
    assert str(verdict.operator).endswith("c10d::allreduce_#0")


def test_copies_that_differ_before_the_step_are_named_with_the_rank(
    alone: Path, beginnings: Path
) -> None:
    comparison = compare(alone / "sketch", beginnings / "fault_initial_copy")
    verdict = first(comparison, "different weight/input")
    assert "the ranks of the candidate hold different copies of head.weight" in verdict.sentence
    assert verdict.evidence[0].startswith("rank 0's parameter head.weight: 0 from")
    assert not verdict.evidence[1].startswith("rank 1's parameter head.weight: 0 from")


@pytest.mark.parametrize(
    ("reference", "run", "what"),
    [("same_ddp", "swapped_rows", "input 0"),
     ("same_tp", "swapped_weights", "parameter blocks.1.up.weight")],
)  # fmt: skip
def test_swapped_ranks_are_told(
    alone: Path, beginnings: Path, reference: str, run: str, what: str
) -> None:
    """Against two processes by sketches; against one if its elements were kept."""
    for against in (beginnings / reference, alone / "full"):
        verdict = first(compare(against, beginnings / run), "different weight/input")
        assert verdict.sentence == f"ranks 0 and 1 have one another's {what}"


@pytest.mark.parametrize("run", ["swapped_rows", "swapped_weights"])
def test_swapped_ranks_are_seen_by_sketches_of_one_process(
    alone: Path, beginnings: Path, run: str
) -> None:
    verdict = first(compare(alone / "sketch", beginnings / run), "different weight/input")
    assert "same elements in another order" in verdict.sentence


# --- collectives that the program calls by itself -------------------------------------------------

TALKS = ("talk", "talk_kept", "talk_lost", "talk_largest", "talk_broadcast")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched_well(tmp_path_factory.mktemp("talks"), *TALKS)


def checks(path: Path) -> list[Verdict]:
    ranks = load_recording(path).ranks
    return checked({number: rank.steps[0] for number, rank in ranks.items()}, "candidate")


@pytest.mark.parametrize("run", ["talk", "talk_kept"])
def test_collectives_that_are_right_are_right(talks: Path, run: str) -> None:
    """Although what they are given are rows of a batch, whose sketches are at their places."""
    step = load_recording(talks / run).ranks[1].steps[0]
    seen = [operator.key.op for operator in step.operators if operator.key.phase == "collective"]
    names = ("allreduce_", "allreduce_", "broadcast_", "allgather_", "_allgather_base_",
             "_reduce_scatter_base_")  # fmt: skip
    assert seen == [f"c10d::{name}" for name in names]
    assert checks(talks / run) == []


@pytest.mark.parametrize(
    ("run", "operator", "words"),
    [("talk_lost", "c10d::allgather_#0", "left rank 0 something else than rank 1 put in"),
     ("talk_largest", "c10d::allreduce_#1", "is not the max of what its ranks put in, on rank 1"),
     ("talk_broadcast", "c10d::broadcast_#0", "left rank 0 something else than was sent")],
)  # fmt: skip
def test_collectives_that_are_wrong_are_told_from_their_inputs(
    talks: Path, run: str, operator: str, words: str
) -> None:
    (verdict,) = checks(talks / run)
    assert str(verdict.operator).endswith(operator)
    assert words in verdict.sentence
