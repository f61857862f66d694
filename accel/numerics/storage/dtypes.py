"""The dtypes that a recording can name, as torch names them.

It imports no torch: recordings are written beside other frameworks, and an older torch reads those
of a newer one. A reader that took any text for a dtype would compare `float99` as equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.numerics.storage import fields as f

FLOATS = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
)  # fmt: skip
INTEGERS = (
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
    *(f"int{bits}" for bits in range(1, 8)), *(f"uint{bits}" for bits in range(1, 8)),
)  # fmt: skip
# A value of one of the last two rows has no sketch (`skipped` says why), and is named all the same.
DTYPES = frozenset(
    {
        *FLOATS, *INTEGERS, "bool", "complex128", "complex64", "complex32",
        "qint8", "quint8", "qint32", "quint4x2", "quint2x4",
        "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
    }
)  # fmt: skip


def dtype(found: Mapping[str, Any]) -> str:
    """The dtype that a line about a value names.

    Raises:
        ValueError: It is no text, or no dtype that a recording can have.
    """
    name = f.text(found, "dtype")
    if name not in DTYPES:
        raise ValueError(
            f"dtype must be one that torch names, as float32 or int64, got {f.shown(name)}"
        )
    return name
