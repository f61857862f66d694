"""The controller on two ranks: each sees other data, and both decide the same.

As a program, one of the processes: python test_precision_controller_ranks.py DIRECTORY SCENARIO.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from accel.precision.controller import Controller, ControllerConfig, Operand, replay
from tests.process_groups import launched_well, process_group

RANKS = 2


def fakes() -> Any:
    """The module beside this one, which pytest does not import by a name."""
    path = Path(__file__).with_name("test_precision_controller_log.py")
    spec = importlib.util.spec_from_file_location("controller_log_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def different_data(out: Path) -> Any:
    """Only rank 1 sees the outlier, in `b`; on rank 0 `c` is not even called."""
    fake, rank = fakes(), distributed.get_rank()
    layers = fake.layers_of("a", "b", "c")
    controller = Controller(layers, fake.CONFIG, log=out / "log.jsonl")
    found = []
    for step in range(60):
        for name, layer in layers.items():
            if (rank, name) == (0, "c"):
                continue
            is_spoilt = (rank, name) == (1, "b") and 10 <= step < 30
            layer.run(fake.tensors(1000 * rank + step, outlier=is_spoilt))
            layer.flops = 1000 + rank
        decided = controller.after_step()
        found.append((decided, controller.formats(), controller.state_dict()))
    controller.close()
    return found


def disagreement(out: Path) -> Any:
    fake = fakes()
    config = ControllerConfig(interval=5 + distributed.get_rank())
    with pytest.raises(ValueError, match="the ranks of the group have different"):
        Controller(fake.layers_of("a"), config)
    return None


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    launched_well(Path(__file__), RANKS, str(out), "different_data", "disagreement")
    return out


def test_both_ranks_decide_the_same(results) -> None:
    first, second = (
        torch.load(results / f"different_data-{rank}.pt", weights_only=False)
        for rank in range(RANKS)
    )
    assert first == second
    decided = [one for step in first for one in step[0]]
    assert [(one.operand, one.kind) for one in decided] == [
        (Operand("b", "input"), "promote"), (Operand("b", "input"), "demote")
    ]  # fmt: skip
    assert first[-1][2]["machine"]["flops"] == {"a": 1001, "b": 1001, "c": 1001}


def test_one_rank_writes_a_log_that_replays(results) -> None:
    steps = torch.load(results / "different_data-0.pt", weights_only=False)
    decided = [one for step in steps for one in step[0]]
    assert list(replay(results / "log.jsonl").decisions) == decided


def test_ranks_that_control_other_things_are_told_so(results) -> None:
    assert (results / "disagreement-1.pt").exists()


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    with process_group(Path(out) / "store"):
        for name in names:
            found = globals()[name](Path(out))
            torch.save(found, Path(out) / f"{name}-{distributed.get_rank()}.pt")
            distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
