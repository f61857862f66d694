"""Which value each tensor of a step holds: the same contents have the same id.

A tensor is known by its memory (storage, offset, sizes, strides, dtype), so that what autograd
saved in the forward is recognised in the backward. Storages are held weakly: their memory is freed
as without a recorder, and their addresses are not reused as long as the step lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.numerics.capture.contents import Contents
from accel.numerics.capture.sharding_rows import Batch, Rows
from accel.numerics.storage.encoding import dtype_name, why_not_recorded
from accel.numerics.storage.entries import Line, Shard, Source, SourceKind, Value

Geometry = tuple[int | torch.SymInt, torch.Size, tuple[int, ...], torch.dtype, bool, bool]


class _Storage:
    """What is known of one piece of memory."""

    __slots__ = ("pending", "values", "weak")

    def __init__(self, weak: Any) -> None:
        self.weak = weak
        self.values: dict[Geometry, tuple[int, int, int]] = {}  # id, first and last element
        self.pending: dict[int, Tensor] = {}  # not looked at yet: see `Values`


class Values:
    """The values of one step.

    A value is described when it is made, with two exceptions. What a collective writes may arrive
    later: it is described when an operator reads it. And while an operator on DTensors runs
    (`is_within_wrapper`), nobody knows yet which part of a whole its results are: they are
    described when an operator reads them or `placed` tells.

    Args:
        contents: Makes sketches and keeps elements.
        emit: Takes lines of the recording.
        rows: Which values hold rows of the batch; None without data parallelism.
    """

    def __init__(
        self, contents: Contents, emit: Callable[[Line], None], rows: Rows | None = None
    ) -> None:
        self._contents, self._emit, self._rows = contents, emit, rows
        self._storages: dict[int, _Storage] = {}
        self._kept: set[int] = set()
        self._count = 0
        self._shards: dict[int, Shard] = {}
        self._pieces: dict[int, Shard] = {}
        self._views: dict[int, int] = {}  # and what each looks at
        self._parts: dict[tuple[int, Shard], int] = {}
        self._keep_later: set[int] = set()
        self._within: list[tuple[_Storage, int]] = []
        self.is_within_wrapper = False

    def known(self, tensor: Tensor, *, is_read: bool = True) -> int | None:
        """The id of what a tensor holds now, or None if it is not known.

        Args:
            tensor: It.
            is_read: Whether an operator is about to read it: what was to come later is then there.
        """
        if is_opaque(tensor):
            return None
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is None:
            return None
        if storage.pending and is_read:
            self._settle(storage, tensor)
        found = storage.values.get(_geometry(tensor))
        return None if found is None else found[0]

    def of(
        self,
        tensor: Tensor,
        kind: SourceKind = "other",
        name: str = "",
        *,
        is_read: bool = True,
        shard: Shard | None = None,
        is_copy: bool = False,
    ) -> int:
        """The id of what a tensor holds now; what is not known becomes a source.

        Args:
            tensor: It.
            kind: What kind of source it is, if it is one.
            name: Its name then.
            is_read: Whether an operator is about to read it.
            shard: Which part of a whole it is, where that is known; in a data-parallel run, of what
                the processes hold that are given the same rows.
            is_copy: Whether it has nothing to do with rows of the batch.
        """
        if is_opaque(tensor):
            return self._opaque(tensor, kind, name)
        found = self.known(tensor, is_read=is_read)
        if found is not None:
            if kind == "input" and shard is None:
                shard = self._given_rows(found, tensor)
            elif shard is not None and self._rows is not None and not is_copy:
                shard = self._rows.composed(found, tensor, shard)
            return found if shard is None else self._part(found, tensor, shard)
        base = self._reshaped(tensor) if kind == "other" else None
        if base is not None:
            value = self.add(tensor, base=base)
            self._emit(Source(value, kind, name))
            return value if shard is None else self._part(value, tensor, shard)
        batch = None if self._rows is None or shard else self._batch_of(tensor, kind)
        value = self.add(tensor, batch=batch, shard=shard)
        self._emit(Source(value, kind, name))
        return value

    def alone(self, tensor: Tensor) -> int:
        """The id of what an operator reads, with a sketch as if it were no part of a whole."""
        value = self.of(tensor)
        root = value
        while root in self._views and root not in self._shards:
            root = self._views[root]
        said = self._shards.get(root)
        if said is None or said.shape == tuple(tensor.shape):
            return value
        shard = Shard(tuple(tensor.shape), (0,) * tensor.dim())
        return self._part_line(value, tensor, shard)

    def workspace(self, tensor: Tensor) -> int:
        """A new value that is known by its memory and has no sketch: its contents mean nothing."""
        value = self._described(tensor, skipped="a workspace, whose contents mean nothing")
        self._know(tensor, value)
        return value

    def before(self, tensor: Tensor) -> int:
        """The id of what a tensor holds that is about to be overwritten without being read."""
        known = None if is_opaque(tensor) else self.known(tensor, is_read=False)
        if known is not None:
            return known
        return self._described(tensor, skipped="it is overwritten without being read")

    def add(
        self,
        tensor: Tensor,
        *,
        base: int | None = None,
        is_garbage: bool = False,
        batch: Batch | None = None,
        shard: Shard | None = None,
    ) -> int:
        """A new value: what a tensor holds now.

        Args:
            tensor: It.
            base: The value that it is a view of: it then has no sketch of its own.
            is_garbage: Whether nothing was written to it yet: it then has no sketch, and is not
                known by its memory, so that what is in it later is a new value.
            batch: The batch that it holds rows of.
            shard: Which part of a whole it is, if that is known otherwise.
        """
        if is_opaque(tensor):
            return self._described(tensor, skipped=_why_opaque(tensor))
        if is_garbage:
            return self._described(tensor, skipped="memory that nothing was written to")
        value = self._next()
        storage = self._know(tensor, value)
        if batch is not None and self._rows is not None:
            shard = self._rows.note(value, tensor, batch)
        if base is not None:
            self._views[value] = base
            dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
            self._emit(Value(value, dtype, shape, base=base))
            return value
        if shard is not None:
            self._shards[value] = shard
        if self.is_within_wrapper and (shard is None or batch is not None):
            storage.pending[value] = tensor
            self._within.append((storage, value))
        else:
            self._emit(self._contents.value(value, tensor, shard))
        return value

    def written(
        self,
        tensor: Tensor,
        *,
        arrives_later: bool = False,
        is_garbage: bool = False,
        batch: Batch | None = None,
        shard: Shard | None = None,
    ) -> int:
        """A new value: what was just written to a tensor, or will be there when it is next used."""
        if is_opaque(tensor):
            return self._described(tensor, skipped=_why_opaque(tensor))
        late = None if arrives_later else self._late(tensor)
        if late is not None:
            return late
        self._forget(tensor)
        if not arrives_later:
            return self.add(tensor, is_garbage=is_garbage, batch=batch, shard=shard)
        value = self._next()
        if shard is not None:
            self._shards[value] = shard
        self._know(tensor, value).pending[value] = tensor
        return value

    def placed(self, tensor: Tensor, shard: Shard | None) -> None:
        """An operator on DTensors is over, and this is one of them: which part of a whole it is."""
        if shard is None or is_opaque(tensor):
            return
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        found = None if storage is None else storage.values.get(_geometry(tensor))
        if storage is None or found is None:
            return
        value = found[0]
        if value in storage.pending and self._rows is not None:
            whole = self._rows.composed(value, tensor, shard)
            self._shards.pop(value, None)
            if whole is not None:
                self._shards[value] = whole
        elif value in storage.pending and value not in self._shards:
            self._shards[value] = shard
        elif value not in self._shards:  # a view: it has no line that says so
            self._pieces[value] = shard

    def leave_wrapper(self) -> None:
        """The outermost operator on DTensors is over: nothing more will be known of its results."""
        for storage, value in self._within:
            if value in storage.pending:
                self._arrived(storage, value)
        self._within.clear()
        self.is_within_wrapper = False

    def piece_of(self, tensor: Tensor, inputs: Iterable[tuple[int, Tensor]]) -> Shard | None:
        """Which piece of a whole an output is that was computed element by element."""
        if not self._shards and not self._pieces:
            return None
        found = set()
        for value, given in inputs:
            if given.shape == tensor.shape:
                found.add(self._shards.get(value) or self._pieces.get(value))
        shard = found.pop() if len(found) == 1 else None
        is_piece = shard is not None and shard.shape != tuple(tensor.shape) and not shard.partial
        return shard if is_piece else None

    @property
    def has_rows(self) -> bool:
        """Whether any value holds rows of a batch."""
        return self._rows is not None and self._rows.are_there

    def output_batch(self, tensor: Tensor, inputs: Iterable[int]) -> Batch | None:
        """The batch that an operator's output holds rows of, None without data parallelism."""
        return None if self._rows is None else self._rows.of_output(tensor, inputs)

    def note_view(self, value: int, view: Tensor, base: Tensor, of: int) -> None:
        """A value is a view of another one: perhaps it holds rows of the batch too."""
        batch = None if self._rows is None else self._rows.of_view(view, base, of)
        if batch is not None and self._rows is not None:
            self._rows.note(value, view, batch)

    def renewed(self, value: int, tensor: Tensor) -> int:
        """The id again, or a new one if the memory was written to past the dispatcher.

        Looked for at level `full` and on the CPU only, where it costs little beside keeping.
        """
        if self._contents.is_as_described(value, tensor, self._shards.get(value)):
            return value
        self._forget(tensor)
        new = self.add(tensor)
        self._emit(Source(new, "other", "written to by something that is no operator"))
        return new

    def keep(self, value: int, tensor: Tensor) -> None:
        """Keep the elements of a value, if they are not kept yet; when they are there."""
        if value in self._kept or is_opaque(tensor):
            return
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is not None and value in storage.pending:
            self._keep_later.add(value)
            return
        self._kept.add(value)
        line = self._contents.kept(value, tensor)
        if line is not None:
            self._emit(line)

    def is_kept(self, value: int) -> bool:
        """Whether the elements of a value are kept, or would be if the size cap allowed it."""
        return value in self._kept or value in self._keep_later

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

    def _late(self, tensor: Tensor) -> int | None:
        """The value of a collective that another operator had to finish: gloo copies its result."""
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is None or not storage.pending:
            return None
        found = storage.values.get(_geometry(tensor))
        if found is None or found[0] not in storage.pending:
            return None
        self._arrived(storage, found[0])
        return found[0]

    def _settle(self, storage: _Storage, tensor: Tensor) -> None:
        """What a tensor shares memory with has arrived."""
        first, last = _extent(tensor)
        for value, waiting in [*storage.pending.items()]:
            begin, end = _extent(waiting)
            if begin < last and first < end:
                self._arrived(storage, value)

    def _arrived(self, storage: _Storage, value: int) -> None:
        tensor = storage.pending.pop(value)
        _, last = _extent(tensor)
        if tensor.untyped_storage().nbytes() < last:
            dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
            why = "its memory was freed before anybody looked at it"
            self._emit(Value(value, dtype, shape, skipped=why))
            return
        self._emit(self._contents.value(value, tensor, self._shards.get(value)))
        if value in self._keep_later:
            self.keep(value, tensor)

    def _part(self, value: int, tensor: Tensor, shard: Shard) -> int:
        """A value that is said to be a part of a whole: itself, or another one that says so."""
        said = self._shards.get(value)
        if said == shard:
            return value
        storage = self._storages[tensor.untyped_storage()._cdata]
        if said is None:
            is_same = shard.shape == tuple(tensor.shape)  # the sketch stays as it is
            if value in storage.pending or value in self._views or is_same:
                self._shards[value] = shard
            if value in storage.pending:
                return value
            if value in self._views:  # without a sketch so far
                self._emit(self._contents.value(value, tensor, shard))
                return value
            if is_same:
                self._emit(Value(value, dtype_name(tensor.dtype), shard.shape, shard=shard))
                return value
        elif value in storage.pending:
            return value
        return self._part_line(value, tensor, shard)

    def _part_line(self, value: int, tensor: Tensor, shard: Shard) -> int:
        if (value, shard) not in self._parts:
            part = self._parts[value, shard] = self._next()
            self._emit(replace(self._contents.value(part, tensor, shard), base=value))
        return self._parts[value, shard]

    def _given_rows(self, value: int, tensor: Tensor) -> Shard | None:
        """Which part of the batch an input is that an operator of the step has made."""
        batch = self._batch_of(tensor, "input")
        if batch is None or self._rows is None:
            return None
        return self._rows.note(value, tensor, batch)

    def _batch_of(self, tensor: Tensor, kind: SourceKind) -> Batch | None:
        """The batch that a source holds rows of."""
        if self._rows is None or kind not in ("input", "other"):
            return None
        if kind == "other" and tensor.requires_grad:
            return None  # a parameter that fully_shard has put together
        return self._rows.of_source(tensor)

    def _reshaped(self, tensor: Tensor) -> int | None:
        """The value with the same elements in the same order and memory, in another shape."""
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is None or not tensor.is_contiguous() or not tensor.numel():
            return None
        extent, flags = _extent(tensor), (tensor.dtype, tensor.is_conj(), tensor.is_neg())
        for geometry, (value, *place) in storage.values.items():
            _, shape, stride, *others = geometry
            if tuple(place) == extent and tuple(others) == flags and _is_dense(shape, stride):
                return value
        return None

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
                lost = storage.pending.pop(value, None)
                if lost is not None:
                    dtype, shape = dtype_name(lost.dtype), tuple(lost.shape)
                    why = "it was overwritten before anybody looked at it"
                    self._emit(Value(value, dtype, shape, skipped=why))

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
        return (
            tensor.layout is not torch.strided
            or tensor.is_meta
            or tensor.is_quantized
            or tensor.is_nested
            or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        )
    return why_not_recorded(tensor) is not None or tensor.layout is not torch.strided


def _why_opaque(tensor: Tensor) -> str:
    layout = str(tensor.layout).removeprefix("torch.")
    return why_not_recorded(tensor) or f"a tensor of layout {layout} is not recorded"


def _geometry(tensor: Tensor) -> Geometry:
    return (
        tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype,
        tensor.is_conj(), tensor.is_neg(),
    )  # fmt: skip


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a geometry is contiguous."""
    expected = 1
    for length, step in zip(reversed(shape), reversed(stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True


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
