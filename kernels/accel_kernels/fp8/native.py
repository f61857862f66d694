"""The codec in C, for CPUs: how it is compiled and called. It gives the bits of the plain form."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.compiled import CompileError, compiled_library
from accel_kernels.fp8.formats import E4M3, E5M2, HIF8, Format
from accel_kernels.fp8.values import value_of
from accel_kernels.openmp import TEAM_HEADER, use_torch_threads

_logger = logging.getLogger("accel")
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-trapping-math", "-pthread")
# As numbered in native/numbers.h and native/encode.h.
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FORMATS = {E4M3: 0, E5M2: 1, HIF8: 2}
# Values of a task, and those that are worth a thread of their own.
_TASK, _PER_THREAD = 1 << 16, 1 << 19
# Values that are encoded on their own are cut into rows, which threads share.
_ROW = 4096


class _Call(ctypes.Structure):
    """`struct call` of native/codec.c."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in (
            "kind", "format", "rows", "columns", "stride", "high", "wide", "threads", "band",
            "as_nan",
        )),
        ("scales", ctypes.c_void_p),
        ("scale_stride", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("code_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("largest", "table", "decoded")),
    )  # fmt: skip


class Blocks(NamedTuple):
    """A matrix `[M, K]`, of values or of codes, whose blocks of `high` by `wide` share a scale."""

    values: Tensor
    high: int
    wide: int


def is_usable(*tensors: Tensor, codes: bool = False) -> bool:
    """Whether C can read these: plain tensors of a CPU, which nobody traces.

    Args:
        *tensors: Of which the first decides by its dtype.
        codes: Whether the first are codes.
    """
    first = tensors[0].dtype
    if first not in ((torch.uint8,) if codes else _KINDS):
        return False
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
            return False
        if not tensor.numel() or tensor.layout != torch.strided or tensor.is_neg():
            return False
    return _library() is not None


def largest(blocks: Blocks) -> Tensor:
    """The largest finite magnitude of each block, float32 `[ceil(M / high), ceil(K / wide)]`."""
    blocks, turned = _in_memory_order(blocks)
    rows, columns = blocks.values.shape
    found = torch.zeros(-(-rows // blocks.high), -(-columns // blocks.wide))
    call = _call(blocks, E4M3)
    call.largest, call.scale_stride = found.data_ptr(), found.shape[1]
    _loaded().accel_fp8_largest(call)
    return found.t() if turned else found


def encode(blocks: Blocks, form: Format, factors: Tensor, as_nan: bool) -> Tensor:
    """Codes of values times their block's factor; uint8 `[M, K]`, in memory as the values are."""
    blocks, turned = _in_memory_order(blocks)
    factors = (factors.t() if turned else factors).contiguous()
    codes = torch.empty(blocks.values.shape, dtype=torch.uint8)
    call = _call(blocks, form)
    call.scales, call.scale_stride = factors.data_ptr(), factors.shape[1]
    call.codes, call.code_stride, call.as_nan = codes.data_ptr(), codes.shape[1], as_nan
    _loaded().accel_fp8_encode(call)
    return codes.t() if turned else codes


def encode_all(values: Tensor, form: Format) -> Tensor:
    """Codes of values as they are, any shape."""
    flat = values.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    one = torch.ones(1, 1)
    codes = [
        encode(Blocks(part, *part.shape), form, one, as_nan=False).view(-1)
        for part in (flat[:whole].view(-1, _ROW), flat[whole:].view(1, -1))
        if part.numel()
    ]
    return (codes[0] if len(codes) == 1 else torch.cat(codes)).view(values.shape)


def decode(blocks: Blocks, form: Format, scales: Tensor) -> Tensor:
    """Values of codes times their block's scale; float32 `[M, K]`, in memory as the codes are."""
    blocks, turned = _in_memory_order(blocks)
    scales = (scales.t() if turned else scales).contiguous()
    codes = blocks.values
    values = torch.empty(codes.shape, dtype=torch.float32)
    call = _call(blocks, form)
    call.scales, call.scale_stride = scales.data_ptr(), scales.shape[1]
    call.codes, call.code_stride = codes.data_ptr(), codes.stride(0)
    table = _table(form)
    call.table, call.decoded = table.data_ptr(), values.data_ptr()
    _loaded().accel_fp8_decode(call)
    return values.t() if turned else values


def _in_memory_order(blocks: Blocks) -> tuple[Blocks, bool]:
    """With contiguous rows, and whether it was transposed for that."""
    values, high, wide = blocks
    if values.stride(1) == 1 or values.shape[1] == 1:
        return blocks, False
    if values.stride(0) == 1:
        return Blocks(values.t(), wide, high), True
    return Blocks(values.contiguous(), high, wide), False


def _call(blocks: Blocks, form: Format) -> _Call:
    values, high, wide = blocks
    rows, columns = values.shape
    band = max(_TASK // columns, 1)
    if wide == 1:
        band = min(band, high)
    return _Call(
        values=values.data_ptr(),
        kind=_KINDS.get(values.dtype, 0),
        format=_FORMATS[form],
        rows=rows,
        columns=columns,
        stride=values.stride(0),
        high=high,
        wide=wide,
        threads=min(torch.get_num_threads(), 1 + values.numel() // _PER_THREAD),
        band=1 << (band.bit_length() - 1),  # so that it divides a block of 32 or 128 rows
    )


@functools.cache
def _table(form: Format) -> Tensor:
    return torch.tensor([value_of(code, form) for code in range(256)], dtype=torch.float32)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be compiled, which is logged once."""
    try:
        source = Path(__file__).parent / "native" / "codec.c"
        made = compiled_library(source, "the eight-bit codec", _FLAGS, [TEAM_HEADER])
        library = ctypes.CDLL(str(made))
    except OSError as error:  # CompileError among them
        reason = error if isinstance(error, CompileError) else f"it cannot be loaded: {error}"
        _logger.warning("eight-bit codes are made by torch, slower than by C: %s", reason)
        return None
    for name in ("largest", "encode", "decode"):
        function = getattr(library, f"accel_fp8_{name}")
        function.argtypes, function.restype = (ctypes.POINTER(_Call),), None
    use_torch_threads(library)
    return library


def _loaded() -> ctypes.CDLL:
    library = _library()
    assert library is not None, "is_usable says so"  # noqa: S101
    return library
