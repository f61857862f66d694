"""Ranks step together or not at all, and clip by one norm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import precision_step_worker as worker
from tests.process_groups import launched_well

RANKS = 2


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    launched_well(Path(worker.__file__), RANKS, str(directory))
    return directory


def found(out: Path, name: str) -> list:
    return [torch.load(out / f"{name}-{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_as_one_process_with_the_whole_batch(out, kind):
    model = worker.build()
    alone = worker.train(model, model, worker.leave)
    for rank in found(out, f"{kind}-clean"):
        assert rank["taken"] == [True] * worker.STEPS
        assert rank["state"] == alone["state"]
        for one, other in zip(rank["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_bad_gradient_stops_all(out, kind):
    first, second = found(out, f"{kind}-spoilt")
    assert first["taken"] == second["taken"] == [True, True, True, False, True, True]
    assert first["state"] == second["state"]
    expected = "step 3 skipped: the gradient of 2.weight holds inf (loss scale 128)"
    assert first["skipped"] == second["skipped"] == expected
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other)


def test_a_norm_that_overflows_is_clipped_alike_on_all(out):
    first, second = found(out, "fsdp-large")
    assert first["taken"] == second["taken"] == [True] * worker.STEPS
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_each_alone_if_asked(out):
    first, second = found(out, "alone-spoilt")
    assert first["taken"] == [True] * worker.STEPS
    assert second["taken"] == [True, True, True, False, True, True]
