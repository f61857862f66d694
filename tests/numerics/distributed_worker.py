"""One of two processes on gloo that record the same training in different parts.

    python distributed_worker.py DIRECTORY SCENARIO…

with RANK and WORLD_SIZE set. Each scenario writes the recording DIRECTORY/SCENARIO; what it finds
out besides goes to DIRECTORY/SCENARIO-RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from accel.numerics import record

ROWS, LENGTH, WIDTH, HIDDEN, CLASSES = 4, 5, 6, 8, 7
LEARNING_RATE = 0.01


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    is_checkpointed = False

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.is_checkpointed else block(x)
        return self.head(x)


def model() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, LENGTH, WIDTH), torch.randn(rows, LENGTH, CLASSES)


Loss = Callable[[Tensor, Tensor], Tensor]


def cubes(out: Tensor, target: Tensor) -> Tensor:
    """A loss whose backward computes a power of what the forward made anew."""
    return ((out - target) ** 3).mean()


def squares(out: Tensor, target: Tensor) -> Tensor:
    return (out - target).square().mean()


def train(
    net: nn.Module, x: Tensor, y: Tensor, *, foreach: bool = True, steps: int = 2,
    loss: Loss = F.mse_loss,
) -> None:  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, foreach=foreach)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()


def single(path: Path, *, level: Any = "sketch", rows: int = ROWS, loss: Loss = F.mse_loss) -> None:
    """The same training in one process."""
    net, given = model(), batch(rows)
    with record(net, path, level=level, steps=[0, 1]):
        train(net, *given, loss=loss)


# --- in two processes -----------------------------------------------------------------------------


def rank() -> int:
    return distributed.get_rank()


def part(tensors: tuple[Tensor, Tensor], index: int | None = None) -> tuple[Tensor, Tensor]:
    """The rows of this rank."""
    index = rank() if index is None else index
    rows = len(tensors[0]) // 2
    x, y = (tensor[index * rows : (index + 1) * rows] for tensor in tensors)
    return x, y


def ddp(net: nn.Module, **options: Any) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net, **options)


def sharded(net: Net) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in net.blocks:
        fully_shard(block)
    fully_shard(net)
    return net


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2,))


def tensor_parallel(net: Net) -> nn.Module:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    for block in net.blocks:
        parallelize_module(block, mesh(), {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return net


def sequence_parallel(net: Net) -> nn.Module:
    """Every parameter is a DTensor, and activations between the blocks are parts of the rows."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    for block in net.blocks:
        plan = {
            "norm": SequenceParallel(sequence_dim=0, use_local_output=False),
            "up": ColwiseParallel(input_layouts=Shard(0), use_local_output=False),
            "down": RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
        }
        parallelize_module(block, mesh(), plan)
    enter = PrepareModuleInput(
        input_layouts=(Replicate(),), desired_input_layouts=(Shard(0),), use_local_output=False
    )
    parallelize_module(net.blocks[0], mesh(), enter)
    head = ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate())
    parallelize_module(net, mesh(), {"head": head})
    return net


Wrap = Callable[[Net], nn.Module]


def recorded(
    out: Path, name: str, wrap: Wrap, given: tuple[Tensor, Tensor], *, level: Any = "sketch",
    foreach: bool = True, fault: Any = None, steps: int = 2, loss: Loss = F.mse_loss,
) -> nn.Module:  # fmt: skip
    net = wrap(model())
    with fault or nullcontext(), record(net, out / name, level=level, steps=[0, 1]):
        train(net, *given, foreach=foreach, steps=steps, loss=loss)
    return net


def state(net: nn.Module) -> dict[str, Tensor]:
    """This process's part of parameters and gradients."""
    found = {}
    for name, parameter in net.named_parameters():
        found[name], found[f"{name}.grad"] = parameter.detach(), parameter.grad
    return {name: getattr(t, "_local_tensor", t).clone() for name, t in found.items()}


def compared_with_unrecorded(
    out: Path, name: str, wrap: Wrap, given: tuple[Tensor, Tensor], *, foreach: bool = True
) -> None:
    """Record, train again without a recorder, and say which parameters and gradients differ."""
    first = state(recorded(out, name, wrap, given, foreach=foreach))
    net = wrap(model())
    train(net, *given, foreach=foreach)
    again = state(net)
    differing = [key for key in first if not torch.equal(first[key], again[key])]
    answer = {"compared": sorted(first), "differing": differing}
    (out / f"{name}-{rank()}.json").write_text(json.dumps(answer))


def same_ddp(out: Path, name: str) -> None:
    compared_with_unrecorded(out, name, ddp, part(batch()))


def ddp_cubes(out: Path, name: str) -> None:
    recorded(out, name, ddp, part(batch()), loss=cubes)


def ddp_squares(out: Path, name: str) -> None:
    recorded(out, name, ddp, part(batch()), loss=squares)


def same_fsdp(out: Path, name: str) -> None:
    compared_with_unrecorded(out, name, sharded, part(batch()))


def same_tp(out: Path, name: str) -> None:
    # foreach does not take DTensors and plain parameters together.
    compared_with_unrecorded(out, name, tensor_parallel, batch(), foreach=False)


def same_sp(out: Path, name: str) -> None:
    compared_with_unrecorded(out, name, sequence_parallel, batch())


def same_checkpointed(out: Path, name: str) -> None:
    def wrap(net: Net) -> nn.Module:
        net.is_checkpointed = True
        return ddp(net)

    compared_with_unrecorded(out, name, wrap, part(batch()))


def accumulated(out: Path, name: str) -> None:
    """Two halves of the batch are accumulated before gradients are reduced."""
    net: Any = sharded(model())
    x, y = part(batch())
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    with record(net, out / name, steps=[0]):
        for index in range(2):
            net.set_requires_gradient_sync(index == 1)
            rows = slice(index, index + 1)
            (F.mse_loss(net(x[rows]), y[rows]) / 2).backward()
        optimizer.step()


def same_views(out: Path, name: str) -> None:
    def wrap(net: Net) -> nn.Module:
        return ddp(net, gradient_as_bucket_view=True, static_graph=True)

    compared_with_unrecorded(out, name, wrap, part(batch()))


# --- batches that are not divided equally ---------------------------------------------------------


def _uneven(out: Path, name: str, *, is_stated: bool) -> None:
    """Rank 0 has 3 of 5 rows; each weighs its loss so that the mean over ranks is that of all."""
    net = ddp(model())
    x, y = batch(5)
    rows = slice(0, 3) if rank() == 0 else slice(3, 5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    with record(net, out / name, steps=[0]) as recorder:
        if is_stated:
            recorder.rows(rows.start, 5)
        loss = F.mse_loss(net(x[rows]), y[rows], reduction="sum") * 2 / y.numel()
        loss.backward()
        optimizer.step()


def uneven_stated(out: Path, name: str) -> None:
    _uneven(out, name, is_stated=True)


def uneven_unstated(out: Path, name: str) -> None:
    _uneven(out, name, is_stated=False)


# --- what goes wrong ------------------------------------------------------------------------------


def swapped_rows(out: Path, name: str) -> None:
    recorded(out, name, ddp, part(batch(), 1 - rank()))


def swapped_weights(out: Path, name: str) -> None:
    def wrap(net: Net) -> nn.Module:
        with torch.no_grad():
            weight = net.blocks[1].up.weight
            weight.copy_(weight.roll(HIDDEN // 2, 0))
        return tensor_parallel(net)

    recorded(out, name, wrap, batch(), foreach=False)


class Fault(TorchDispatchMode):
    """Changes what the n-th operator of a name makes, in this process."""

    def __init__(self, op: str, n: int, change: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.op, self.n, self.change = op, n, change

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ in ("DTensor", "AsyncCollectiveTensor") for kind in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        if func._schema.name == self.op and not _is_fake():
            self.n -= 1
            if self.n == -1:
                self.change(_written(args, result))
        return result


def _is_fake() -> bool:
    """Whether DTensor works out shapes, the first time it meets an operator."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _written(args: Any, result: Any) -> Tensor:
    """The tensor that an operator made; a collective's when it is there."""
    if isinstance(result, Tensor):
        return torch.ops._c10d_functional.wait_tensor(result)
    work = result[-1] if isinstance(result, tuple) else None
    if isinstance(work, torch.ScriptObject):
        distributed.Work.unbox(work).wait()
    written = args[0]
    while isinstance(written, list):
        written = written[-1]
    return written


def _bad(tensor: Tensor) -> None:
    """One part in a hundred, as a kernel that drops an addend may make."""
    tensor.mul_(1.01)


def _on_rank_1(op: str, n: int) -> Any:
    return Fault(op, n, _bad) if rank() == 1 else None


def fault_ddp_operator(out: Path, name: str) -> None:
    fault = _on_rank_1("aten::gelu", 1)
    recorded(out, name, ddp, part(batch()), level="full", fault=fault, steps=1)


def fault_tp_operator(out: Path, name: str) -> None:
    fault = _on_rank_1("aten::addmm", 1)
    recorded(out, name, tensor_parallel, batch(), level="full", foreach=False, fault=fault, steps=1)


def fault_ddp_allreduce(out: Path, name: str) -> None:
    """On both ranks alike, as if the sum were taken in a wrong way."""
    fault = Fault("c10d::allreduce_", 0, _bad)
    recorded(out, name, ddp, part(batch()), fault=fault, steps=1)


def fault_ddp_allreduce_on_one(out: Path, name: str) -> None:
    recorded(out, name, ddp, part(batch()), fault=_on_rank_1("c10d::allreduce_", 0), steps=1)


def fault_tp_allreduce(out: Path, name: str) -> None:
    fault = _on_rank_1("_c10d_functional::all_reduce", 1)
    recorded(out, name, tensor_parallel, batch(), foreach=False, fault=fault, steps=1)


def fault_fsdp_gather(out: Path, name: str) -> None:
    fault = _on_rank_1("c10d::_allgather_base_", 1)
    recorded(out, name, sharded, part(batch()), fault=fault, steps=1)


def fault_fsdp_gather_kept(out: Path, name: str) -> None:
    fault = _on_rank_1("c10d::_allgather_base_", 1)
    recorded(out, name, sharded, part(batch()), level="full", fault=fault, steps=1)


def fault_fsdp_scatter(out: Path, name: str) -> None:
    """gloo finishes a scatter with a copy."""
    fault = _on_rank_1("aten::copy_", 0)
    recorded(out, name, sharded, part(batch()), fault=fault, steps=1)


class Talk(nn.Module):
    """Collectives that programs call by themselves, on values of which ranks have rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        found = [x.detach()]
        with torch.no_grad():
            for op in (distributed.ReduceOp.SUM, distributed.ReduceOp.MAX):
                distributed.all_reduce(total := x.detach().clone(), op)
                found.append(total)
            distributed.broadcast(sent := x.detach().clone(), src=1)
            distributed.all_gather(listed := [torch.empty_like(x), torch.empty_like(x)], x)
            whole = torch.empty(2 * len(x), *x.shape[1:])
            distributed.all_gather_into_tensor(whole, x.detach())
            part = torch.empty(len(x), *x.shape[1:])
            distributed.reduce_scatter_tensor(part, whole * (1 + rank()))
            found += [sent, *listed, *whole.chunk(2), part]
        return x + torch.stack(found).sum(0)


def _talks(out: Path, name: str, fault: Any = None, level: Any = "sketch") -> None:
    torch.manual_seed(0)
    net = Talk()
    x, _ = part(batch())
    with fault or nullcontext(), record(net, out / name, data_parallel=(rank(), 2), level=level):
        net(x).sum().backward()


def talk(out: Path, name: str) -> None:
    _talks(out, name)


def talk_kept(out: Path, name: str) -> None:
    _talks(out, name, level="full")


def talk_lost(out: Path, name: str) -> None:
    """The second of the tensors that are gathered into a list."""
    _talks(out, name, Fault("c10d::allgather_", 0, _bad) if rank() == 0 else None)


def talk_largest(out: Path, name: str) -> None:
    _talks(out, name, _on_rank_1("c10d::allreduce_", 1), level="full")


def talk_broadcast(out: Path, name: str) -> None:
    _talks(out, name, Fault("c10d::broadcast_", 0, _bad) if rank() == 0 else None)


def fault_initial_copy(out: Path, name: str) -> None:
    def wrap(net: Net) -> nn.Module:
        wrapped = ddp(net)
        if rank() == 1:
            with torch.no_grad():
                net.head.weight[0, 0] += 0.01
        return wrapped

    recorded(out, name, wrap, part(batch()), steps=1)


def raises(out: Path, name: str) -> None:
    """Rank 1 fails in its second step; rank 0 then fails in a collective."""
    _ends_badly(out, name, by=_raise)


def killed(out: Path, name: str) -> None:
    _ends_badly(out, name, by=lambda: os.kill(os.getpid(), signal.SIGKILL))


def _raise() -> None:
    raise KeyError("rank 1 has no such key")


def _ends_badly(out: Path, name: str, *, by: Callable[[], None]) -> None:
    net = ddp(model())
    x, y = part(batch())
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    with record(net, out / name, steps=[0, 1]):
        for step in range(2):
            optimizer.zero_grad()
            output = net(x)
            if step == 1 and rank() == 1:
                by()
            F.mse_loss(output, y).backward()
            optimizer.step()


@contextmanager
def process_group(out: Path, name: str) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{out / name}.store", rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]), timeout=timedelta(seconds=60),
    )  # fmt: skip
    try:
        yield
    finally:
        distributed.destroy_process_group()


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    # fully_shard warns of a module that returns a view; it is not changed in place here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    with process_group(Path(out), names[0]):
        for name in names:
            globals()[name](Path(out), name)
            distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
