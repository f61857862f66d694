"""Sketches of tensors: see `Sketch`. Names load on first use; `Sketch` and arrays need no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel_kernels.sketch.arrays import sketch_array as sketch_array
    from accel_kernels.sketch.digest import Sketch as Sketch
    from accel_kernels.sketch.layout import BYTES as BYTES
    from accel_kernels.sketch.parts import Part as Part
    from accel_kernels.sketch.parts import check_part as check_part
    from accel_kernels.sketch.taking import sketch as sketch
    from accel_kernels.sketch.taking import sketch_into as sketch_into
    from accel_kernels.sketch.taking import sketch_numbers as sketch_numbers

_HOMES = {
    "BYTES": "layout",
    "Part": "parts",
    "Sketch": "digest",
    "check_part": "parts",
    "sketch": "taking",
    "sketch_array": "arrays",
    "sketch_into": "taking",
    "sketch_numbers": "taking",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
