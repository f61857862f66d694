"""Ring and gather-with-gradient over `torch.distributed`.

Only torch's own collectives move data: `batch_isend_irecv`, `all_to_all_single` and
`all_gather_single` (once `all_gather_into_tensor`), which gloo, nccl and hccl have. What is added
here is what they lack: gradients, parts of different sizes, and sums whose order does not depend on
who arrives first.

One convention for every gradient: it is that of the *sum of all ranks' losses*. A loss that every
rank computes alike therefore counts once per rank; divide it by their number.

Every rank of a group must make the same calls in the same order, backwards included: a rank whose
loss does not depend on a gathered tensor still has to run the backward of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such names
    from torch.distributed import ProcessGroup, Work

Shape = Sequence[int]


def ring_shift(
    tensors: Sequence[Tensor],
    group: ProcessGroup | None = None,
    *,
    distance: int = 1,
    shapes: Sequence[Shape] | None = None,
) -> list[Tensor]:
    """Send tensors `distance` ranks on and receive those of the rank as far behind.

    Args:
        tensors: Any shapes and dtypes, on the group's device.
        group: None: all processes.
        distance: Rank `r` sends to rank `r + distance`, modulo the number of ranks.
        shapes: Of what arrives, if it differs from what is sent; the dtypes are the same.

    Returns:
        The tensors of rank `r - distance`. Differentiable: gradients travel back.
    """
    wanted = _shapes(tensors, shapes)
    if distance % distributed.get_world_size(group) == 0:
        return list(tensors)
    return list(_RingShift.apply(group, distance, wanted, *tensors))


class Shift(NamedTuple):
    """Tensors on their way around the ring.

    Attributes:
        work: What is still to be done.
        received: Where it arrives; not to be read before `wait`.
        shapes: What arrives.
        sent: Kept, since the transport may still be reading it.
    """

    work: list[Work]
    received: list[Tensor]
    shapes: list[torch.Size]
    sent: list[Tensor]

    def wait(self) -> list[Tensor]:
        """The tensors that arrived."""
        for one in self.work:
            one.wait()
        return [
            tensor[: shape.numel()].view(shape)
            for tensor, shape in zip(self.received, self.shapes, strict=True)
        ]


def start_shift(
    tensors: Sequence[Tensor],
    group: ProcessGroup | None = None,
    *,
    distance: int = 1,
    shapes: Sequence[Shape] | None = None,
) -> Shift:
    """As `ring_shift`, without waiting for it and without gradients.

    Returns:
        What to `wait` for, while something else is computed.

    Raises:
        RuntimeError: A tensor would need its gradient to travel back.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError("start_shift has no gradient: use ring_shift, or torch.no_grad()")
    wanted = _shapes(tensors, shapes)
    size, rank = distributed.get_world_size(group), distributed.get_rank(group)
    # Empty tensors travel as one element: transports differ in what they make of none.
    sent = [_at_least_one(tensor) for tensor in tensors]
    if distance % size == 0:
        return Shift([], sent, wanted, sent)
    received = [
        tensor.new_empty(max(1, shape.numel())) for tensor, shape in zip(sent, wanted, strict=True)
    ]
    after, before = (rank + distance) % size, (rank - distance) % size
    transfers = [
        transfer
        for out, into in zip(sent, received, strict=True)
        for transfer in (
            distributed.P2POp(distributed.isend, out, group=group, group_peer=after),
            distributed.P2POp(distributed.irecv, into, group=group, group_peer=before),
        )
    ]
    return Shift(distributed.batch_isend_irecv(transfers), received, wanted, sent)


def all_to_all(
    tensors: Sequence[Tensor],
    shapes: Sequence[Shape] | None = None,
    group: ProcessGroup | None = None,
) -> list[Tensor]:
    """Give one tensor to every rank and take one from each, in a single exchange.

    Args:
        tensors: One per rank, for that rank, of one dtype; sizes may differ, and be 0.
        shapes: Of what comes from each rank, if not as what is sent to it.
        group: None: all processes.

    Returns:
        One tensor from every rank, this one included. Differentiable at any order.

    Raises:
        ValueError: There is not one tensor per rank.
    """
    size = distributed.get_world_size(group)
    if len(tensors) != size:
        raise ValueError(
            f"all_to_all needs one tensor for each of {size} ranks, not {len(tensors)}"
        )
    return list(_AllToAll.apply(group, _shapes(tensors, shapes), *tensors))


def all_gather(
    tensor: Tensor, group: ProcessGroup | None = None, *, shapes: Sequence[Shape] | None = None
) -> list[Tensor]:
    """Every rank's tensor, on every rank.

    Args:
        tensor: Any shape.
        group: None: all processes.
        shapes: Of every rank's tensor, where they differ (`gather_shapes` finds them out).

    Returns:
        One tensor per rank. Differentiable at any order: the gradient of a rank's tensor is the sum
        of those that all ranks have for it, added in the order of the ranks, in float32 at least.

    Raises:
        ValueError: There is not one shape per rank, or this rank's is another than it says.
    """
    size, rank = distributed.get_world_size(group), distributed.get_rank(group)
    wanted = [torch.Size(shape) for shape in shapes] if shapes else [tensor.shape] * size
    if len(wanted) != size or wanted[rank] != tensor.shape:
        raise ValueError(
            f"all_gather of {tuple(tensor.shape)} on rank {rank} of {size} does not fit the shapes "
            f"{[tuple(shape) for shape in wanted]}"
        )
    return list(_AllGather.apply(group, wanted, tensor))


def gather_shapes(tensor: Tensor, group: ProcessGroup | None = None) -> list[torch.Size]:
    """The shape of every rank's tensor; they have as many dimensions. Waits for the device."""
    mine = torch.tensor([tensor.shape], dtype=torch.int64, device=tensor.device)
    return [torch.Size(row.tolist()) for row in gather_rows(mine, group).unbind(0)]


def gather_rows(row: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """`[1, N]` of every rank, as `[ranks, N]`, without gradients."""
    rows = row.new_empty(distributed.get_world_size(group), row.shape[1])
    # The older name warns from torch 2.13 on.
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    gather(rows, row, group=group)
    return rows


class _RingShift(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: ProcessGroup | None,
        distance: int,
        shapes: list[torch.Size],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.distance = group, distance
        ctx.shapes = [tensor.shape for tensor in tensors]
        return tuple(start_shift(tensors, group, distance=distance, shapes=shapes).wait())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        found = _RingShift.apply(ctx.group, -ctx.distance, ctx.shapes, *grads)
        return (None, None, None, *found)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, group: ProcessGroup | None, shapes: list[torch.Size], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.shapes = group, [tensor.shape for tensor in tensors]
        sent = torch.cat([tensor.reshape(-1) for tensor in tensors])
        sizes = [shape.numel() for shape in shapes]
        received = sent.new_empty(sum(sizes))
        given = [tensor.numel() for tensor in tensors]
        distributed.all_to_all_single(received, sent, sizes, given, group=group)
        parts = received.split(sizes)
        # Copies, so that no output is a view of another's memory.
        return tuple(part.view(shape).clone() for part, shape in zip(parts, shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, None, *_AllToAll.apply(ctx.group, ctx.shapes, *grads))


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, group: ProcessGroup | None, shapes: list[torch.Size], tensor: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.shape = group, tensor.shape
        longest = max(1, *(shape.numel() for shape in shapes))
        flat = tensor.reshape(-1)
        padded = torch.nn.functional.pad(flat, (0, longest - flat.numel()))
        rows = gather_rows(padded.unsqueeze(0), group)
        pairs = zip(rows.unbind(0), shapes, strict=True)
        return tuple(row[: shape.numel()].view(shape).clone() for row, shape in pairs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        parts = all_to_all(grads, [ctx.shape] * len(grads), ctx.group)
        return None, None, _sum(parts)


def _sum(parts: list[Tensor]) -> Tensor:
    dtype = parts[0].dtype
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    total = parts[0].to(wide)
    for part in parts[1:]:
        total = total + part.to(wide)
    return total.to(dtype)


def _shapes(tensors: Sequence[Tensor], shapes: Sequence[Shape] | None) -> list[torch.Size]:
    if shapes is None:
        return [tensor.shape for tensor in tensors]
    if len(shapes) != len(tensors):
        raise ValueError(f"{len(shapes)} shapes are given for {len(tensors)} tensors")
    return [torch.Size(shape) for shape in shapes]


def _at_least_one(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1).contiguous()  # an expanded vector stays one in reshape
    return flat if flat.numel() else flat.new_zeros(1)
