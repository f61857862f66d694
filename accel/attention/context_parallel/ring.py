"""Ring attention: queries stay, keys and values go around, and states merge.

Liu, Zaharia, Abbeel: Ring Attention with Blockwise Transformers, arXiv 2310.01889, with the exact
merge of `(out, lse)` states and the backward of FlashAttention from the global ones. Keys and
values travel in their own dtype; outputs and gradients are summed in float32 (float64 for float64),
in an order fixed by the layout alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accel import dispatch
from accel.attention.context_parallel.kernels import implementation_for, of_length
from accel.attention.context_parallel.pairs import Pair, PairMasks, Whole, bias_place, pairs_of
from accel.distributed import start_shift
from accel_kernels.segmented_attention.arguments import NAME
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.differentiable import Implementation
from accel_kernels.segmented_attention.state import accumulation_dtype, merge

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ring:
    """One call's way around the ring.

    Attributes:
        whole: The attention.
        masks: Of this rank.
        group: Of the ring.
        rank: In the ring.
        head: The first of this rank's query heads among all.
        kernels: For each pair, by its source and its place among that source's pairs. The backward
            takes that of the forward.
    """

    whole: Whole
    masks: PairMasks
    group: ProcessGroup | None
    rank: int
    head: int
    kernels: dict[tuple[int, int], Implementation] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Ranks in the ring."""
        return self.whole.layout.ranks

    def choose(self, query: Tensor, key: Tensor, value: Tensor, backend: str | None) -> None:
        """Choose the kernels, before anything is sent.

        Args:
            query: This rank's, or one that is like it but for its length.
            key: Likewise.
            value: Likewise.
            backend: A kernel's name, or None to choose.

        Raises:
            BackendError: A pair has none.
        """
        place = (
            backend, *dispatch.choice_in_force(NAME), query.dtype, query.shape[3], value.shape[3],
            key.shape[1], torch.is_grad_enabled(), query.requires_grad, key.requires_grad,
            value.requires_grad, torch.are_deterministic_algorithms_enabled(),
            self.whole.call.scale, self.whole.call.softcap, self.whole.call.segment_size,
            self.whole.call.dropout is None,
        )  # fmt: skip
        plain = self.whole.call.bias is None
        if plain and place in self.masks.kernels:
            self.kernels.update(self.masks.kernels[place])
            return
        for source, _, _ in self.stops():
            for index, pair in enumerate(self.pairs(source, self.whole.call)):
                rows, keys = (piece.length for piece in pair.at)
                self.kernels[source, index] = implementation_for(
                    of_length(query, rows), of_length(key, keys), of_length(value, keys),
                    pair.call, backend,
                )  # fmt: skip
        if plain:
            self.masks.kernels[place] = dict(self.kernels)

    def stops(self) -> list[tuple[int, int, int | None]]:
        """Where keys are looked at: their home, how far they have come, how far they go next."""
        distances = self.masks.distances
        following = [b - a for a, b in itertools.pairwise(distances)]
        return [
            ((self.rank - distance) % self.size, distance, onward)
            for distance, onward in zip(distances, [*following, None], strict=True)
        ]

    def pairs(self, source: int, call: Call) -> list[Pair]:
        """The calls to make with the keys of `source`."""
        whole = self.whole._replace(call=call)
        return pairs_of(self.masks, whole, self.rank, source, self.head)

    def shapes(self, held: Sequence[Tensor], source: int) -> list[tuple[int, ...]]:
        """Of keys and values, or of their gradients, of another rank."""
        length = self.whole.key_layout.lengths[source]
        return [(*tensor.shape[:2], length, tensor.shape[3]) for tensor in held]


def ring_attention(query: Tensor, key: Tensor, value: Tensor, ring: Ring) -> tuple[Tensor, Tensor]:
    """Attention of this rank's queries over the keys of all.

    Args:
        query: `[B, H, T_local, D]`.
        key: `[B, H_kv, S_local, D]`.
        value: `[B, H_kv, S_local, D_v]`.
        ring: The rest.

    Returns:
        `out` `[B, H, T_local, D_v]` in the query's dtype, `lse` `[B, H, T_local]`; differentiable
        once in all three and in the bias.
    """
    bias = None if ring.whole.call.bias is None else ring.whole.call.bias.tensor
    tensors = (tensor.contiguous() for tensor in (query, key, value))
    found: tuple[Tensor, Tensor] = _RingAttention.apply(ring, *tensors, bias)
    return found


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ring: Ring, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, lse = _forward(ring, query, key, value)
        ctx.ring = ring
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
        query, key, value, bias, out, lse = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            found = _backward(ctx.ring, grad_out, grad_lse, query, key, value, bias, out, lse)
        if torch.is_grad_enabled():  # create_graph=True
            given = grad_out, query, key, value
            found = [None if g is None else _Undifferentiable.apply(g, *given) for g in found]
        return (None, *found)


class _Undifferentiable(torch.autograd.Function):
    """The identity, with an error for a derivative, which would otherwise silently be 0."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *given: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError("ring attention has no second derivative; method='ulysses' has one")


def _forward(ring: Ring, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(query.dtype)
    shape = query.shape[:-1]
    total = torch.zeros((*shape, value.shape[-1]), dtype=dtype, device=query.device)
    total_lse = torch.full(shape, -torch.inf, dtype=dtype, device=query.device)
    held = [key, value]
    for source, _, onward in ring.stops():
        # The next keys travel while these are used.
        coming = None if onward is None else _start(ring, held, source, onward)
        for index, pair in enumerate(ring.pairs(source, ring.whole.call)):
            q, k, v = query[:, :, pair.rows], *(t[:, :, pair.keys] for t in held)
            out, lse = ring.kernels[source, index].forward(q, k, v, pair.call)
            at = (slice(None), slice(None), pair.rows)
            total[at], total_lse[at] = merge(total[at], total_lse[at], out.to(dtype), lse)
        if coming is not None:
            held = coming.wait()
    return total.to(query.dtype), total_lse


def _backward(
    ring: Ring,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> list[Tensor | None]:
    """A second round: the gradients of keys and values travel with them, and then home."""
    dtype = accumulation_dtype(query.dtype)
    call = ring.whole.call
    if call.bias is not None and bias is not None:
        call = call._replace(bias=call.bias._replace(tensor=bias))
    grad_query = torch.zeros_like(query, dtype=dtype)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)
    held, behind = [key, value], None
    for source, distance, onward in ring.stops():
        coming = None if onward is None else _start(ring, held, source, onward)
        mine = [torch.zeros_like(tensor, dtype=dtype) for tensor in held]
        for index, pair in enumerate(ring.pairs(source, call)):
            at, keys_at = ((slice(None), slice(None), s) for s in (pair.rows, pair.keys))
            q, k, v = query[at], held[0][keys_at], held[1][keys_at]
            kernel = ring.kernels[source, index]
            lse_part = None if grad_lse is None else grad_lse[at]
            part = kernel.backward(grad_out[at], lse_part, q, k, v, out[at], lse[at], pair.call)
            grad_query[at] += part.query
            mine[0][keys_at] += part.key
            mine[1][keys_at] += part.value
            if grad_bias is not None and call.bias is not None and part.bias is not None:
                grad_bias[bias_place(call.bias, *pair.at)] += part.bias
        if behind is not None:  # what the ranks before this one have found for these keys
            mine = [before + own for before, own in zip(behind.wait(), mine, strict=True)]
        behind = _start(ring, mine, source, -distance if onward is None else onward)
        if coming is not None:
            held = coming.wait()
    assert behind is not None  # noqa: S101
    grad_key, grad_value = behind.wait()
    found = grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)
    return [*found, None if bias is None or grad_bias is None else grad_bias.to(bias.dtype)]


def _start(ring: Ring, held: Sequence[Tensor], source: int, distance: int) -> Any:
    arriving = ring.shapes(held, (source - distance) % ring.size)
    return start_shift(held, ring.group, distance=distance, shapes=arriving)
