"""Converted trainings on the simulated chip, against the originals on the CPU in float32.

Operators there compute with torch's CPU kernels, and random numbers are drawn on the host by these
programs, so that losses are equal to the bit.
"""

from __future__ import annotations

import os

import pytest

from tests.convert.trainer_cases import ROOT, TRAINERS, Trainer, losses, plain_environment
from tests.convert.trainer_runs import Run, run_all

MIXED = [trainer for trainer in TRAINERS if trainer.in_float32]
ABLE = [trainer for trainer in TRAINERS if not trainer.refused]
everywhere = pytest.mark.parametrize("trainer", ABLE, ids=lambda trainer: trainer.name)
# What float16 and bfloat16 round off, on the scale of a loss near 1.
ROUNDING = 0.05


def simulated_environment() -> dict[str, str]:
    """This process's, with this project."""
    places = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ["PYTHONPATH"]])
    return {**os.environ, "PYTHONPATH": places}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Each on the CPU: the path for CUDA where it has no other."""
    asked = [
        Run(
            str(trainer.path),
            [*trainer.on_cpu, *trainer.in_float32],
            stand_in=not (trainer.guarded or trainer.on_cpu),
            ranks=trainer.ranks,
        )
        for trainer in TRAINERS
    ]
    done = run_all(asked, tmp_path_factory.mktemp("originals"), plain_environment())
    return dict(zip(TRAINERS, done, strict=True))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Each in float32, and those that have it in mixed precision, on two chips."""
    directory = tmp_path_factory.mktemp("converted")

    def asked(trainer: Trainer, *arguments: str) -> Run:
        program = trainer.write(directory)
        return Run(program, [*arguments], watched=True, ranks=trainer.ranks)

    runs = [*(asked(t, *t.in_float32) for t in TRAINERS), *(asked(t) for t in MIXED)]
    done = run_all(runs, directory, simulated_environment())
    plain = dict(zip(TRAINERS, done[: len(TRAINERS)], strict=True))
    return plain, dict(zip(MIXED, done[len(TRAINERS) :], strict=True))


@pytest.mark.parametrize("trainer", [t for t in TRAINERS if t.refused], ids=lambda t: t.name)
def test_what_is_refused_ends_the_program_and_is_named(trainer: Trainer, converted) -> None:
    run = converted[0][trainer]
    assert run.status == 1
    assert f"{trainer.refused}(" in run.output


@everywhere
def test_float32_losses_are_those_of_the_cpu(trainer: Trainer, originals, converted) -> None:
    original, run = originals[trainer], converted[0][trainer]
    assert original.status == 0, original.output
    assert run.status == 0, run.output
    assert losses(run.output) == losses(original.output)


@everywhere
def test_nothing_of_torch_cuda_is_called(trainer: Trainer, converted) -> None:
    reached = {call.split(": ")[1] for call in converted[0][trainer].reached}
    assert reached <= trainer.left


@pytest.mark.parametrize("trainer", MIXED, ids=lambda trainer: trainer.name)
def test_mixed_precision_is_on_and_stays_close(trainer: Trainer, originals, converted) -> None:
    run = converted[1][trainer]
    assert run.status == 0, run.output
    found, expected = losses(run.output), losses(originals[trainer].output)
    assert found != expected, "autocast did nothing"
    assert found == pytest.approx(expected, rel=0, abs=ROUNDING)


@pytest.mark.long
@pytest.mark.parametrize("target", ["torch", "npu"])
def test_other_targets_train_alike_where_nothing_is_flagged(target, originals, tmp_path) -> None:
    chosen = [
        trainer
        for trainer in TRAINERS
        if not any(finding.action == "flag" for finding in trainer.converted(target).findings)
    ]
    assert len(chosen) > len(TRAINERS) / 3
    asked = [Run(t.write(tmp_path, target), [*t.in_float32], ranks=t.ranks) for t in chosen]
    done = run_all(asked, tmp_path, simulated_environment())
    for trainer, run in zip(chosen, done, strict=True):
        assert run.status == 0, run.output
        assert losses(run.output) == losses(originals[trainer].output), trainer.name
