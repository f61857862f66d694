"""The sketch of a NumPy array, where there may be no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel_kernels.sketch.digest import Sketch
from accel_kernels.sketch.native import KINDS, Buffer, native
from accel_kernels.sketch.parts import Part, check_part

if TYPE_CHECKING:
    import numpy


def sketch_array(array: numpy.ndarray[Any, Any], shard: Part | None = None) -> Sketch:
    """The sketch of a NumPy array: that of the torch tensor with the same elements.

    Args:
        array: Real or complex numbers; `bfloat16` and the 8-bit floats of the package ml_dtypes
            too. Any strides and byte order.
        shard: As in `sketch`.

    Raises:
        ValueError: The shard is not inside the whole.
        TypeError: Elements of another dtype.
        RuntimeError: There is no C compiler, without which only torch tensors are sketched.
    """
    whole, offset = shard or (array.shape, (0,) * array.ndim)
    check_part(array.shape, (whole, offset))
    if array.dtype.kind == "c":
        real = array.dtype.type(0).real.dtype
        dense = array.astype(array.dtype.newbyteorder("="), order="C")
        array = dense.view(real).reshape(*array.shape, 2)
        whole, offset = (*whole, 2), (*offset, 0)
    kind = KINDS.get(array.dtype.name)
    if kind is None:
        raise TypeError(
            f"elements of {array.dtype} have no value to sketch; known are {', '.join(KINDS)}"
        )
    compiled = native()
    if compiled is None:
        raise RuntimeError(
            "there is no C compiler to sketch arrays with: install one, or sketch "
            "torch.from_numpy(array)"
        )
    width = array.dtype.itemsize
    if not array.dtype.isnative or any(stride % width for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    buffer = Buffer()
    strides = [stride // width for stride in array.strides]
    compiled.part(array.ctypes.data, kind, array.shape, strides, (whole, offset), buffer)
    return Sketch(buffer.raw)
