"""Attention over a sequence that several devices share: the public call."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from accel.attention.api import draw_seed
from accel.attention.context_parallel.arguments import Options, terms_of, whole_call
from accel.attention.context_parallel.kernels import Kernel, attend, kernel_for_call, of_length
from accel.attention.context_parallel.pairs import PairMasks, Whole
from accel.attention.context_parallel.ranks import RankGrid, Stance, agree
from accel.attention.context_parallel.ring import Ring, ring_attention
from accel.attention.context_parallel.sharding import SequenceLayout
from accel.attention.context_parallel.ulysses import to_heads, to_sequence
from accel.attention.state import AttentionState
from accel.errors import BackendError
from accel_kernels.masks import Dense, Mask, RowIntervals, visibility
from accel_kernels.segmented_attention.arguments import cast_for_autocast, under_autocast
from accel_kernels.segmented_attention.call import Bias

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Method = Literal["ring", "ulysses", "ring+ulysses"]


@overload
def context_parallel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: SequenceLayout,
    key_layout: SequenceLayout | None = None,
    mesh: DeviceMesh | ProcessGroup | None = None,
    method: Method | None = None,
    mask: Mask | Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    softcap: float | None = None,
    bias: Bias | Tensor | None = None,
    segment_size: int | None = None,
    return_lse: Literal[False] = False,
    backend: str | None = None,
    checked: bool = True,
) -> Tensor: ...


@overload
def context_parallel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: SequenceLayout,
    key_layout: SequenceLayout | None = None,
    mesh: DeviceMesh | ProcessGroup | None = None,
    method: Method | None = None,
    mask: Mask | Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    softcap: float | None = None,
    bias: Bias | Tensor | None = None,
    segment_size: int | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
    checked: bool = True,
) -> AttentionState: ...


def context_parallel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: SequenceLayout,
    key_layout: SequenceLayout | None = None,
    mesh: DeviceMesh | ProcessGroup | None = None,
    method: Method | None = None,
    mask: Mask | Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    softcap: float | None = None,
    bias: Bias | Tensor | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    checked: bool = True,
) -> Tensor | AttentionState:
    """`segmented_attention` of a sequence of which every rank holds a part.

    The result is that of the single process, whatever the layout and the number of ranks, up to the
    rounding of float32 sums; so are masks, biases and dropout, which are those of the *whole*
    sequence and given alike on every rank.

    `ring` (arXiv 2310.01889): queries stay, keys and values go around; any number of ranks, memory
    of a rank independent of their number. `ulysses` (arXiv 2309.14509): heads are exchanged for
    positions; fewer bytes, at most as many ranks as heads. `ring+ulysses` (USP, arXiv 2405.07719):
    the product, over a mesh of two dimensions.

    Every rank must call it, and run its backward if any does: one that holds no positions too.

    Args:
        query: `[B, H, T_local, D]`: the positions that `layout` gives this rank, in that order
            (`shard` cuts them out).
        key: `[B, H_kv, S_local, D]`, by `key_layout`.
        value: `[B, H_kv, S_local, D_v]`.
        layout: Of the queries. `SequenceLayout.zigzag` balances causal masks.
        key_layout: Of keys and values; None: as the queries.
        mesh: A `DeviceMesh` or a process group; None: all processes. A mesh of two dimensions is
            (`ring`, `ulysses`), by these names or in this order, the ranks of the second being
            those that lie next to one another; rank `(r, u)` is rank `r * U + u` of the layouts.
        method: None: `ring+ulysses` on a mesh of two dimensions, else `ring`.
        mask: Over `[T, S]`, the whole lengths; a tensor is `[.., T, S]`, and on this device.
        is_causal: Adds `causal()`.
        scale: As in `segmented_attention`, like the rest below.
        dropout_p: Probability of dropping a probability.
        dropout_seed: The same seed drops the same as in a single process. None: the first rank's
            draw from torch's CPU generator holds for all (every rank draws).
        softcap: Of the scores.
        bias: A `Bias`, or a tensor that broadcasts to `[B, H, T, S]`. Every rank gets the gradient
            of its own part: add them over the ranks, as for any parameter.
        segment_size: Of the kernel.
        return_lse: Return the log-sum-exp too, `[B, H, T_local]`.
        backend: A kernel's name. A ring needs one that has its forward and backward apart.
        checked: Exchange a digest of the arguments first, so that a mistake on one rank is an error
            on every rank. It costs one small collective; without it ranks that differ wait for one
            another until the group's timeout.

    Returns:
        `[B, H, T_local, D_v]` in the query's dtype, or an `AttentionState`. Differentiable; a ring
        only once. Gradients are those of the sum of all ranks' losses. Not traced by
        `torch.compile`, which breaks its graph here.

    Raises:
        TypeError: As `segmented_attention`, and for a mesh that is none.
        ValueError: As `segmented_attention`; shapes do not fit the layouts; heads cannot be dealt
            out; or, with `checked`, the ranks differ, or another rank has one of these errors.
        accel.BackendError: No kernel can serve the call.
    """
    options = Options(
        method, mask, is_causal, scale, dropout_p, dropout_seed, softcap, bias, segment_size,
        return_lse, backend,
    )  # fmt: skip
    key_layout = layout if key_layout is None else key_layout
    attend_apart = _attention
    if torch.compiler.is_compiling():
        # Collectives, and choices by the content of masks, are not for a compiler to trace. Not as
        # a decorator, which would import all of torch's compiler into every program.
        attend_apart = torch.compiler.disable(_attention)
    out, lse = attend_apart((query, key, value), layout, key_layout, mesh, options, checked)
    return AttentionState(out, lse) if return_lse and lse is not None else out


def _attention(
    tensors: tuple[Tensor, Tensor, Tensor],
    layout: SequenceLayout,
    key_layout: SequenceLayout,
    mesh: DeviceMesh | ProcessGroup | None,
    options: Options,
    checked: bool,
) -> tuple[Tensor, Tensor | None]:
    """Check, agree with the other ranks, compute."""
    grid = RankGrid.of(mesh, options.method)
    if options.method is None:
        options = options._replace(method="ring+ulysses" if grid.ulysses_size > 1 else "ring")
    tensors = cast_for_autocast(*tensors)
    draws = options.dropout_seed is None and options.dropout_p != 0.0
    drawn = int(draw_seed()) if draws else 0
    whole, part, problem = None, None, None
    try:
        if draws and not checked:
            raise ValueError(
                "dropout without a dropout_seed needs checked=True, which gives all ranks one seed"
            )
        whole = whole_call(grid, tensors, layout, key_layout, options)
        part = _part_of(grid, whole, tensors, options.backend)
    except (TypeError, ValueError, BackendError) as error:
        if not checked:
            raise
        problem = error
    if checked:
        terms = {} if whole is None else terms_of(whole, tensors, options)
        drawn = agree(grid, Stance(terms, problem, drawn))
    assert whole is not None  # noqa: S101
    assert part is not None  # noqa: S101
    kind = tensors[0].device.type
    off = torch.autocast(kind, enabled=False) if under_autocast(kind) else contextlib.nullcontext()
    with off:
        return _compute(grid, whole, part.seeded(drawn) if draws else part, *tensors)


@dataclass(frozen=True)
class _Part:
    """What this rank computes, between the exchanges of Ulysses if there are any.

    Attributes:
        whole: The attention over the whole sequence, of this rank's heads.
        ring: How, if there is one; else
        kernel: what computes it here.
    """

    whole: Whole
    ring: Ring | None
    kernel: Kernel | None

    def seeded(self, seed: int) -> _Part:
        """The same with another seed of dropout."""
        call = self.whole.call
        if call.dropout is None:
            return self
        whole = self.whole._replace(call=call._replace(dropout=call.dropout._replace(seed=seed)))
        ring = None if self.ring is None else replace(self.ring, whole=whole)
        return _Part(whole, ring, self.kernel)


def _part_of(
    grid: RankGrid, whole: Whole, tensors: tuple[Tensor, Tensor, Tensor], backend: str | None
) -> _Part:
    """Choose every kernel, so that a refusal comes before anything is sent."""
    query, key, value = tensors
    degree = grid.ulysses_size
    heads, key_heads = query.shape[1] // degree, max(1, key.shape[1] // degree)
    head = grid.ulysses_rank * heads
    if degree > 1:
        whole = _of_heads(whole, head, heads, degree, query.device)
    if whole.call.dropout is not None:
        dropout = whole.call.dropout._replace(first=(0, head, 0, 0))
        whole = whole._replace(call=whole.call._replace(dropout=dropout))
    rows, keys = whole.layout.length, whole.key_layout.length
    like = (
        of_length(query, rows, heads), of_length(key, keys, key_heads),
        of_length(value, keys, key_heads),
    )  # fmt: skip
    if grid.ring_size == 1:
        return _Part(whole, None, kernel_for_call(*like, whole.call, backend))
    masks = _pair_masks(whole, grid.ring_rank, query.device)
    ring = Ring(whole, masks, grid.ring, grid.ring_rank, head)
    ring.choose(*like, backend)
    return _Part(whole, ring, None)


def _compute(
    grid: RankGrid, whole: Whole, part: _Part, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor | None]:
    if grid.ulysses_size == 1:
        return _of_one_group(part, query, key, value)
    first = grid.ring_rank * grid.ulysses_size
    pieces, key_pieces = (
        one.pieces[first : first + grid.ulysses_size] for one in (whole.layout, whole.key_layout)
    )
    group, rank = grid.ulysses, grid.ulysses_rank
    out, lse = _of_one_group(part, *to_heads(query, key, value, pieces, key_pieces, group, rank))
    if not whole.call.return_lse or lse is None:
        return to_sequence(out, pieces, group, rank), None
    # Together, so that two exchanges cannot be taken one for the other in the backward.
    both = torch.cat([out.to(lse.dtype), lse.unsqueeze(-1)], -1)
    both = to_sequence(both, pieces, group, rank)
    return both[..., :-1].to(out.dtype), both[..., -1]


def _of_one_group(
    part: _Part, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor | None]:
    if part.ring is not None:
        return ring_attention(query, key, value, part.ring)
    assert part.kernel is not None  # noqa: S101
    return attend(part.kernel, query, key, value, part.whole.call)


def _of_heads(whole: Whole, head: int, count: int, degree: int, device: torch.device) -> Whole:
    """What a rank that has `count` heads from `head` on computes; `degree` ranks to a group."""
    call, sizes = whole.call, whole.sizes
    if call.bias is not None:
        tensor = call.bias.tensor
        dim = {"dense": 1, "alibi": tensor.dim() - 1, "relative": 0}[call.bias.kind]
        if tensor.shape[dim] != 1:
            tensor = tensor.narrow(dim, head, count)
        call = call._replace(bias=call.bias._replace(tensor=tensor))
    if call.mask is not None and "dense" in call.mask.kinds():
        seen = visibility(call.mask, sizes, device)
        assert seen.dense is not None  # noqa: S101
        dense = seen.dense if seen.dense.shape[1] == 1 else seen.dense[:, head : head + count]
        mask: Mask = Dense(dense)
        if seen.intervals is not None:
            mask = RowIntervals(seen.intervals) & mask
        call = call._replace(mask=mask)
    return Whole(
        sizes._replace(heads=count),
        whole.layout.grouped(degree),
        whole.key_layout.grouped(degree),
        call,
    )


# Which pieces see which: the same for every layer of a model, and dear to find out.
_remembered: OrderedDict[tuple[Any, ...], PairMasks] = OrderedDict()
_REMEMBERED_SIZE = 16


def _pair_masks(whole: Whole, rank: int, device: torch.device) -> PairMasks:
    mask = whole.call.mask
    if mask is not None and mask.key() is None:
        return PairMasks(whole, rank, device)
    key = None if mask is None else mask.key()
    place = (key, whole.sizes, whole.layout, whole.key_layout, rank, device)
    if place not in _remembered:
        while len(_remembered) >= _REMEMBERED_SIZE:
            _remembered.popitem(last=False)
        _remembered[place] = PairMasks(whole, rank, device)
    return _remembered[place]
