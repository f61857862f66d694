"""Layers in eight bits under DDP and FSDP2, in two processes, against one process.

Run as a script it is one of the processes: python test_precision_fp8_distributed.py DIRECTORY NAME.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from accel.precision.fp8 import advance, convert_linears, linear_states
from accel.precision.operand import ROLES
from tests.precision_fp8_cases import RECIPES, plan_of
from tests.process_groups import launched_well, process_group

RANKS, STEPS = 2, 3
TESTED = ("rowwise", "blocks", "delayed")


def model_of(recipe: str) -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(40, 48), nn.GELU(), nn.Linear(48, 24))
    convert_linears(model, [plan_of(**RECIPES[recipe], name=name) for name in ("0", "2")])
    for state in linear_states(model).values():
        state.collect = True
    return model


def batch_of(step: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(6, 40, generator=generator) * (1.0 + 3.0 * rank)


def loss_of(out: Tensor) -> Tensor:
    return out.square().mean()


def end_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()
    advance(linear_states(model).values())


def kept(model: nn.Module) -> dict[str, Any]:
    return {name: state.state_dict() for name, state in linear_states(model).items()}


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: one.full_tensor() if hasattr(one, "full_tensor") else one
        for name, one in model.state_dict().items()
    }


def alone(recipe: str) -> dict[str, Any]:
    """One process: the ranks' batches as micro-batches of a step."""
    model = model_of(recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        for rank in range(RANKS):
            loss_of(model(batch_of(step, rank))).backward()
        for parameter in model.parameters():
            parameter.grad /= RANKS
        end_step(model, optimizer)
    return {"model": model.state_dict(), "kept": kept(model)}


def ddp(recipe: str) -> dict[str, Any]:
    model = model_of(recipe)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        loss_of(wrapped(batch_of(step, distributed.get_rank()))).backward()
        end_step(model, optimizer)
    return {"model": model.state_dict(), "kept": kept(model)}


def fsdp(recipe: str, late: bool = False) -> dict[str, Any]:
    """Sharded after the conversion, or before it."""
    from torch.distributed.fsdp import fully_shard

    model = model_of(recipe)
    if late:
        plans = [state.plan for state in linear_states(model).values()]
        from accel.precision.fp8 import restore_linears

        restore_linears(model)
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    if late:
        for state in convert_linears(model, plans).values():
            state.collect = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        loss_of(model(batch_of(step, distributed.get_rank()))).backward()
        end_step(model, optimizer)
    return {"model": whole(model), "kept": kept(model)}


def fsdp_late(recipe: str) -> dict[str, Any]:
    return fsdp(recipe, late=True)


def fsdp_bfloat16(recipe: str) -> dict[str, Any]:
    """Parameters gathered in bfloat16, gradients reduced in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = model_of(recipe)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mp_policy=policy)
    loss_of(model(batch_of(0, distributed.get_rank()))).backward()
    return {name: one.grad.full_tensor() for name, one in model.named_parameters()}


def unreduced(recipe: str) -> dict[str, Any]:
    model = model_of(recipe)
    loss_of(model(batch_of(0, distributed.get_rank()))).backward()
    advance(linear_states(model).values(), reduce=False)
    return kept(model)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8")
    names = [f"{name}:{recipe}" for name in ("ddp", "fsdp", "fsdp_late") for recipe in TESTED]
    names += ["fsdp_bfloat16:rowwise", "unreduced:delayed"]
    launched_well(Path(__file__), RANKS, str(folder), *names)
    return folder


def result(folder: Path, name: str, rank: int) -> Any:
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_equal(value, other[key])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), (one - other).abs().max()
    else:
        assert one == other


@pytest.mark.without_npu
@pytest.mark.parametrize("recipe", TESTED)
@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp_late"])
def test_two_processes_train_as_one(results: Path, name: str, recipe: str) -> None:
    expected = alone(recipe)
    for rank in range(RANKS):
        assert_equal(result(results, f"{name}:{recipe}", rank), expected)


@pytest.mark.without_npu
def test_fsdp_gathers_weights_in_bfloat16(results: Path) -> None:
    one, two = (result(results, "fsdp_bfloat16:rowwise", rank) for rank in range(RANKS))
    assert_equal(one, two)
    model = model_of("rowwise")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    for rank in range(RANKS):
        (loss_of(model(batch_of(0, rank).bfloat16())) / RANKS).backward()
    for name, parameter in model.named_parameters():
        assert one[name].dtype == torch.float32
        error = (one[name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 0.03


@pytest.mark.without_npu
def test_without_reduction_each_rank_scales_by_itself(results: Path) -> None:
    states = [result(results, "unreduced:delayed", rank)["0"]["supposed"] for rank in range(RANKS)]
    assert states[0]["input"] < states[1]["input"]
    for rank, state in enumerate(states):
        assert state["input"] == batch_of(0, rank).abs().amax()
    assert set(states[0]) == set(ROLES)
    assert copy.deepcopy(states[0]).keys() == states[1].keys()


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    with process_group(Path(out) / "store"):
        for name in names:
            scenario, recipe = name.split(":")
            found = globals()[scenario](recipe)
            torch.save(found, Path(out) / f"{name}-{distributed.get_rank()}.pt")
            distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
