"""Taking the sketch of a tensor, wherever it is and whatever it looks like."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from accel_kernels.sketch import reference
from accel_kernels.sketch.digest import Sketch
from accel_kernels.sketch.layout import BYTES, NUMBERS
from accel_kernels.sketch.native import KINDS, Buffer, native
from accel_kernels.sketch.parts import Part, check_part

_KINDS = {getattr(torch, name): kind for name, kind in KINDS.items()}
_FORMAT = struct.Struct(f"<{NUMBERS}d")


def sketch(tensor: Tensor, shard: Part | None = None) -> Sketch:
    """The sketch of a tensor; waits for the tensor's device.

    Args:
        tensor: Any shape, strides, device and dtype; complex numbers count as pairs of real ones
            in a last dimension of 2. Integers beyond 2**53 are rounded to float64.
        shard: For a part of a tensor, the shape of the whole and where in it the part begins: the
            sketches of all parts add up to that of the whole.

    Raises:
        ValueError: The shard is not inside the whole; the tensor has no memory (meta, a
            distributed tensor).
        TypeError: The tensor is sparse, quantized, or of a dtype without a value (bits8, …).
    """
    buffer = Buffer()
    sketch_into(tensor, buffer, shard=shard)
    return Sketch(buffer.raw)


def sketch_into(
    tensor: Tensor,
    buffer: bytearray | memoryview | ctypes.Array[ctypes.c_char],
    at: int = 0,
    *,
    shard: Part | None = None,
) -> None:
    """Write the 576 bytes of a tensor's sketch into a writable buffer, from byte `at` on.

    The quickest way to sketch: a contiguous tensor on the CPU takes one call of compiled code.

    Raises:
        ValueError: As `sketch`, or the buffer ends before.
        TypeError: As `sketch`, or the buffer cannot be written.
    """
    target = Buffer.from_buffer(buffer, at)
    compiled = native()
    if shard is None and compiled is not None and tensor.is_cpu:
        kind = _KINDS.get(tensor.dtype)
        if (
            kind is not None
            and tensor.layout is torch.strided
            and tensor.is_contiguous()
            and not tensor.is_neg()
        ):
            compiled.whole(_address(tensor), kind, tensor.numel(), target)
            return
    tensor, (whole, offset) = _real_numbers(tensor.detach(), shard)
    if compiled is not None and tensor.is_cpu:
        kind = _KINDS[tensor.dtype]
        compiled.part(
            _address(tensor), kind, tensor.shape, tensor.stride(), (whole, offset), target
        )
    else:
        numbers = reference.sketch_numbers(tensor, whole, offset)
        _FORMAT.pack_into(target, 0, *numbers.tolist())


def sketch_numbers(tensor: Tensor, shard: Part | None = None) -> Tensor:
    """The 72 numbers of the sketch as a tensor, without waiting for a CUDA device.

    Returns:
        `[72]` in float64, on the CUDA device that the tensor is on, else on the CPU.

    Raises:
        ValueError: As `sketch`.
        TypeError: As `sketch`.
    """
    if not tensor.is_cuda:
        buffer = bytearray(BYTES)
        sketch_into(tensor, buffer, shard=shard)
        return torch.frombuffer(buffer, dtype=torch.float64)
    real, (whole, offset) = _real_numbers(tensor.detach(), shard)
    return reference.sketch_numbers(real, whole, offset)


def _real_numbers(tensor: Tensor, shard: Part | None) -> tuple[Tensor, Part]:
    """A tensor of real numbers with the same contents, and its place in the whole.

    It is on the CPU or on a CUDA device: of the others it is not known that they have float64 and
    64-bit products.
    """
    _check_dense(tensor)
    if shard is None:
        whole, offset = tuple(tensor.shape), (0,) * tensor.dim()
    else:
        whole, offset = tuple(shard[0]), tuple(shard[1])
        check_part(tensor.shape, (whole, offset))
    if not tensor.is_cpu and not tensor.is_cuda:
        tensor = tensor.cpu()
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor, whole, offset = torch.view_as_real(tensor), (*whole, 2), (*offset, 0)
    if tensor.dtype not in _KINDS:
        raise TypeError(f"elements of {tensor.dtype} have no value to sketch; view it as another")
    return tensor, (whole, offset)


def _address(tensor: Tensor) -> int:
    address = tensor.data_ptr()
    if not address and tensor.numel():
        raise ValueError(
            f"this {type(tensor).__name__} has no memory of its own to sketch; of a distributed "
            "tensor sketch the local part with `shard=`"
        )
    return address


def _check_dense(tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(
            f"a sketch needs a dense tensor, and this is {tensor.layout} of {tensor.dtype}: "
            "convert it with to_dense() or dequantize()"
        )
    if tensor.is_meta:
        raise ValueError("a tensor on the meta device has no contents to sketch")
