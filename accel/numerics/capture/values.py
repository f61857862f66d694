"""Which value each tensor of a step holds: the same contents have the same id.

A tensor is known by its memory (storage, offset, sizes, strides, dtype), so that what autograd
saved in the forward is recognised in the backward. Storages are held weakly: their memory is freed
as without a recorder, and their addresses are not reused as long as the step lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.numerics.capture.contents import Contents
from accel.numerics.storage.encoding import dtype_name, why_not_recorded
from accel.numerics.storage.entries import Line, Shard, Source, SourceKind, Value

Geometry = tuple[int | torch.SymInt, torch.Size, tuple[int, ...], torch.dtype, bool, bool]


class _Storage:
    """What is known of one piece of memory."""

    __slots__ = ("pending", "values", "weak")

    def __init__(self, weak: Any) -> None:
        self.weak = weak
        self.values: dict[Geometry, tuple[int, int, int]] = {}  # id, first and last element
        self.pending: dict[int, Tensor] = {}  # written by a collective that may not have arrived


class Values:
    """The values of one step.

    Args:
        contents: Makes sketches and keeps elements.
        emit: Takes lines of the recording.
        shard_of: Says which part of a whole a tensor is, or None.
    """

    def __init__(
        self,
        contents: Contents,
        emit: Callable[[Line], None],
        shard_of: Callable[[Tensor], Shard | None],
    ) -> None:
        self._contents, self._emit, self._shard_of = contents, emit, shard_of
        self._storages: dict[int, _Storage] = {}
        self._kept: set[int] = set()
        self._count = 0

    def known(self, tensor: Tensor) -> int | None:
        """The id of what a tensor holds now, or None if it is not known."""
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        found = None if storage is None else storage.values.get(_geometry(tensor))
        if found is None or storage is None:
            return None
        if found[0] in storage.pending:
            self._arrived(storage, found[0])
        return found[0]

    def of(self, tensor: Tensor, kind: SourceKind = "other", name: str = "") -> int:
        """The id of what a tensor holds now; what is not known becomes a source."""
        if is_opaque(tensor):
            return self._opaque(tensor, kind, name)
        found = self.known(tensor)
        if found is not None:
            return found
        value = self.add(tensor)
        self._emit(Source(value, kind, name))
        return value

    def add(self, tensor: Tensor, *, base: int | None = None, is_garbage: bool = False) -> int:
        """A new value: what a tensor holds now.

        Args:
            tensor: It.
            base: The value that it is a view of: it then has no sketch of its own.
            is_garbage: Whether nothing was written to it yet: it then has no sketch, and is not
                known by its memory, so that what is in it later is a new value.
        """
        if is_opaque(tensor):
            return self._described(tensor, skipped=_why_opaque(tensor))
        if is_garbage:
            return self._described(tensor, skipped="memory that nothing was written to")
        value = self._next()
        self._know(tensor, value)
        if base is None:
            self._emit(self._contents.value(value, tensor, self._shard_of(tensor)))
        else:
            dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
            self._emit(Value(value, dtype, shape, base=base))
        return value

    def written(self, tensor: Tensor, *, arrives_later: bool = False) -> int:
        """A new value: what was just written to a tensor, or will be there when it is next used."""
        if is_opaque(tensor):
            return self._described(tensor, skipped=_why_opaque(tensor))
        self._forget(tensor)
        if not arrives_later:
            return self.add(tensor)
        value = self._next()
        self._know(tensor, value).pending[value] = tensor
        return value

    def keep(self, value: int, tensor: Tensor) -> None:
        """Keep the elements of a value, if they are not kept yet."""
        if value not in self._kept and not is_opaque(tensor):
            self._kept.add(value)
            line = self._contents.kept(value, tensor)
            if line is not None:
                self._emit(line)

    def is_kept(self, value: int) -> bool:
        """Whether the elements of a value are kept, or would be if the size cap allowed it."""
        return value in self._kept

    def arrived(self, tensor: Tensor) -> None:
        """A collective's result is there."""
        self.known(tensor)

    def close(self) -> None:
        """Take in what has not been looked at yet, and let go of all memory."""
        for storage in self._storages.values():
            for value in [*storage.pending]:
                self._arrived(storage, value)
            torch.UntypedStorage._free_weak_ref(storage.weak)
        self._storages.clear()

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _arrived(self, storage: _Storage, value: int) -> None:
        tensor = storage.pending.pop(value)
        self._emit(self._contents.value(value, tensor, self._shard_of(tensor)))

    def _know(self, tensor: Tensor, value: int) -> _Storage:
        whole = tensor.untyped_storage()
        storage = self._storages.get(whole._cdata)
        if storage is None:
            storage = self._storages[whole._cdata] = _Storage(whole._weak_ref())
        storage.values[_geometry(tensor)] = (value, *_extent(tensor))
        return storage

    def _forget(self, tensor: Tensor) -> None:
        """Forget what overlaps a tensor that was written to."""
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is None:
            return
        first, last = _extent(tensor)
        for geometry, (value, begin, end) in [*storage.values.items()]:
            if begin < last and first < end:
                del storage.values[geometry]
                storage.pending.pop(value, None)

    def _opaque(self, tensor: Tensor, kind: SourceKind, name: str) -> int:
        value = self._described(tensor, skipped=_why_opaque(tensor))
        self._emit(Source(value, kind, name))
        return value

    def _described(self, tensor: Tensor, *, skipped: str) -> int:
        value = self._next()
        shape = tuple(tensor.shape) if not tensor.is_nested else ()
        self._emit(Value(value, dtype_name(tensor.dtype), shape, skipped=skipped))
        return value


def is_opaque(tensor: Tensor) -> bool:
    """Whether a tensor's values cannot be read from its own memory."""
    kind = type(tensor)
    if kind is Tensor or kind is torch.nn.Parameter:
        # The common case, kept cheap.
        return tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized
    return why_not_recorded(tensor) is not None or tensor.layout is not torch.strided


def _why_opaque(tensor: Tensor) -> str:
    layout = str(tensor.layout).removeprefix("torch.")
    return why_not_recorded(tensor) or f"a tensor of layout {layout} is not recorded"


def _geometry(tensor: Tensor) -> Geometry:
    return (
        tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype,
        tensor.is_conj(), tensor.is_neg(),
    )  # fmt: skip


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Of its storage, the first byte that a tensor may hold and one past the last."""
    size, first = tensor.itemsize, int(tensor.storage_offset())
    if tensor.numel() == 0:
        return first * size, first * size
    if tensor.is_contiguous():
        return first * size, (first + tensor.numel()) * size
    last = first + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first * size, (last + 1) * size


def tensors_in(argument: Any) -> list[Tensor]:
    """The tensors of an operator's argument: itself, or those of a list (of lists)."""
    if isinstance(argument, Tensor):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [tensor for item in argument for tensor in tensors_in(item)]
    return []


def outputs_of(result: Any, targets: Sequence[Tensor]) -> list[Tensor | None]:
    """What an operator returned, flattened; None for what is no tensor or one of `targets`."""
    outputs: list[Tensor | None] = []
    for one in result if isinstance(result, (list, tuple)) else (result,):
        found = tensors_in(one)
        outputs += [None if any(t is target for target in targets) else t for t in found]
        outputs += [] if found else [None]
    return outputs
