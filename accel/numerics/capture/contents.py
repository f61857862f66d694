"""From tensors to sketches and kept elements, without making the run wait for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel.numerics.storage.encoding import copied, dtype_name
from accel.numerics.storage.entries import Line, Shard, Value
from accel.numerics.storage.writer import StepWriter
from accel_kernels.sketch import Sketch, sketch, sketch_numbers

_MOST_WAITING = 512  # sketches that may wait on the device: 300 KB
_MOST_COPIES = 256 * 2**20  # bytes of copies on the host that may wait for the device


class Contents:
    """Makes the sketches of one step and keeps elements.

    The host does not wait for the device at every operator. On CUDA, sketches stay on the device
    until many can be copied at once. Of other accelerators it is not known that they have float64
    and 64-bit products: there, values are copied to pinned memory of the host, in the stream's
    order, and sketched once the device has come so far. Their lines come a little later.

    Args:
        writer: Where elements are kept.
        emit: Takes lines of the recording.
        remembers: Whether `is_as_described` is to be asked.
    """

    def __init__(
        self, writer: StepWriter, emit: Callable[[Line], None], *, remembers: bool = False
    ) -> None:
        self._writer, self._emit = writer, emit
        self._sketches: dict[int, Sketch] | None = {} if remembers else None
        self._waiting: list[tuple[int, str, tuple[int, ...], Shard | None, Tensor]] = []
        self._copies: list[tuple[int, Shard | None, Tensor, torch.device]] = []
        self._copied = 0  # bytes

    def value(self, number: int, tensor: Tensor, shard: Shard | None) -> Value:
        """The line that describes what a tensor holds now."""
        with torch._C._DisableTorchDispatch():  # the program's own modes do not see the recorder
            return self._described(number, tensor, shard)

    def _described(self, number: int, tensor: Tensor, shard: Shard | None) -> Value:
        dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
        place = _place(tensor, shard)
        if tensor.device.type == "cuda":
            self._waiting.append((number, dtype, shape, shard, sketch_numbers(tensor, place)))
            if len(self._waiting) >= _MOST_WAITING:
                self.drain()
            return Value(number, dtype, shape, shard=shard)
        if tensor.device.type != "cpu":
            self._copy(number, tensor, shard)
            return Value(number, dtype, shape, shard=shard)
        found = sketch(tensor, place)
        if self._sketches is not None:
            self._sketches[number] = found
        return Value(number, dtype, shape, found, shard=shard)

    def is_as_described(self, number: int, tensor: Tensor, shard: Shard | None) -> bool:
        """Whether a tensor still holds what the sketch of a value says, as far as is remembered."""
        before = None if self._sketches is None else self._sketches.get(number)
        return before is None or before == sketch(tensor, _place(tensor, shard))

    def kept(self, number: int, tensor: Tensor) -> Value | None:
        """Keep a tensor's elements; None if the size cap is reached."""
        with torch._C._DisableTorchDispatch():
            digest = self._writer.keep(copied(tensor))
        if digest is None:
            return None
        return Value(number, dtype_name(tensor.dtype), tuple(tensor.shape), blob=digest)

    def drain(self) -> None:
        """Take in all sketches and copies that wait for the device."""
        if self._waiting:
            rows = torch.stack([row for *_, row in self._waiting]).cpu().numpy().astype("<f8")
            for (number, dtype, shape, shard, _), row in zip(self._waiting, rows, strict=True):
                self._emit(Value(number, dtype, shape, Sketch(row.tobytes()), shard=shard))
            self._waiting.clear()
        for device in {device for *_, device in self._copies}:
            torch.accelerator.synchronize(device)
        for number, shard, copy, _ in self._copies:
            dtype, shape = dtype_name(copy.dtype), tuple(copy.shape)
            found = sketch(copy, _place(copy, shard))
            self._emit(Value(number, dtype, shape, found, shard=shard))
        self._copies.clear()
        self._copied = 0

    def _copy(self, number: int, tensor: Tensor, shard: Shard | None) -> None:
        own = tensor.detach()
        copy = torch.empty(own.shape, dtype=own.dtype, pin_memory=True)
        copy.copy_(own, non_blocking=True)
        self._copies.append((number, shard, copy, own.device))
        self._copied += copy.nbytes
        if self._copied >= _MOST_COPIES:
            self.drain()


def _place(tensor: Tensor, shard: Shard | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    if shard is None or shard.shape == tuple(tensor.shape):
        return None
    return shard.shape, shard.offset
