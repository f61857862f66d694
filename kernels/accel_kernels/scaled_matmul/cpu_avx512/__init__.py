"""Compiled products of eight-bit matrices for CPUs with AVX512-BF16.

The C sources are in `native/`; they are compiled with this machine's compiler on first use. Codes
are decoded to bfloat16, which holds each exactly, and summed in float32. Powers of two that differ
along K are multiplied into the decoded values, other scales into partial sums. The same bits for
any number of threads. Partial sums below 1.2e-38 count as zero, by the rules of the instruction.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from accel_kernels import fp8
from accel_kernels.avx512 import BF16_FLAGS, TRANSPOSE_HEADER, why_unfit
from accel_kernels.compiled import CompileError, compiled_library
from accel_kernels.fp8 import Format, Quantized, decode
from accel_kernels.openmp import TEAM_HEADER, use_torch_threads
from accel_kernels.scaled_matmul.operators import register, run
from accel_kernels.scaled_matmul.stretches import Folded, folded, stretch_starts

_WHAT = "the product of eight-bit matrices"
# Stretches that are summed in one piece; longer ones are cut, which costs nothing.
_LONGEST = 256
# Multiplications that are worth a thread more, which may have to be woken or started.
_PER_THREAD = 1 << 24


class _Operand(ctypes.Structure):
    """`struct operand` of native/operand.h."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("high", ctypes.c_int64),
        ("scale_stride", ctypes.c_int64),
        ("shifts", ctypes.c_void_p),
        ("shift_stride", ctypes.c_int64),
        ("shift_wide", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    """`struct call` of native/matmul.c."""

    _fields_ = (
        ("a", _Operand),
        ("b", _Operand),
        *((name, ctypes.c_int64) for name in ("depth", "stretches", "threads", "scaled")),
        *((name, ctypes.c_void_p) for name in ("starts", "a_block", "b_block", "bias", "out")),
    )


@functools.cache
def why_absent() -> str | None:
    """Why this machine cannot run it; None if it can. Compiles it, the first time."""
    if (reason := why_unfit(bf16=True)) is not None:
        return reason
    try:
        _library()
    except CompileError as error:
        return str(error)
    except OSError as error:
        return f"what was compiled cannot be loaded: {error}"
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).parent / "native" / "matmul.c"
    shared = [Path(fp8.__file__).parent / "native" / "threads.h", TEAM_HEADER, TRANSPOSE_HEADER]
    library = ctypes.CDLL(str(compiled_library(source, _WHAT, BF16_FLAGS, shared)))
    use_torch_threads(library)
    library.accel_scaled_matmul.argtypes = (ctypes.POINTER(_Call),)
    library.accel_scaled_matmul.restype = ctypes.c_int
    return library


@functools.cache
def _values(form: Format) -> Tensor:
    """The bfloat16 of each of the 256 codes."""
    return decode(torch.arange(256).to(torch.uint8), form, torch.bfloat16)


def scaled_matmul(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Tensor:
    """See `reference.scaled_matmul`; sums of more than 256 of K are always promoted."""
    return run("cpu_avx512", a, b, bias, out_dtype, promote)


def _compute(
    a: Quantized, b: Quantized, bias: Tensor | None, out_dtype: torch.dtype, promote: int | None
) -> Tensor:
    rows, depth = a.codes.shape
    out = torch.empty(rows, b.codes.shape[0], dtype=torch.float32)
    if not out.numel() or not depth:
        out.zero_()
        return (out if bias is None else out + bias.to(torch.float32)).to(out_dtype)
    powers = folded(a), folded(b)
    steps = [depth if power else _step(item) for item, power in zip((a, b), powers, strict=True)]
    starts = stretch_starts(depth, (steps[0], steps[1]), min(promote or _LONGEST, _LONGEST))
    if any(start % _least_block(a, b) for start in starts[:-1]):
        # A stretch would begin within a vector that has two powers of two.
        powers, steps = (None, None), [_step(a), _step(b)]
        starts = stretch_starts(depth, (steps[0], steps[1]), min(promote or _LONGEST, _LONGEST))
    kept = [torch.tensor(starts)]
    kept += [torch.tensor([start // step for start in starts[:-1]]) for step in steps]
    added = None if bias is None else bias.detach().to(torch.float32).resolve_neg().contiguous()
    call = _Call(
        a=_operand(a, powers[0], kept),
        b=_operand(b, powers[1], kept),
        depth=depth,
        stretches=len(starts) - 1,
        threads=min(torch.get_num_threads(), 1 + out.numel() * depth // _PER_THREAD),
        scaled=any(step < depth for step in steps),
        starts=kept[0].data_ptr(),
        a_block=kept[1].data_ptr(),
        b_block=kept[2].data_ptr(),
        bias=None if added is None else added.data_ptr(),
        out=out.data_ptr(),
    )
    if _library().accel_scaled_matmul(call):
        raise MemoryError("there is no memory for the decoded matrices of an eight-bit product")
    del kept, added  # not sooner
    return out.to(out_dtype)


register("cpu_avx512", _compute)


def _step(item: Quantized) -> int:
    return item.scaling.block(*item.codes.shape)[1]


def _least_block(a: Quantized, b: Quantized) -> int:
    return min(_step(a), _step(b), 32)


def _operand(item: Quantized, power: Folded | None, kept: list[Tensor]) -> _Operand:
    codes = item.codes if item.codes.stride(1) == 1 else item.codes.contiguous()
    high, wide = item.scaling.block(*codes.shape)
    scales = (item.scales if power is None else power.scales).contiguous()
    shifts = None if power is None else power.shifts.contiguous()
    values = _values(item.scaling.format)
    kept += [codes, scales] if shifts is None else [codes, scales, shifts]
    return _Operand(
        codes=codes.data_ptr(),
        rows=codes.shape[0],
        stride=codes.stride(0),
        values=values.data_ptr(),
        scales=scales.data_ptr(),
        high=high,
        scale_stride=scales.shape[1],
        shifts=None if shifts is None else shifts.data_ptr(),
        shift_stride=0 if shifts is None else shifts.shape[1],
        shift_wide=wide,
    )
