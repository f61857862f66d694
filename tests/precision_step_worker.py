"""What each rank does for test_precision_step_ranks.py: RANK and WORLD_SIZE say which it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from accel.precision import DynamicLossScale, Precision
from tests.process_groups import process_group

STEPS, BATCH = 6, 8


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def batch(step: int) -> torch.Tensor:
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))


def train(
    model: nn.Module,
    plain: nn.Module,
    bad: Any,
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Six steps, of which `bad` spoils a gradient after a backward."""
    scale = DynamicLossScale(64.0, growth_interval=2)
    precision = Precision(plain, "compute=float32", loss_scale=scale, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    taken = []
    for step in range(STEPS):
        optimizer.zero_grad()
        share = batch(step)[rank * BATCH // ranks : (rank + 1) * BATCH // ranks]
        precision.backward(model(share).square().mean())
        bad(step, rank, plain)
        taken.append(bool(precision.step(optimizer, max_norm=0.1)))
    return {
        "taken": taken,
        "state": precision.state_dict(),
        "skipped": None if precision.last_skipped is None else str(precision.last_skipped),
        "weights": [
            p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in plain.parameters()
        ],
    }


def spoil_last_rank(step: int, rank: int, model: nn.Module) -> None:
    """In step 3, of the last layer's weight, what the last rank holds."""
    world = int(os.environ["WORLD_SIZE"])
    if step == 3 and rank == world - 1:
        gradient = list(model.parameters())[2].grad
        local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        local.view(-1)[-1] = float("inf")


def leave(step: int, rank: int, model: nn.Module) -> None:
    """Nothing is spoilt."""


def enlarge(step: int, rank: int, model: nn.Module) -> None:
    """In step 3, beyond what a norm in float32 can be, and largest on the last rank."""
    if step == 3:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        for n, parameter in enumerate(model.parameters()):
            gradient = parameter.grad
            local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            local.fill_(1e30 if rank < world - 1 and n < 3 else 3e38)


def main() -> None:
    out, rank, ranks = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with process_group(out / "store"):
        for name, bad in (("clean", leave), ("spoilt", spoil_last_rank)):
            plain = build()
            wrapped = DistributedDataParallel(plain)
            found = train(wrapped, plain, bad, rank, ranks)
            torch.save(found, out / f"ddp-{name}-{rank}.pt")

            sharded = build()
            mesh = init_device_mesh("cpu", (ranks,))
            for part in (sharded[0], sharded[2], sharded):
                fully_shard(part, mesh=mesh)
            found = train(sharded, sharded, bad, rank, ranks)
            torch.save(found, out / f"fsdp-{name}-{rank}.pt")

        sharded = build()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (ranks,)))
        found = train(sharded, sharded, enlarge, rank, ranks)
        torch.save(found, out / f"fsdp-large-{rank}.pt")

        lonely = build()
        found = train(lonely, lonely, spoil_last_rank, rank, ranks, group=None)
        torch.save(found, out / f"alone-spoilt-{rank}.pt")


if __name__ == "__main__":
    main()
