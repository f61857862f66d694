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
from torch import distributed, nn

from accel.precision import Precision
from accel.precision.controller import Controller, ControllerConfig, Operand, replay
from tests.precision_controller_faults import Outlier
from tests.process_groups import launched_well, process_group

RANKS = 2


def beside(name: str) -> Any:
    """A module beside this one, which pytest does not import by its name."""
    path = Path(__file__).with_name(f"test_precision_controller_{name}.py")
    spec = importlib.util.spec_from_file_location(f"controller_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def different_data(out: Path) -> Any:
    """Only rank 1 sees the outlier, in `b`; on rank 0 `c` is not even called."""
    fake, rank = beside("log"), distributed.get_rank()
    layers = fake.layers_of("a", "b", "c")
    controller = Controller(layers, fake.CONFIG, log=out / "log.jsonl")
    found = []
    for step in range(60):
        for name, layer in layers.items():
            if (rank, name) == (0, "c"):
                continue
            is_spoilt = (rank, name) == (1, "b") and 10 <= step < 30
            spoilt = "input" if is_spoilt else None
            layer.run(fake.tensors(1000 * rank + step, outlier=spoilt))
            layer.flops = 1000 + rank
        decided = controller.after_step()
        found.append((decided, controller.formats(), controller.state_dict()))
    controller.close()
    return found


def training(out: Path) -> Any:
    """DDP; both ranks see both faults, on other data, and rank 1 sees the outlier later."""
    run = beside("training")
    rank, steps = distributed.get_rank(), 30
    mine = run.Run("fp8_tensorwise", log=out / "training.jsonl", controlled=True)
    plain, mine.model = mine.model, nn.parallel.DistributedDataParallel(mine.model)
    found = []
    for step in range(steps):
        outlier, underflow = mine.faults
        outlier.active, underflow.active = step >= 10 + 3 * rank, step >= 10
        mine.optimizer.zero_grad()
        mine.loss(*run.batch_of(step, rank)).backward()
        mine.optimizer.step()
        found.append((mine.controller.after_step(), mine.controller.state_dict()))
    mine.controller.close()
    return found, plain.state_dict()


def withheld(out: Path) -> Any:
    """DDP through `Precision`; between readings a magnitude leaps on rank 1 alone."""
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 8, bias=False))
    outlier = Outlier(model[0])
    config = ControllerConfig(interval=100, budget=0.7)
    precision = Precision(model, "fp8_tensorwise,emulate", controller=config)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    found = []
    for step in range(8):
        outlier.active = rank == 1 and step >= 3
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(1000 * rank + step)
        with precision.autocast():
            loss = wrapped(torch.randn(16, 32, generator=generator)).float().square().mean()
        precision.backward(loss)
        taken = bool(precision.step(optimizer))
        found.append((taken, str(precision.last_skipped), precision.state_dict()["controller"]))
    return found, model.state_dict()


def disagreement(out: Path) -> Any:
    fake = beside("log")
    config = ControllerConfig(interval=5 + distributed.get_rank())
    with pytest.raises(ValueError, match="the ranks of the group have different"):
        Controller(fake.layers_of("a"), config)
    return None


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    launched_well(
        Path(__file__), RANKS, str(out), "different_data", "disagreement", "training", "withheld"
    )
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


def test_training_under_ddp_keeps_models_and_controllers_identical(results) -> None:
    (first, mine), (second, other) = (
        torch.load(results / f"training-{rank}.pt", weights_only=False) for rank in range(RANKS)
    )
    assert first == second
    decided = [one for step, _ in first for one in step]
    assert [one.kind for one in decided] == ["promote"] * 2
    assert {one.operand for one in decided} == set(beside("training").SPOILT)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert list(replay(results / "training.jsonl").decisions) == decided


def test_a_leap_on_one_rank_withholds_the_step_of_both(results) -> None:
    (first, mine), (second, other) = (
        torch.load(results / f"withheld-{rank}.pt", weights_only=False) for rank in range(RANKS)
    )
    assert first == second
    assert [taken for taken, _, _ in first] == [True] * 3 + [False] * 2 + [True] * 3
    assert "step 3 skipped: 0/input is far beyond its usual magnitude" in first[3][1]
    assert all(torch.equal(mine[name], other[name]) for name in mine)


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
