"""One call of `npu_fusion_attention`: its arguments, checked, and its layouts as views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from accel_kernels.vendor.npu.values import refuse, require_choice, require_floats, require_shape

LAYOUTS = ("BNSD", "BSND", "BSH", "SBH", "TND")
STATISTICS = 8
"""How often a row's maximum and sum are repeated in the operator's outputs."""


@dataclass(frozen=True)
class FusionCall:
    """What both directions of the operator need to know besides the tensors of the formula."""

    operator: str
    head_num: int
    layout: str
    pse: Tensor | None = None
    atten_mask: Tensor | None = None
    scale: float = 1.0
    keep_prob: float = 1.0
    pre_tokens: int = 2147483647
    next_tokens: int = 2147483647
    prefix: Sequence[int] | None = None
    actual_seq_qlen: Sequence[int] | None = None
    actual_seq_kvlen: Sequence[int] | None = None
    sparse_mode: int = 0
    softmax_layout: str = ""
    sink: Tensor | None = None
    pse_type: int = 1


Span = tuple[int, int]
"""First token of a sequence (0 unless packed) and its length."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of one call."""

    heads: int
    kv_heads: int
    query_spans: list[Span]
    key_spans: list[Span]
    numels: int

    @property
    def batch(self) -> int:
        """How many sequences."""
        return len(self.query_spans)

    @property
    def query_lengths(self) -> list[int]:
        """Lengths of the sequences of queries."""
        return [length for _, length in self.query_spans]

    @property
    def key_lengths(self) -> list[int]:
        """Lengths of the sequences of keys."""
        return [length for _, length in self.key_spans]


def check_arguments(call: FusionCall, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless the dtypes and plain values of a call are those that the documents allow."""
    operator = call.operator
    require_floats(operator, query=query, key=key, value=value)
    for name, tensor in (("key", key), ("value", value), ("pse", call.pse)):
        if tensor is not None and tensor.dtype != query.dtype:
            raise TypeError(f"{operator}: {name} is {tensor.dtype}, query {query.dtype}; give one")
    require_choice(operator, "input_layout", call.layout, LAYOUTS)
    require_choice(operator, "softmax_layout", call.softmax_layout, ("", "TND"))
    require_choice(operator, "pse_type", call.pse_type, (0, 1, 2, 3))
    varlen = call.layout == "TND"
    if call.softmax_layout and not varlen:
        raise ValueError(f"{operator}: softmax_layout='TND' needs input_layout='TND'")
    modes = (0, 1, 2, 3, 4, 6, 7, 8) if varlen else (0, 1, 2, 3, 4, 5, 6)
    require_choice(operator, f"sparse_mode (in {call.layout})", call.sparse_mode, modes)
    if not 0.0 < call.keep_prob <= 1.0:
        raise ValueError(f"{operator}: keep_prob={call.keep_prob}; give a value in (0, 1]")
    if not 1 <= call.head_num <= 256:
        raise ValueError(f"{operator}: head_num={call.head_num}; give a number from 1 to 256")
    if not varlen and (call.actual_seq_qlen or call.actual_seq_kvlen):
        raise ValueError(f"{operator}: actual_seq_qlen and actual_seq_kvlen need 'TND'")
    if call.prefix is not None and call.sparse_mode not in (5, 6):
        raise ValueError(f"{operator}: prefix needs sparse_mode 5 or 6, not {call.sparse_mode}")
    if call.sink is not None:
        require_shape(operator, "sink", call.sink, (call.head_num,))
        wanted = (torch.float32, torch.float64)
        require_choice(operator, "the dtype of sink", call.sink.dtype, wanted)
    if call.pse is not None:
        _check_pse(call)


def _check_pse(call: FusionCall) -> None:
    if call.sparse_mode in (7, 8):
        raise ValueError(f"{call.operator}: pse is not supported in sparse_mode {call.sparse_mode}")
    if call.pse_type in (2, 3):
        why = "no document gives the sign and the square root of the slopes it makes"
        refuse(call.operator, "pse_type", call.pse_type, why)
    if call.layout == "TND":
        why = "TND takes only compressed ALiBi, whose missing rows no document defines"
        refuse(call.operator, "pse", tuple(call.pse.shape) if call.pse is not None else None, why)


def shapes_of(call: FusionCall, query: Tensor, key: Tensor, value: Tensor) -> Shapes:
    """The sizes of a call.

    Raises:
        ValueError: If the three tensors, `head_num` and the lengths do not belong together.
    """
    operator, layout, heads = call.operator, call.layout, call.head_num
    dims = 3 if layout in ("BSH", "SBH", "TND") else 4
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != dims:
            raise ValueError(
                f"{operator}: {name} has {tensor.ndim} dimensions; {layout} has {dims}"
            )
    depth, kv_heads = _heads(call, query, key)
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{operator}: {heads} heads of query are no multiple of {kv_heads} of key")
    batch_key, length_key = _batch_and_length(layout, key)
    if _batch_and_length(layout, value) != (batch_key, length_key):
        raise ValueError(f"{operator}: key {list(key.shape)} and value {list(value.shape)} differ")
    depth_value = value.shape[-1] // kv_heads if layout in ("BSH", "SBH") else value.shape[-1]
    expected = value.shape[-1] == depth_value * kv_heads if layout in ("BSH", "SBH") else True
    if not expected or not 1 <= depth_value <= depth <= 768:
        raise ValueError(
            f"{operator}: query has {depth} values a head, value {depth_value}; "
            f"give 1 <= value's <= query's <= 768"
        )
    if layout == "TND":
        return _varlen_shapes(call, query, key, kv_heads)
    batch, length = _batch_and_length(layout, query)
    if batch != batch_key or min(batch, length, length_key) < 1:
        raise ValueError(
            f"{operator}: query {list(query.shape)} and key {list(key.shape)}; "
            f"give one batch size and lengths of at least 1"
        )
    numels = batch * heads * length * length_key
    return Shapes(heads, kv_heads, [(0, length)] * batch, [(0, length_key)] * batch, numels)


def _heads(call: FusionCall, query: Tensor, key: Tensor) -> tuple[int, int]:
    """Values a head, and the heads of the key."""
    if call.layout in ("BSH", "SBH"):
        depth, rest = divmod(query.shape[-1], call.head_num)
        if rest or not depth or key.shape[-1] % depth:
            raise ValueError(
                f"{call.operator}: head_num={call.head_num} does not divide the hidden sizes "
                f"{query.shape[-1]} of query and {key.shape[-1]} of key"
            )
        return depth, key.shape[-1] // depth
    axis = {"BNSD": 1, "BSND": 2, "TND": 1}[call.layout]
    if query.shape[axis] != call.head_num or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"{call.operator}: head_num={call.head_num}, query {list(query.shape)}, "
            f"key {list(key.shape)} in {call.layout}; give one head size, and query's heads"
        )
    return query.shape[-1], key.shape[axis]


def _batch_and_length(layout: str, tensor: Tensor) -> tuple[int, int]:
    batch_axis, length_axis = {
        "BNSD": (0, 2), "BSND": (0, 1), "BSH": (0, 1), "SBH": (1, 0), "TND": (1, 0),
    }[layout]  # fmt: skip
    return tensor.shape[batch_axis], tensor.shape[length_axis]


def _varlen_shapes(call: FusionCall, query: Tensor, key: Tensor, kv_heads: int) -> Shapes:
    ends_q, ends_k = list(call.actual_seq_qlen or ()), list(call.actual_seq_kvlen or ())
    if not ends_q or len(ends_q) != len(ends_k):
        raise ValueError(
            f"{call.operator}: TND needs actual_seq_qlen and actual_seq_kvlen of one length, not "
            f"{len(ends_q)} and {len(ends_k)}"
        )
    starts_q, starts_k = [0, *ends_q[:-1]], [0, *ends_k[:-1]]
    ends = zip(ends_q, starts_q, ends_k, starts_k, strict=True)
    numels = call.head_num * sum((q - q0) * (k - k0) for q, q0, k, k0 in ends)
    used = len(ends_q)
    while used and ends_q[used - 1] == 0 and ends_k[used - 1] == 0:
        used -= 1
    lengths_q = _lengths(call, "actual_seq_qlen", ends_q[:used])
    lengths_k = _lengths(call, "actual_seq_kvlen", ends_k[:used])
    idle = len(ends_q) - used
    for name, total, tokens in (
        ("actual_seq_qlen", sum(lengths_q), query.shape[0]),
        ("actual_seq_kvlen", sum(lengths_k), key.shape[0]),
    ):
        if total > tokens or (total < tokens and not idle):
            raise ValueError(
                f"{call.operator}: {name} ends at {total}, but there are {tokens} tokens"
            )
    if any(q and not k for q, k in zip(lengths_q, lengths_k, strict=True)):
        raise ValueError(f"{call.operator}: a sequence has queries and no keys")
    q_spans, k_spans = (
        [*zip([0, *accumulate(lengths)], lengths, strict=False), *[(0, 0)] * idle]
        for lengths in (lengths_q, lengths_k)
    )
    return Shapes(call.head_num, kv_heads, q_spans, k_spans, numels)


def _lengths(call: FusionCall, name: str, ends: list[int]) -> list[int]:
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if any(length < 0 for length in lengths):
        raise ValueError(f"{call.operator}: {name}={ends}; give ends that never fall")
    return lengths


def sequence(layout: str, tensor: Tensor, heads: int, span: Span, index: int) -> Tensor:
    """A view `[N, S, D]` of one sequence: writing to it writes to `tensor`."""
    if layout == "TND":
        return tensor[span[0] : sum(span)].transpose(0, 1)
    if layout == "BNSD":
        return tensor[index]
    if layout == "BSND":
        return tensor[index].transpose(0, 1)
    item = tensor.select(0 if layout == "BSH" else 1, index)
    split: Tensor = item.unflatten(-1, (heads, -1))
    return split.transpose(0, 1)


def statistic(call: FusionCall, tensor: Tensor, span: Span, index: int) -> Tensor:
    """A view `[N, S, 8]` of one sequence in `softmax_max` or `softmax_sum`.

    Under TND the shape is `[T, N, 8]` whatever the order. With `softmax_layout="TND"` the order is
    that of the shape; by default each sequence lies as `[N, S, 8]`, one after the other ("NTD").
    """
    if call.layout != "TND":
        return tensor[index]
    if call.softmax_layout == "TND":
        return tensor[span[0] : sum(span)].transpose(0, 1)
    heads = call.head_num
    rows = tensor.view(-1, STATISTICS)[span[0] * heads : sum(span) * heads]
    return rows.view(heads, span[1], STATISTICS)


def statistics_shape(call: FusionCall, shapes: Shapes, query: Tensor) -> tuple[int, ...]:
    """`[B, N, Sq, 8]`, or `[T, N, 8]` under TND."""
    if call.layout == "TND":
        return (query.shape[0], shapes.heads, STATISTICS)
    return (shapes.batch, shapes.heads, shapes.query_lengths[0], STATISTICS)
