"""The sketch in C: how it is compiled and called. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from accel_kernels.compiled import CompileError, compiled_library
from accel_kernels.sketch.layout import BYTES

_logger = logging.getLogger("accel")
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-lm")
# A call of less than some 10 µs keeps the interpreter's lock; to give it back costs as much.
_LONG = 1 << 15

# As numbered in sketch.c.
_PLAIN = (
    "float64", "float32", "bfloat16", "float16", "int8", "uint8", "int16", "uint16", "int32",
    "uint32", "int64", "uint64", "bool",
)  # fmt: skip


class _Float8(NamedTuple):
    """An 8-bit floating-point dtype: the names are as torch's.

    Attributes:
        fraction: Bits of the fraction.
        bias: Of the exponent.
        signed: Whether the first bit is a sign.
        special: `ieee`: the largest exponent is infinity and NaN; `fn`: only all ones are NaN;
            `fnuz`: only the code of negative zero is NaN.
    """

    fraction: int
    bias: int
    special: str
    signed: bool = True

    def value(self, code: int) -> float:
        negative, code = (bool(code >> 7), code & 127) if self.signed else (False, code)
        largest = 127 if self.signed else 255
        exponent, fraction = code >> self.fraction, code & ((1 << self.fraction) - 1)
        if self.special == "fnuz" and negative and not code:
            return math.nan
        if self.special == "fn" and code == largest:
            return math.nan
        if self.special == "ieee" and exponent == largest >> self.fraction:
            return math.nan if fraction else -math.inf if negative else math.inf
        if exponent or not self.signed:
            size = math.ldexp(fraction + (1 << self.fraction), exponent - self.fraction - self.bias)
        else:
            size = math.ldexp(fraction, 1 - self.fraction - self.bias)
        return -size if negative else size


FLOAT8 = {
    "float8_e4m3fn": _Float8(3, 7, "fn"),
    "float8_e4m3fnuz": _Float8(3, 8, "fnuz"),
    "float8_e5m2": _Float8(2, 15, "ieee"),
    "float8_e5m2fnuz": _Float8(2, 16, "fnuz"),
    "float8_e8m0fnu": _Float8(0, 127, "fn", signed=False),
}
KINDS = {name: kind for kind, name in enumerate((*_PLAIN, *FLOAT8))}

Buffer = ctypes.c_char * BYTES


class Native(NamedTuple):
    """The compiled functions, once holding the interpreter's lock and once without it."""

    quick: ctypes.PyDLL
    long: ctypes.CDLL

    def whole(
        self, address: int, kind: int, count: int, buffer: ctypes.Array[ctypes.c_char]
    ) -> None:
        """The sketch of `count` contiguous elements that are no part of another tensor."""
        library = self.quick if count < _LONG else self.long
        library.accel_sketch_whole(address, kind, count, buffer)

    def part(
        self,
        address: int,
        kind: int,
        shape: Sequence[int],
        strides: Sequence[int],
        part: tuple[Sequence[int], Sequence[int]],
        buffer: ctypes.Array[ctypes.c_char],
    ) -> None:
        """The sketch of any elements of a whole; strides are in elements."""
        whole, offset = part
        dims = len(shape)
        steps = [1] * dims
        for dim in range(dims - 1, 0, -1):
            steps[dim - 1] = steps[dim] * whole[dim]
        index = sum(first * step for first, step in zip(offset, steps, strict=True))
        sizes = (ctypes.c_int64 * (3 * dims))(*shape, *strides, *steps)
        if self.long.accel_sketch_part(address, kind, dims, sizes, index, buffer):
            raise ValueError(f"a sketch is taken of at most 64 dimensions, not of {dims}")


@functools.cache
def native() -> Native | None:
    """The compiled functions, or None where they cannot be compiled, which is logged once."""
    try:
        path = compiled_library(Path(__file__).parent / "sketch.c", "the sketch of tensors", _FLAGS)
        found = Native(ctypes.PyDLL(str(path)), ctypes.CDLL(str(path)))
    except OSError as error:  # CompileError among them
        reason = error if isinstance(error, CompileError) else f"it cannot be loaded: {error}"
        _logger.warning("tensors are sketched by torch, many times slower than by C: %s", reason)
        return None
    for library in found:
        _declare(library)
    for which, dtype in enumerate(FLOAT8.values()):
        values = (ctypes.c_double * 256)(*map(dtype.value, range(256)))
        found.long.accel_sketch_table(which, values)
    return found


def _declare(library: ctypes.CDLL) -> None:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.accel_sketch_whole.argtypes = (pointer, number, size, pointer)
    library.accel_sketch_whole.restype = None
    part = library.accel_sketch_part
    part.argtypes = (pointer, number, number, pointer, ctypes.c_uint64, pointer)
    part.restype = ctypes.c_int
    library.accel_sketch_table.argtypes = (number, pointer)
    library.accel_sketch_table.restype = None
