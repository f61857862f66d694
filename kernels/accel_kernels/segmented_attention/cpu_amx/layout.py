"""A call as the C code takes it: one block of memory, of which a part changes from call to call.

For a few hundred tokens laying a call out takes longer than computing it. So what follows from
shapes, mask and options is laid out apart, and can serve all calls of a kind; addresses and strides
are then written over a copy.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels import philox
from accel_kernels.masks import Sizes, visibility
from accel_kernels.segmented_attention.call import Call, Dropout, sizes_of

_EVERYTHING, _CAUSAL, _INTERVALS = range(3)
# Multiplications that are worth a thread more, which may have to be woken or started.
_PER_THREAD = 1 << 18


class _Rows(ctypes.Structure):
    """`struct rows` of native/call.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("row", ctypes.c_int64),
    )


class _Dense(ctypes.Structure):
    """`struct dense` of native/call.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("key", ctypes.c_int64),
    )


class _Dropout(ctypes.Structure):
    """`struct dropout` of native/call.h."""

    _fields_ = (
        ("factor", ctypes.c_double),
        *((name, ctypes.c_int64) for name in (
            "threshold", "seed", "heads", "queries", "keys", "batch", "head", "row", "key",
        )),
    )  # fmt: skip


class Memory(ctypes.Structure):
    """`struct call` of native/call.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (
            "batch", "heads", "key_heads", "queries", "keys", "width", "value_width",
            "kind", "intervals", "mask_batch", "slope_batch", "place", "threads",
        )),
        ("bounds", ctypes.c_void_p),
        ("dense", _Dense),
        ("dropout", _Dropout),
        ("slopes", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        *((name, _Rows) for name in ("query", "key", "value", "out")),
        ("lse", ctypes.c_void_p),
        *((name, _Rows) for name in ("grad_out", "grad_query", "grad_key", "grad_value")),
        ("grad_lse", ctypes.c_void_p),
    )  # fmt: skip


class Layout(NamedTuple):
    """All of a call but where its tensors are.

    Attributes:
        template: The bytes of a `Memory`, without threads and the places of tensors in `memory`.
        threads: Most threads that it is worth.
        kept: Tensors that the template points into.
        is_packed: C takes the heads of a group as rows of one.
    """

    template: bytes
    threads: int
    kept: tuple[Tensor, ...]
    is_packed: bool = False

    def memory(self, lse: Tensor, *tensors: Tensor) -> Memory:
        """What C is called with.

        Args:
            lse: Contiguous.
            *tensors: `query, key, value, out` and, for a backward, `grad_out` and the three
                gradients; each with rows that follow one another in memory.
        """
        block = bytearray(self.template)
        _pack_number(block, _THREADS, min(torch.get_num_threads(), self.threads))
        _pack_rows(
            block, _FIRST, *_place(tensors[0]), *_place(tensors[1]), *_place(tensors[2]),
            *_place(tensors[3]), lse.data_ptr(),
        )  # fmt: skip
        if len(tensors) > 4:
            _pack_rows(
                block, _SECOND, *_place(tensors[4]), *_place(tensors[5]), *_place(tensors[6]),
                *_place(tensors[7]), 0,
            )  # fmt: skip
        return Memory.from_buffer(block)


def _place(tensor: Tensor) -> tuple[int, ...]:
    return tensor.data_ptr(), *tensor.stride()[:3]


_pack_number = struct.Struct("=q").pack_into
# Four `struct rows` and what follows them: the log-sum-exp, or its gradient.
_pack_rows = struct.Struct("=17q").pack_into
_THREADS, _FIRST, _SECOND = Memory.threads.offset, Memory.query.offset, Memory.grad_out.offset


def lay_out(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Layout:
    """The layout of a call and of all with these shapes, dtypes and options.

    A mask, bias or seed is read now and must not change before the call is made.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        call: Without biases but `alibi`.
    """
    sizes = sizes_of(query, key)
    seen = visibility(call.mask, sizes, query.device)
    work = sizes.batch * sizes.heads * sizes.query_length * sizes.key_length
    laid = Memory(
        batch=sizes.batch,
        heads=sizes.heads,
        key_heads=key.shape[1],
        queries=sizes.query_length,
        keys=sizes.key_length,
        width=query.shape[3],
        value_width=value.shape[3],
        kind=_CAUSAL if seen.causal else _EVERYTHING,
        intervals=1,
        mask_batch=1,
        scale=call.scale,
        softcap=call.softcap or 0.0,
    )
    kept = []
    if seen.intervals is not None:
        bounds = seen.intervals.contiguous()
        laid.kind, laid.bounds = _INTERVALS, bounds.data_ptr()
        laid.intervals, _, laid.mask_batch, _ = bounds.shape
        kept.append(bounds)
    if seen.dense is not None:
        dense = aligned(seen.dense)
        strides = (s if n > 1 else 0 for n, s in zip(dense.shape, dense.stride(), strict=True))
        laid.dense = _Dense(dense.data_ptr(), *strides)
        kept.append(dense)
    if call.dropout is not None:
        laid.dropout = _dropout(call.dropout, sizes)
    if call.bias is not None:
        assert call.bias.kind == "alibi", "the spec refuses other biases"  # noqa: S101
        slopes = call.bias.tensor.to(torch.float32).contiguous()
        laid.slopes, laid.place = slopes.data_ptr(), call.bias.place(sizes)
        laid.slope_batch = slopes.shape[0] if slopes.dim() == 2 else 1
        kept.append(slopes)
    threads = 1 + work * (key.shape[3] + 1) // _PER_THREAD
    return Layout(bytes(laid), threads, tuple(kept))


def aligned(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension, which rows are read along, as it is in memory.

    A negative view, such as the imaginary part of a conjugate, is not what lies there.
    """
    if tensor.is_neg():  # asked first: the operator costs a microsecond
        tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _dropout(dropout: Dropout, sizes: Sizes) -> _Dropout:
    """Dropout as C reads it; the threshold is that of `philox.keep`."""
    seed = int(dropout.seed) & (1 << 64) - 1
    return _Dropout(
        1.0 / (1.0 - dropout.p),
        round(dropout.p * (1 << philox.WORD_BITS)),
        seed - (1 << 64) if seed >> 63 else seed,
        *(dropout.sizes or sizes[1:]),
        *dropout.first,
    )
