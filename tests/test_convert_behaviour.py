"""Small trainings in the idioms of real repositories compute on a CPU what they computed before.

The programs are in tests/convert/trainers, written for CUDA as people write them. The reference is
the original: as it is where it guards its use of CUDA, or is told to use the CPU; else in the
stand-in for CUDA of tests/convert/cuda_on_cpu.py, which replaces no operator. A second version of
each by hand would be no reference for what a conversion must not change: it would be a conversion.
"""

from __future__ import annotations

import pytest

from tests.convert.trainer_cases import (
    FOLDER,
    TRAINERS,
    Trainer,
    convert,
    left_of_cuda,
    losses,
    plain_environment,
)
from tests.convert.trainer_runs import Run, run_all

everywhere = pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each trainer: the original as it is, the reference, and the converted one."""
    directory = tmp_path_factory.mktemp("trainers")
    asked = []
    for trainer in TRAINERS:
        stand_in = not (trainer.guarded or trainer.on_cpu)
        asked += [
            Run(str(trainer.path), watched=True, ranks=trainer.ranks),
            Run(str(trainer.path), [*trainer.on_cpu], stand_in=stand_in, ranks=trainer.ranks),
            Run(trainer.write(directory), watched=True, ranks=trainer.ranks),
        ]
    done = iter(run_all(asked, directory, plain_environment()))
    return {trainer: (next(done), next(done), next(done)) for trainer in TRAINERS}


def test_every_trainer_is_listed() -> None:
    assert {trainer.path for trainer in TRAINERS} == set(FOLDER.glob("*.py"))


@everywhere
def test_the_original_runs_without_cuda_only_where_it_guards(trainer: Trainer, runs) -> None:
    original, reference, _ = runs[trainer]
    assert (original.status == 0) is trainer.guarded, original.output
    assert reference.status == 0, reference.output
    assert len(losses(reference.output)) >= 4


@everywhere
def test_losses_are_those_of_the_original_to_the_bit(trainer: Trainer, runs) -> None:
    _, reference, converted = runs[trainer]
    assert converted.status == 0, converted.output
    assert losses(converted.output) == losses(reference.output)


@everywhere
def test_the_converted_program_calls_nothing_of_torch_cuda(trainer: Trainer, runs) -> None:
    *_, converted = runs[trainer]
    reached = {call.split(": ")[1] for call in converted.reached}
    assert reached <= trainer.left


@everywhere
def test_nothing_is_left_that_is_mechanical(trainer: Trainer) -> None:
    result = trainer.converted()
    assert not result.error
    assert left_of_cuda(result.after.decode()) == trainer.left
    assert not [entry for entry in result.ledger if entry.action == "missing"]


@everywhere
def test_a_second_conversion_changes_nothing(trainer: Trainer) -> None:
    once = trainer.converted().after
    again = convert(once, trainer.path.name)
    assert again.after == once
    assert not again.error


@pytest.mark.parametrize("trainer", [t for t in TRAINERS if t.refused], ids=lambda t: t.name)
def test_what_an_ascend_refuses_is_flagged(trainer: Trainer) -> None:
    findings = trainer.converted().findings
    assert [f for f in findings if f.action == "flag" and trainer.refused in f.snippet]


@pytest.mark.gpu
def test_losses_on_a_gpu_are_those_of_the_original(tmp_path) -> None:
    """To the bit, where the original itself gives the same twice."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    fitting = [t for t in TRAINERS if t.ranks <= torch.cuda.device_count()]
    asked = [
        Run(program, ranks=t.ranks)
        for t in fitting
        for program in (str(t.path), str(t.path), t.write(tmp_path))
    ]
    # So that the process which forks them asks without starting CUDA.
    environment = {**plain_environment(), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = iter(run_all(asked, tmp_path, environment))
    reproducible = 0
    for trainer in fitting:
        first, second, converted = next(done), next(done), next(done)
        assert (first.status, converted.status) == (0, 0), first.output + converted.output
        same = losses(first.output) == losses(second.output)
        tolerance = 0.0 if same else 1e-2
        expected = pytest.approx(losses(first.output), rel=tolerance, abs=tolerance)
        assert losses(converted.output) == expected, trainer.name
        reproducible += same
    assert reproducible > len(fitting) / 2


def test_what_looks_for_cuda_finds_it_in_the_originals(runs) -> None:
    """So that it cannot find nothing because it looks for nothing."""
    left = [trainer.name for trainer in TRAINERS if not left_of_cuda(trainer.path.read_text())]
    assert left == ["gpu_id_trainer"]  # it has numbers alone
    assert len([trainer for trainer in TRAINERS if runs[trainer][0].reached]) > 20
