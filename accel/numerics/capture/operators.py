"""One step of a run, operator by operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from accel.numerics.capture.adjoints import Adjoints
from accel.numerics.capture.arguments import described, named
from accel.numerics.capture.checking import Checking
from accel.numerics.capture.collectives import group_argument, share_of
from accel.numerics.capture.naming import Names, Origin
from accel.numerics.capture.places import current_place
from accel.numerics.capture.schemas import WAIT, Schema, schema_of
from accel.numerics.capture.selection import Selection
from accel.numerics.capture.sharding_wrappers import inner, is_dtensor, placed
from accel.numerics.capture.values import Values, outputs_of, tensors_in
from accel.numerics.storage.entries import Line, Operator, Ref, Shard


class Operators:
    """Runs the operators of one step and records them.

    Args:
        names: Names them.
        values: Knows their tensors.
        adjoints: Is told of the autograd nodes that run.
        kept: Which operators' tensors are kept with all elements.
        emit: Takes lines of the recording.
        flush: Writes the lines that were taken.
        checking: Replays one operator of each kind; None at other levels.
    """

    def __init__(
        self,
        names: Names,
        values: Values,
        adjoints: Adjoints,
        kept: Selection,
        emit: Callable[[Line], None],
        flush: Callable[[], None],
        checking: Checking | None,
    ) -> None:
        self._names, self._values, self._adjoints = names, values, adjoints
        self._kept, self._emit, self._flush = kept, emit, flush
        self._checking = checking
        self._wrappers = 0  # operators on DTensors that are under way
        self.count = 0

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run one operator, as if nobody watched, and record it."""
        schema = schema_of(func)
        if schema.is_ignored:
            return func(*args, **kwargs)
        given = named(schema, args, kwargs)
        key, origin = self._names.key(schema.short, is_collective=schema.is_collective)
        place = current_place() if origin is None else origin.place
        made = self._names.made(key, origin, place)
        is_kept = self._kept.takes(key)
        arguments = self._arguments(schema, given, keep=is_kept and not schema.is_view)
        checked = None
        if self._checking is not None:
            checked = self._checking.before(schema, func, given)
        result = func(*args, **kwargs)
        outputs, writes = self._results(schema, given, arguments, result, keep=is_kept)
        operator = Operator(
            self.count, key, schema.name, schema.overload, arguments, outputs, writes, place,
            self._autocast(origin),
        )  # fmt: skip
        self.count += 1
        self._emit(operator)
        if checked is not None and self._checking is not None:
            self._checking.after(operator.id, schema, func, checked, given, result)
        if made is not None:
            made.outputs = [*outputs] if not writes else [v for vs in writes.values() for v in vs]
        self._adjoints.ran(schema, operator, origin)
        self._flush()
        return result

    def foretell(self, func: Any) -> None:
        """An operator on wrapped tensors begins: the local ones in it go by its name."""
        schema = schema_of(func)
        if not schema.is_ignored:
            self._names.foretell(schema.short, current_place())

    @contextmanager
    def within_wrapper(self, func: Any) -> Iterator[list[Any]]:
        """An operator on DTensors runs; the caller adds what it was given and returned."""
        self.foretell(func)
        self._wrappers += 1
        self._values.is_within_wrapper = True
        results: list[Any] = []
        try:
            yield results
        finally:
            for tensor in tensors_in([*_flat(results)]):
                if is_dtensor(tensor):
                    self._values.placed(inner(tensor), placed(tensor))
            self._wrappers -= 1
            if not self._wrappers:
                self._values.leave_wrapper()
                self._flush()

    def _arguments(self, schema: Schema, given: dict[str, Any], *, keep: bool) -> dict[str, Any]:
        values, is_plain = self._values, not schema.is_collective and not schema.overwritten
        if is_plain and not keep and not schema.is_view:  # most are
            return {name: described(value, values.of) for name, value in given.items()}
        # A view reads nothing, and waiting comes before reading.
        is_read = not schema.is_view and schema.name != WAIT

        def of(tensor: Tensor, is_read: bool = is_read, shard: Shard | None = None) -> int:
            value = values.of(tensor, is_read=is_read, shard=shard)
            if keep:
                value = values.renewed(value, tensor) if is_plain and is_read else value
                values.keep(value, tensor)
            return value

        if is_plain:
            return {name: described(value, of) for name, value in given.items()}
        arguments: dict[str, Any] = {}
        for name, value in given.items():
            share = share_of(schema, name, given)
            how: Callable[[Tensor], int] = functools.partial(of, shard=share)
            if schema.is_collective and is_read and share is None:
                how = functools.partial(self._alone, keep=keep)
            if name in schema.overwritten:
                is_aten = schema.name.startswith("aten::")
                how = functools.partial(of, is_read=False) if is_aten else values.before
            arguments[name] = group_argument(name, value) or described(value, how)
        return arguments

    def _alone(self, tensor: Tensor, *, keep: bool) -> int:
        """What a collective is given: other ranks' parts are added to it, or it is sent."""
        value = self._values.alone(tensor)
        if keep:
            self._values.keep(value, tensor)
        return value

    def _results(
        self,
        schema: Schema,
        given: dict[str, Any],
        arguments: dict[str, Any],
        result: Any,
        *,
        keep: bool,
    ) -> tuple[tuple[int | None, ...], dict[str, tuple[int, ...]]]:
        values, writes = self._values, {}
        targets: list[Tensor] = []
        inputs = self._with_rows(schema, arguments)
        for name in schema.written:
            written = tensors_in(given.get(name))
            if not written:
                continue
            writes[name] = tuple(
                values.written(
                    tensor,
                    arrives_later=schema.is_collective,
                    is_garbage=schema.is_partial,
                    batch=values.output_batch(tensor, inputs),
                    shard=share_of(schema, name, given) if schema.is_collective else None,
                )
                for tensor in written
            )
            targets += written
            if keep:
                for value, tensor in zip(writes[name], written, strict=True):
                    values.keep(value, tensor)
        outputs = tuple(
            None
            if tensor is None
            else values.workspace(tensor)
            if place == schema.workspace
            else self._output(schema, tensor, given, arguments, inputs, keep=keep)
            for place, tensor in enumerate(outputs_of(result, targets))
        )
        return outputs, writes

    def _output(
        self,
        schema: Schema,
        tensor: Tensor,
        given: Mapping[str, Any],
        arguments: Mapping[str, Any],
        inputs: Sequence[int],
        *,
        keep: bool,
    ) -> int | None:
        values = self._values
        if schema.name == WAIT:
            return values.of(tensor)
        if schema.is_collective:
            value = values.written(
                tensor, arrives_later=True, shard=share_of(schema, "output", given)
            )
            if keep:
                values.keep(value, tensor)
            return value
        base = next(_references(arguments), None) if schema.is_view else None
        if base is not None:
            known = values.known(tensor, is_read=False)
            if known is not None:
                return known  # a view of all of it: `alias`, `detach`
            value = values.add(tensor, base=base)
            values.note_view(value, tensor, next(iter(tensors_in([*given.values()]))), base)
            return value
        batch = values.output_batch(tensor, inputs)
        piece = None
        if schema.is_pointwise and batch is None:
            read = zip(_references(arguments), tensors_in([*given.values()]), strict=True)
            piece = values.piece_of(tensor, read)
        value = values.add(tensor, is_garbage=schema.is_uninitialised, batch=batch, shard=piece)
        if keep and not schema.is_uninitialised:
            values.keep(value, tensor)
        return value

    def _with_rows(self, schema: Schema, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """The inputs of which an output may hold the same rows of the batch."""
        if not self._values.has_rows or schema.is_collective or self._names.optimizer is not None:
            return ()
        chosen = schema.rows
        if chosen is not None:
            arguments = {name: value for name, value in arguments.items() if name == chosen}
        return tuple(_references(arguments))

    def _autocast(self, origin: Origin | None) -> str | None:
        call = origin.call if origin is not None else self._names.innermost
        return call.autocast


def _references(arguments: Mapping[str, Any]) -> Iterator[int]:
    for value in arguments.values():
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, Ref):
                yield item.value


def _flat(results: Sequence[Any]) -> Iterator[Any]:
    for one in results:
        yield from one.values() if isinstance(one, dict) else (one,)
