"""Programs written for CUDA train unchanged under the shim, with the losses of the CPU to the bit.

They are those of tests/convert/trainers, in the idioms of real repositories. The reference is the
program in the stand-in for CUDA of tests/convert/cuda_on_cpu.py, which knows nothing of Accel.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from accel.errors import DeviceError
from accel.simulate import package
from tests.convert import trainer_runs
from tests.convert.trainer_cases import TRAINERS, Trainer, losses, plain_environment
from tests.convert.trainer_runs import Run, run_all
from tests.trace_running import Traced, trace

everywhere = pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
# Without what no Ascend can do; and DataParallel halves the batch, also that of a batch norm.
ON_ASCEND = tuple(one for one in TRAINERS if not one.refused and one.name != "parallel_guard")


def run_traced(directory: Path, runs: list[Run], **options: object) -> tuple[list[Run], Traced]:
    """Run programs, each in a fork of one traced process, which is one program to the shim."""
    listed = directory / "runs.json"
    listed.write_text(json.dumps([asdict(run) for run in runs]))
    result = trace(directory, sys.executable, trainer_runs.__file__, str(listed), options=options)
    assert result.status == 0, result.errors
    return [Run(**one) for one in json.loads(listed.read_text())], result


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The losses of each program in float32, on the CPU."""
    asked = [
        Run(str(one.path), [*one.in_float32], stand_in=not one.guarded, ranks=one.ranks)
        for one in TRAINERS
    ]
    done = run_all(asked, tmp_path_factory.mktemp("references"), plain_environment())
    assert [run.status for run in done] == [0] * len(done)
    return {one: losses(run.output) for one, run in zip(TRAINERS, done, strict=True)}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """Each traced, with what it asks for: mixed precision too, which stays off."""
    asked = [Run(str(one.path), ranks=one.ranks) for one in TRAINERS]
    done, result = run_traced(tmp_path_factory.mktemp("traced"), asked)
    return dict(zip(TRAINERS, done, strict=True)), result


@everywhere
def test_losses_are_those_of_the_cpu_to_the_bit(trainer: Trainer, references, on_cpu) -> None:
    run = on_cpu[0][trainer]
    assert run.status == 0, run.output
    assert len(references[trainer]) >= 4
    assert losses(run.output) == references[trainer]


@everywhere
def test_every_program_is_in_the_log_by_its_lines(trainer: Trainer, on_cpu) -> None:
    source = trainer.path.read_text().splitlines()
    calls = [call for call in on_cpu[1].calls if Path(call.path).name == trainer.path.name]
    assert calls
    for call in calls:
        assert 1 <= call.line <= call.end_line <= len(source), call
        assert not call.package


@pytest.fixture(scope="module")
def on_ascend(tmp_path_factory):
    try:
        package.find_torch_npu()
    except DeviceError as error:
        pytest.skip(str(error))
    asked = [Run(str(one.path), [*one.in_float32], ranks=one.ranks) for one in ON_ASCEND]
    done, result = run_traced(tmp_path_factory.mktemp("ascend"), asked, simulate="910B2:2")
    return dict(zip(ON_ASCEND, done, strict=True)), result


@pytest.mark.without_npu
@pytest.mark.parametrize("trainer", ON_ASCEND, ids=lambda trainer: trainer.name)
def test_losses_on_a_simulated_ascend_are_the_same(trainer, references, on_ascend) -> None:
    """In float32, where its operators compute with the CPU's kernels."""
    run = on_ascend[0][trainer]
    assert run.status == 0, run.output
    assert losses(run.output) == references[trainer]


@pytest.mark.without_npu
def test_calls_on_a_simulated_ascend_go_to_its_chips(on_ascend) -> None:
    calls = on_ascend[1].calls
    assert {call.redirected_to for call in calls if call.api == "torch.Tensor.cuda"} >= {
        "npu", "npu:0", "npu:1",
    }  # fmt: skip
    (group,) = [call for call in calls if call.api == "torch.distributed.init_process_group"]
    assert (group.given, group.redirected_to, group.count) == ("nccl", "hccl", 2)
    assert "cpu" not in {call.redirected_to for call in calls}
