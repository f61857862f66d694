"""One of several processes that train beside teachers: python transfer_worker.py DIRECTORY

What each of SCENARIOS returns on this rank goes to DIRECTORY/SCENARIO-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from accel.alignment.transfer.distillation import distillation_loss
from accel.alignment.transfer.locking import locked
from accel.alignment.transfer.teacher import EMATeacher
from accel.distributed import all_gather
from tests.process_groups import process_group

RANKS, STEPS = 2, 3


class Towers(nn.Module):
    """A locked tower that has buffers, an unlocked block of another, and a student."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        image = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
        text = nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.GELU()) for _ in range(3)))
        self.image, self.text = locked(image), locked(text, unlocked=1)
        self.image_head, self.text_head = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """`[]`: how far the two are apart."""
        x, y = self.image_head(self.image(image)), self.text_head(self.text(text))
        return F.mse_loss(x, y) + x.square().mean()


def batch_of(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(4, 6, generator=generator), torch.randn(4, 5, generator=generator)


def train(rank: int | None) -> dict[str, Any]:
    """Three steps under DDP, or, without a rank, alone with the batches of all."""
    model = Towers()
    teacher = EMATeacher(model, decay=0.9, warm_up=4.0)
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model)
    learning = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.5)
    for step in range(STEPS):
        wrapped.train()
        ranks = range(RANKS) if rank is None else (rank,)
        optimizer.zero_grad()
        for one in ranks:
            (wrapped(*batch_of(step, one)) / len(ranks)).backward()
        optimizer.step()
        teacher.update(wrapped)
    return {"student": model.state_dict(), "teacher": teacher.state_dict()}


def distil(rank: int | None) -> dict[str, Any]:
    """Gradients of one distillation over the batch of all ranks, averaged as DDP does."""
    torch.manual_seed(3)
    towers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(5, 4)]).double()
    scale = nn.Parameter(torch.tensor(7.0, dtype=torch.float64))
    parameters = [scale, *towers.parameters()]
    batch = [[one.double() for one in batch_of(0, r)] for r in range(RANKS)]
    inputs = [torch.cat(one) for one in zip(*batch, strict=True)] if rank is None else batch[rank]
    student = [tower(one) for tower, one in zip(towers, inputs, strict=True)]
    teacher = [one[:, :3] for one in inputs]
    options = {"student_scale": scale, "teacher_scale": 2.0}
    if rank is None:
        loss = distillation_loss(*student, *teacher, **options)
    else:  # the recipe of docs/alignment-transfer.md
        every = [torch.cat(all_gather(one)) for one in (*student, *teacher)]
        loss = 0.5 * distillation_loss(
            student[0], every[1], teacher[0], every[3], **options, direction="x_to_y"
        ) + 0.5 * distillation_loss(
            every[0], student[1], every[2], teacher[1], **options, direction="y_to_x"
        )
    gradients = list(torch.autograd.grad(loss, parameters))
    if rank is not None:
        for one in (loss := loss.detach().clone(), *gradients):
            distributed.all_reduce(one)
            one /= RANKS
    return {"loss": loss.detach(), "gradients": gradients}


def follow(rank: int | None) -> dict[str, Any]:
    """Teachers in both widths under FSDP2, or whole."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(11)
        student = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).to(dtype)
        teacher = EMATeacher(student, decay=0.9, warm_up=4.0)
        if rank is not None:
            from torch.distributed.fsdp import fully_shard

            fully_shard(student)
            fully_shard(teacher.module)
        teacher.update(student)  # before any forward
        optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
        for step in range(STEPS):
            optimizer.zero_grad()
            x = batch_of(step, 0)[0].to(dtype)
            F.mse_loss(student(x), teacher(x) + 1.0).backward()
            optimizer.step()
            teacher.update(student)
        parts = [*teacher.parameters(), *teacher.get_extra_state()["averages"].values()]
        found[str(dtype)] = [
            one.full_tensor() if isinstance(one, DTensor) else one.detach() for one in parts
        ]
    return found


SCENARIOS = (train, distil, follow)


def main(out: str) -> None:
    torch.set_num_threads(1)
    with process_group(Path(out) / "store"):
        rank = distributed.get_rank()
        for scenario in SCENARIOS:
            torch.save(scenario(rank), Path(out) / f"{scenario.__name__}-{rank}.pt")
        distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
