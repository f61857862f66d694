"""One of several processes that exchange tensors: python distributed_worker.py DIRECTORY SCENARIO…

What a scenario's function returns on this rank goes to DIRECTORY/SCENARIO-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from accel.distributed import all_gather, all_to_all, gather_shapes, ring_shift, start_shift
from tests.process_groups import process_group

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def rank() -> int:
    return distributed.get_rank()


def ranks() -> int:
    return distributed.get_world_size()


def tensor_of(one: int, *, length: int | None = None) -> Tensor:
    """What a rank starts with: as many rows as its number, the first rank none."""
    rows = one if length is None else length
    generator = torch.Generator().manual_seed(one)
    return torch.randn(rows, 3, generator=generator, dtype=torch.float64)


def shapes() -> list[tuple[int, int]]:
    return [(one, 3) for one in range(ranks())]


def weight_of(receiver: int, sender: int, shape: torch.Size) -> Tensor:
    """The gradient that `receiver` has for what comes from `sender`."""
    generator = torch.Generator().manual_seed(100 + 10 * receiver + sender)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def shift() -> Any:
    """Around the ring by each distance, backwards too, and the gradients on their way back."""
    found = {}
    for distance in range(-ranks(), ranks() + 1):
        before = (rank() - distance) % ranks()
        mine = [tensor_of(rank()).requires_grad_(), tensor_of(rank(), length=2).requires_grad_()]
        arrived = ring_shift(mine, distance=distance, shapes=[(before, 3), (2, 3)])
        grads = torch.autograd.grad(
            arrived, mine, [weight_of(rank(), before, one.shape) for one in arrived]
        )
        found[distance] = [one.detach() for one in arrived], list(grads)
    return found


def not_contiguous() -> Any:
    (arrived,) = ring_shift([tensor_of(rank(), length=4).t()])
    return arrived


def exchange() -> Any:
    """Rank r gives r + s rows to rank s."""
    mine = [tensor_of(rank(), length=rank() + s).requires_grad_() for s in range(ranks())]
    arrived = all_to_all(mine, [(s + rank(), 3) for s in range(ranks())])
    weights = [weight_of(rank(), s, one.shape) for s, one in enumerate(arrived)]
    grads = torch.autograd.grad(arrived, mine, weights, create_graph=True)
    return [one.detach() for one in arrived], [one.detach() for one in grads]


def exchange_nothing() -> Any:
    return all_to_all([torch.zeros(0, 3)] * ranks())


def gather() -> Any:
    mine = tensor_of(rank()).requires_grad_()
    known = gather_shapes(mine)
    arrived = all_gather(mine, shapes=known)
    weights = [weight_of(rank(), s, one.shape) for s, one in enumerate(arrived)]
    (grad,) = torch.autograd.grad(arrived, mine, weights)
    return [tuple(shape) for shape in known], [one.detach() for one in arrived], grad


def gather_twice_differentiable() -> Any:
    """The gradient of the squared gradient of a cube."""
    mine = tensor_of(rank(), length=2).requires_grad_()
    loss = torch.cat(all_gather(mine)).pow(3).sum()
    (first,) = torch.autograd.grad(loss, mine, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), mine)
    return first.detach(), second


def dtypes() -> Any:
    found = {}
    for dtype in DTYPES:
        mine = tensor_of(rank(), length=4).to(dtype)
        (shifted,) = ring_shift([mine])
        parts = all_to_all(list(mine.split(4 // ranks())))
        found[dtype] = shifted, torch.cat(parts), torch.cat(all_gather(mine))
    return found


def sums_in_the_order_of_ranks() -> Any:
    """Addends whose sum depends on their order, in bfloat16 on the order of rounding too."""
    mine = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([1.0, 2.0**-8, 2.0**-8, 2.0**-8][rank()], dtype=torch.bfloat16)
    gathered = all_gather(mine)
    (grad,) = torch.autograd.grad(gathered, mine, [weight.expand(1)] * ranks())
    return grad


def mistakes() -> Any:
    leaf = torch.zeros(2, requires_grad=True)
    calls = {
        "gradient": lambda: start_shift([leaf]),
        "count": lambda: all_to_all([leaf]),
        "shapes": lambda: all_gather(leaf, shapes=[(3,)] * ranks()),
        "number of shapes": lambda: ring_shift([leaf], shapes=[(2,), (2,)]),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except (RuntimeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    with process_group(Path(out) / "store"):
        for name in names:
            torch.save(globals()[name](), Path(out) / f"{name}-{rank()}.pt")
            distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
