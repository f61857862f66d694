"""Compiled attention in bfloat16 and float32 for CPUs with AVX512-BF16, forward and backward.

The C sources are in `native/`; they are compiled with this machine's compiler on first use, once
for each dtype. Products have float32 sums over the whole length, also those of the gradients of
keys and values, whose error in bfloat16 therefore does not grow with it. The results are the same
bits for any number of threads and whatever else is in the batch. In products of bfloat16 numbers
below 1.2e-38 count as zero, by the rules of the instruction.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from accel_kernels import philox
from accel_kernels.avx512 import FLAGS, TRANSPOSE_HEADER, why_unfit
from accel_kernels.compiled import CompileError, compiled_library
from accel_kernels.masks import Causal, Mask, Sizes, visibility
from accel_kernels.openmp import TEAM_HEADER, use_torch_threads
from accel_kernels.segmented_attention.call import Bias, Call, Dropout, sizes_of
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation, run

_WHAT = "attention"
_NUMBERS = {torch.bfloat16: (), torch.float32: ("-DACCEL_FLOAT32",)}
_EVERYTHING, _CAUSAL, _INTERVALS = range(3)
# Rows of a packed group of heads, up to which it is packed.
_FEW_ROWS = 32
# Multiplications that are worth a thread more, which may have to be woken or started.
_PER_THREAD = 1 << 21


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


class _Call(ctypes.Structure):
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


@functools.cache
def why_absent() -> str | None:
    """Why this machine cannot run it; None if it can. Compiles it, the first time."""
    if (reason := why_unfit()) is not None:
        return reason
    try:
        for dtype in _NUMBERS:
            _library(dtype)
    except CompileError as error:
        return str(error)
    except OSError as error:
        return f"what was compiled cannot be loaded: {error}"
    return None


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    # An exported program names its kernel, and asks nobody whether another machine can run it.
    if (reason := why_unfit()) is not None:
        raise RuntimeError(
            f"segmented_attention's backend cpu_amx {reason}; for other machines export a program "
            "with backend='cpu'"
        )
    source = Path(__file__).parent / "native" / "attention.c"
    flags = (*_NUMBERS[dtype], *FLAGS, "-mbmi2", "-lm")
    library = ctypes.CDLL(
        str(compiled_library(source, _WHAT, flags, [TEAM_HEADER, TRANSPOSE_HEADER]))
    )
    use_torch_threads(library)
    for function in (library.accel_attention_forward, library.accel_attention_backward):
        function.argtypes = (ctypes.POINTER(_Call),)
        function.restype = ctypes.c_int
    return library


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension, which rows are read along, as it is in memory.

    A negative view, such as the imaginary part of a conjugate, is not what lies there.
    """
    if tensor.is_neg():  # asked first: the operator costs a microsecond
        tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _rows(tensor: Tensor) -> _Rows:
    batch, head, row, _ = tensor.stride()
    return _Rows(tensor.data_ptr(), batch, head, row)


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


def _laid_out(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[_Call, list[Tensor]]:
    """The call's sizes, mask, bias and inputs for C, and the tensors that must live as long."""
    sizes = sizes_of(query, key)
    seen = visibility(call.mask, sizes, query.device)
    work = sizes.batch * sizes.heads * sizes.query_length * sizes.key_length
    laid = _Call(
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
        threads=min(torch.get_num_threads(), 1 + work * (key.shape[3] + 1) // _PER_THREAD),
        scale=call.scale,
        softcap=call.softcap or 0.0,
        query=_rows(query),
        key=_rows(key),
        value=_rows(value),
    )
    kept = []
    if seen.intervals is not None:
        bounds = seen.intervals.contiguous()
        laid.kind, laid.bounds = _INTERVALS, bounds.data_ptr()
        laid.intervals, _, laid.mask_batch, _ = bounds.shape
        kept.append(bounds)
    if seen.dense is not None:
        dense = _aligned(seen.dense)
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
    return laid, kept


def _checked(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory for attention's copies of queries, keys and values")


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp.

    Args:
        query: `[B, H, T, D]`, bfloat16 or float32, on the CPU.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`.
        call: Without biases but `alibi`; `segment_size` changes nothing.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype and `lse` `[B, H, T]` in float32.
    """
    shape = query.shape
    if _sees_all(query, key, call):
        # A group's heads as query rows: their keys are read once.
        query = query.reshape(shape[0], key.shape[1], -1, shape[3])
        call = call._replace(mask=None)
    query, key, value = _aligned(query), _aligned(key), _aligned(value)
    # In the call's shape: autograd lets nobody change a view in place.
    out = query.new_empty((*shape[:3], value.shape[3]))
    lse = query.new_empty(shape[:3], dtype=torch.float32)
    if lse.numel():
        laid, kept = _laid_out(query, key, value, call)
        laid.out = _rows(out.view(*query.shape[:3], value.shape[3]))
        laid.lse = lse.data_ptr()
        _checked(_library(query.dtype).accel_attention_forward(laid))
        del kept  # not sooner
    return out, lse


def _sees_all(query: Tensor, key: Tensor, call: Call) -> bool:
    """Whether a few queries of grouped heads see every key, and nothing tells the heads apart."""
    if query.shape[1] == key.shape[1] or key.numel() == 0 or call.bias or call.dropout:
        return False
    heads, length = query.shape[1:3]
    if call.mask is None:
        return heads // key.shape[1] * length <= _FEW_ROWS
    return length == 1 and type(call.mask) is Causal and call.mask.align == "bottom_right"


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
) -> Gradients:
    """Gradients of `forward`.

    Args:
        grad_out: As `out`.
        grad_lse: As `lse`, or None for zeros.
        query: As given to `forward`; `key`, `value` and `call` too.
        key: See `query`.
        value: See `query`.
        out: What `forward` returned.
        lse: What `forward` returned.
        call: See `query`.
    """
    query, key, value = _aligned(query), _aligned(key), _aligned(value)
    grad_out, out, lse = _aligned(grad_out), _aligned(out), lse.contiguous()
    grads = [item.new_empty(item.shape) for item in (query, key, value)]
    found = Gradients(grads[0], grads[1], grads[2], None)
    if not lse.numel():
        return Gradients(grads[0], grads[1].zero_(), grads[2].zero_(), None)
    laid, kept = _laid_out(query, key, value, call)
    laid.out, laid.lse, laid.grad_out = _rows(out), lse.data_ptr(), _rows(grad_out)
    laid.grad_query, laid.grad_key, laid.grad_value = map(_rows, grads)
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
        laid.grad_lse = grad_lse.data_ptr()
    _checked(_library(query.dtype).accel_attention_backward(laid))
    del kept  # not sooner
    return found


IMPLEMENTATION = Implementation("cpu_amx", forward, backward)


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: Dropout | None = None,
    softcap: float | None = None,
    bias: Bias | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by compiled code.

    Args:
        query: `[B, H, T, D]`, bfloat16 or float32, on the CPU.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`.
        mask: Any.
        scale: Of the scores; `1/sqrt(D)` if None.
        dropout: Of probabilities; None: none.
        softcap: `softcap * tanh(score / softcap)`; None: no cap.
        bias: `alibi`, whose slopes get no gradient; None: none.
        segment_size: Changes nothing: its own blocks always fit into a core's cache.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype; `lse` `[B, H, T]` in float32, or None.
    """
    call = Call(
        mask,
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        softcap,
        bias,
        dropout,
        segment_size,
        return_lse,
    )
    return run(IMPLEMENTATION, query, key, value, call)
