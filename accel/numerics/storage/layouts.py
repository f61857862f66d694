"""Elements as a recording holds them: their digest, and their place in a safetensors file.

It imports no torch, so that recordings can be written beside any framework.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

# What every safetensors since 0.4 can hold and other frameworks can read. Any other dtype is kept
# as its bytes.
NATIVE = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
WIDTHS = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
_PARTS = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}


class Elements(NamedTuple):
    """A tensor's elements in row-major order, little-endian.

    Attributes:
        dtype: As torch names it, without `torch.`.
        shape: Of the tensor.
        data: The bytes.
        itemsize: Bytes of one element.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    itemsize: int

    @property
    def digest(self) -> str:
        """SHA-256 of a header line that names dtype and shape, and of the bytes."""
        return digest_of(self.dtype, self.shape, self.data)


def digest_of(dtype: str, shape: tuple[int, ...], data: memoryview) -> str:
    r"""SHA-256 of `"<dtype> <sizes joined by commas>\n"` and the bytes."""
    hasher = hashlib.sha256(f"{dtype} {','.join(map(str, shape))}\n".encode())
    hasher.update(data)
    return hasher.hexdigest()


def stored_layout(dtype: str, shape: tuple[int, ...], itemsize: int) -> tuple[str, list[int]]:
    """The dtype and shape under which safetensors holds a tensor.

    Complex tensors get a last dimension of 2; dtypes that safetensors lacks become `U8` with a
    last dimension of one element's bytes.
    """
    if dtype in _PARTS:
        return NATIVE[_PARTS[dtype]], [*shape, 2]
    if dtype in NATIVE:
        return NATIVE[dtype], list(shape)
    return "U8", [*shape, itemsize]


def safetensors_parts(tensors: Mapping[str, Elements]) -> list[bytes | memoryview]:
    """The contents of a safetensors file that holds `tensors`, in pieces."""
    header, at = {}, 0
    for name, elements in tensors.items():
        stored, shape = stored_layout(elements.dtype, elements.shape, elements.itemsize)
        end = at + elements.data.nbytes
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the elements begin at a multiple of 8
    return [len(text).to_bytes(8, "little"), text, *(one.data for one in tensors.values())]
