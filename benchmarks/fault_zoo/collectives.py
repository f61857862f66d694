"""Faults of collectives, on two processes that train one model on halves of a batch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.fault_zoo.arithmetic import first_share
from benchmarks.fault_zoo.faults import Call, Fault, Strength
from benchmarks.fault_zoo.faults_gradient import SHARES
from benchmarks.fault_zoo.models import Batch
from benchmarks.fault_zoo.roundings import to_bits
from benchmarks.fault_zoo.workload import Precision, Workload

RANKS = 2


class DataParallel(Workload):
    """A step on this rank's half of the batch, with gradients averaged over the ranks."""

    def __init__(self, precision: Precision) -> None:
        super().__init__("gpt", precision)
        tokens, places, hidden = self.batch.inputs
        mine = slice(dist.get_rank(), None, RANKS)
        targets = self.batch.targets.view(tokens.shape)[mine].reshape(-1)
        self.batch = Batch((tokens[mine], places, hidden[mine]), targets)

    def step(self) -> None:
        """Forward, backward, all-reduce, the optimizer's step, and the losses of all ranks."""
        loss = self._loss = self.forward()
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        bucket = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(bucket, op=dist.ReduceOp.AVG)
        parts = torch.split(bucket, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        self.optimizer.step()
        losses = [torch.empty_like(loss) for _ in range(RANKS)]
        dist.all_gather(losses, loss.detach())
        self.losses = torch.stack(losses)

    def results(self) -> dict[str, Tensor]:
        """All that the step made on this rank."""
        return {**super().results(), "losses": self.losses}


def _contributing(change: Callable[[Tensor], Tensor], ranks: tuple[int, ...]) -> Any:
    """An all-reduce to which some ranks contribute `change` of a share of their elements."""

    def kernel(call: Call, strength: float) -> Any:
        (bucket,) = call.args[0]
        if strength and dist.get_rank() in ranks:
            part = bucket[: first_share(bucket.numel(), strength)]
            part.copy_(change(part))
        return call.right()

    return kernel


def _narrow(call: Call, strength: float) -> Any:
    """An all-reduce whose contributions and result have so many bits."""
    (bucket,) = call.args[0]
    rounded = to_bits(int(strength))
    bucket.copy_(rounded(bucket))
    result = call.right()
    bucket.copy_(rounded(bucket))
    return result


def _late(call: Call, strength: float) -> Any:
    """Rank 1 keeps its own contribution in a share of the result: it did not wait."""
    (bucket,) = call.args[0]
    own = bucket.clone()
    result = call.right()
    if dist.get_rank() == 1:
        count = first_share(bucket.numel(), strength)
        bucket[:count] = own[:count]
    return result


def _fault(name: str, summary: str, strengths: Any, kernel: Any) -> Fault:
    return Fault(name, "collective", "gpt", "c10d::allreduce_", summary, strengths, kernel)


FAULTS = (
    _fault(
        "sum for mean",
        "a share of the bucket is the sum of the ranks and not their mean",
        SHARES,
        _contributing(lambda part: part * 2, (0, 1)),
    ),
    _fault(
        "rank missing",
        "rank 1 contributes nothing to a share of the bucket",
        SHARES,
        _contributing(torch.zeros_like, (1,)),
    ),
    _fault(
        "rank twice",
        "rank 1 contributes twice to a share of the bucket",
        SHARES,
        _contributing(lambda part: part * 2, (1,)),
    ),
    _fault(
        "narrow reduction",
        "contributions and result have fewer bits than float32's 23",
        (Strength(10, "10 bits (fp16)"), Strength(9, "9 bits"), Strength(7, "7 bits (bf16)")),
        _narrow,
    ),
    _fault(
        "rank not waiting",
        "rank 1 keeps its own contribution in a share of the result",
        SHARES,
        _late,
    ),
)


@contextmanager
def group(rank: int, meeting: Path) -> Iterator[None]:
    """This process as one of two in a gloo group that meets at a file."""
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, init_method=f"file://{meeting}")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _entered(rank: int, work: Callable[..., None], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with group(rank, Path(folder, "meeting")):
        work(Path(folder), *args)


def on_two_ranks(work: Callable[..., None], *args: Any, after: Callable[[Path], None]) -> None:
    """Call `work(folder, *args)` in two processes that form a group, then `after(folder)`."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_entered, (work, folder, args), nprocs=RANKS)
        after(Path(folder))
