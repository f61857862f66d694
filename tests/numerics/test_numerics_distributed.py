"""Recordings of two processes on gloo against one process, and against one another."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from accel.numerics import Comparison, compare, load_recording
from accel.numerics.storage.entries import Shard
from tests.numerics.distributed_runs import answers, launch, launched_well
from tests.numerics.distributed_worker import (
    CLASSES,
    HIDDEN,
    LENGTH,
    ROWS,
    WIDTH,
    Loss,
    cubes,
    single,
    squares,
)
from tests.numerics.numerics_zoo import one_thread  # noqa: F401

SAME = ("same_ddp", "same_views", "same_checkpointed", "same_fsdp", "same_tp", "same_sp")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training in one process, with 4 rows and with 5."""
    out = tmp_path_factory.mktemp("single")
    single(out / "4")
    single(out / "5", rows=5)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched_well(tmp_path_factory.mktemp("two"), *SAME)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched_well(tmp_path_factory.mktemp("uneven"), "uneven_stated", "uneven_unstated")


def statuses(comparison: Comparison, phase: str) -> Counter[str]:
    return Counter(row.status for row in comparison.rows if row.phase == phase)


@pytest.mark.parametrize("run", SAME)
def test_recording_changes_no_bit_of_gradients_and_parameters(two: Path, run: str) -> None:
    for answer in answers(two, run):
        assert len(answer["compared"]) == 2 * 14
        assert answer["differing"] == []


@pytest.mark.parametrize("run", SAME)
def test_two_processes_agree_with_one(alone: Path, two: Path, run: str) -> None:
    comparison = compare(alone / "4", two / run)
    assert comparison.verdict.kind == "rounding only", comparison.verdict
    # Boundaries, gradients of parameters and the optimizer's state, where no operator's row has
    # them already.
    named = {"module", "gradient", "parameter", "state"}
    assert {r.status for r in comparison.rows if r.op in named} <= {"equal", "rounding"}
    for phase, count in (("forward", 15), ("backward", 25), ("optimizer", 84)):
        found = statuses(comparison, phase)
        assert found["equal"] + found["rounding"] >= count, (phase, found)


@pytest.mark.parametrize(("run", "loss"), [("ddp_cubes", cubes), ("ddp_squares", squares)])
def test_what_a_backward_computes_anew_is_no_gradient_of_a_mean(
    tmp_path: Path, run: str, loss: Loss
) -> None:
    """Powers of the outputs are not divided by the number of ranks, gradients are."""
    single(tmp_path / "one", loss=loss)
    launched_well(tmp_path, run)
    comparison = compare(tmp_path / "one", tmp_path / run)
    assert comparison.verdict.kind == "rounding only", comparison.verdict
    powers = [row for row in comparison.rows if row.phase == "backward" and row.op == "pow"]
    assert powers
    assert {row.status for row in powers} <= {"equal", "rounding"}


@pytest.mark.parametrize("run", ["same_tp", "same_sp"])
def test_of_tensor_parallel_runs_nothing_is_left_out(alone: Path, two: Path, run: str) -> None:
    rows = compare(alone / "4", two / run).rows
    assert len(rows) > 140
    assert [row.name for row in rows if row.status == "unknown"] == []


@pytest.mark.parametrize("run", ["same_ddp", "same_fsdp"])
def test_of_data_parallel_runs_only_what_has_no_whole_is_left_out(
    alone: Path, two: Path, run: str
) -> None:
    """The loss of a part of the batch, and gradients of parameters before they are averaged."""
    rows = compare(alone / "4", two / run).rows
    unknown = {row.op for row in rows if row.status == "unknown"}
    assert unknown <= {"mse_loss", "ones_like", "mm", "t", "sum", "native_layer_norm_backward"}
    assert len(rows) > 200


@pytest.mark.parametrize(
    ("a", "b"),
    [("same_ddp", "same_fsdp"), ("same_ddp", "same_views"), ("same_tp", "same_sp"),
     ("same_tp", "same_fsdp")],
)  # fmt: skip
def test_two_processes_agree_with_two(two: Path, a: str, b: str) -> None:
    comparison = compare(two / a, two / b)
    assert comparison.verdict.kind in ("same", "rounding only"), comparison.verdict


@pytest.mark.parametrize("run", SAME)
def test_a_run_is_the_same_as_itself(two: Path, run: str) -> None:
    assert compare(two / run, two / run).verdict.kind == "same"


# --- what a rank says of its parts ----------------------------------------------------------------


def shard_of(two: Path, run: str, rank: int, name: str) -> Shard | None:
    step = load_recording(two / run).ranks[rank].steps[0]
    return next(step.values[v].shard for v, source in step.sources.items() if source.name == name)


def test_manifests_tell_who_shares_a_batch(two: Path) -> None:
    for run, member in (("same_ddp", True), ("same_fsdp", True), ("same_tp", False)):
        for rank, recorded in load_recording(two / run).ranks.items():
            assert (recorded.manifest.rank, recorded.manifest.world) == (rank, 2)
            assert recorded.manifest.data_parallel == ((rank, 2) if member else None)
            assert recorded.manifest.complete


def test_parts_of_parameters_and_inputs(two: Path) -> None:
    weight = (CLASSES, WIDTH)  # in parts of 4 and 3 rows
    assert shard_of(two, "same_fsdp", 0, "head.weight") == Shard(weight, (0, 0))
    assert shard_of(two, "same_fsdp", 1, "head.weight") == Shard(weight, (4, 0))
    assert shard_of(two, "same_ddp", 1, "head.weight") == Shard(weight, (0, 0))  # a copy
    up, down = (HIDDEN, WIDTH), (WIDTH, HIDDEN)
    assert shard_of(two, "same_tp", 1, "blocks.0.up.weight") == Shard(up, (HIDDEN // 2, 0))
    assert shard_of(two, "same_tp", 1, "blocks.0.down.weight") == Shard(down, (0, HIDDEN // 2))
    rows = Shard((ROWS, LENGTH, WIDTH), (ROWS // 2, 0, 0))
    assert shard_of(two, "same_ddp", 1, "0") == shard_of(two, "same_fsdp", 1, "0") == rows
    assert shard_of(two, "same_tp", 1, "0") is None


def test_operators_of_tensor_parallel_runs_have_the_names_of_one_process(
    alone: Path, two: Path
) -> None:
    """DTensor works shapes out with operators of its own, which are no part of the run."""
    ours = load_recording(alone / "4").ranks[0].steps[0]
    theirs = load_recording(two / "same_tp").ranks[1].steps[0]
    keys = {key for key in theirs.by_key if key.phase in ("forward", "backward")}
    missing = [str(key) for key in ours.by_key if key.phase != "optimizer" and key not in keys]
    assert missing == []
    assert not [one for one in theirs.values.values() if one.skipped and "meta" in one.skipped]


def test_collectives_name_their_group_and_what_they_reduce(two: Path) -> None:
    seen = set()
    for run in ("same_ddp", "same_fsdp", "same_tp"):
        for operator in load_recording(two / run).ranks[0].steps[0].operators:
            if (
                operator.key.phase == "collective"
                and operator.key.op.split("::")[1] != "wait_tensor"
            ):
                texts = [getattr(one, "text", one) for one in operator.arguments.values()]
                assert "ranks 0, 1" in texts, operator
                seen |= {text for text in texts if text in ("sum", "avg")}
    assert seen == {"sum", "avg"}


def test_what_a_collective_returns_is_recorded_when_it_is_there(two: Path) -> None:
    """Of every reduction, on both ranks: the same bits."""
    for run in ("same_ddp", "same_tp"):
        ranks = load_recording(two / run).ranks
        left, right = (ranks[rank].steps[0] for rank in range(2))
        reductions = [o for o in left.operators if "reduce" in o.key.op]
        assert reductions
        for operator in reductions:
            values = operator.produced, right.by_key[operator.key].produced
            for x, y in zip(*values, strict=True):
                assert left.values[x].sketch == right.values[y].sketch
                assert left.values[x].sketch is not None


# --- uneven batches -------------------------------------------------------------------------------


def test_rows_that_were_stated_make_up_the_batch(alone: Path, uneven: Path) -> None:
    comparison = compare(alone / "5", uneven / "uneven_stated")
    assert comparison.verdict.kind == "rounding only", comparison.verdict
    assert statuses(comparison, "forward")["unknown"] == 2  # the loss and the ones of its shape


def test_rows_that_were_not_stated_are_left_out_and_never_compared_wrongly(
    alone: Path, uneven: Path
) -> None:
    comparison = compare(alone / "5", uneven / "uneven_unstated")
    assert comparison.verdict.kind == "rounding only", comparison.verdict
    assert set(statuses(comparison, "forward")) == {"unknown"}
    gradients = [row.status for row in comparison.rows if row.op == "gradient"]
    assert set(gradients) <= {"equal", "rounding"}
    assert len(gradients) >= 14
    assert any("3, 2 rows" in note for note in comparison.notes)


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "code"), [("raises", 1), ("killed", -9)])
def test_a_rank_that_ends_leaves_both_readable(
    tmp_path: Path, alone: Path, run: str, code: int
) -> None:
    ended = launch(tmp_path, run)
    assert ended[1].code == code, ended[1].text
    assert ended[0].code == 1, ended[0].text  # its peer is gone
    recording = load_recording(tmp_path / run)
    assert sorted(recording.ranks) == [0, 1]
    for rank in recording.ranks.values():
        assert rank.steps[0].end is not None
        assert len(rank.steps[1].operators) > 20
        assert not rank.manifest.complete
    comparison = compare(alone / "4", tmp_path / run)
    assert comparison.verdict.kind == "rounding only", comparison.verdict
    assert any("incomplete (rank 1)" in note for note in comparison.notes)


def test_one_rank_of_two_is_not_taken_for_the_whole(alone: Path, two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "same_tp" / "rank-1", tmp_path / "half" / "rank-1")
    comparison = compare(alone / "4", tmp_path / "half")
    assert comparison.verdict.kind in ("rounding only", "cannot decide"), comparison.verdict
    assert any("no recording of this step of rank 0, of 2" in note for note in comparison.notes)
    assert not [row for row in comparison.rows if row.status == "diverges"]
