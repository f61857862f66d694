"""One step of a run, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from accel.numerics.capture.adjoints import Adjoints
from accel.numerics.capture.arguments import described, named
from accel.numerics.capture.checking import Checking
from accel.numerics.capture.naming import Names, Origin
from accel.numerics.capture.places import current_place
from accel.numerics.capture.schemas import WAIT, Schema, schema_of
from accel.numerics.capture.selection import Selection
from accel.numerics.capture.values import Values, outputs_of, tensors_in
from accel.numerics.storage.entries import Line, Operator, Ref


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

    def _arguments(self, schema: Schema, given: dict[str, Any], *, keep: bool) -> dict[str, Any]:
        values = self._values
        if schema.name == WAIT:
            for tensor in tensors_in(given.get("tensor")):
                values.arrived(tensor)
        if keep:

            def of(tensor: Tensor) -> int:
                value = values.of(tensor)
                values.keep(value, tensor)
                return value

            return {name: described(value, of) for name, value in given.items()}
        return {name: described(value, values.of) for name, value in given.items()}

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
        for name in schema.written:
            written = tensors_in(given.get(name))
            later = schema.is_collective
            if written:
                writes[name] = tuple(values.written(t, arrives_later=later) for t in written)
                targets += written
            if keep and not later:
                for value, tensor in zip(writes.get(name, ()), written, strict=True):
                    values.keep(value, tensor)
        base = _first_reference(arguments) if schema.is_view else None
        outputs = tuple(
            None if tensor is None else self._output(schema, tensor, base, keep=keep)
            for tensor in outputs_of(result, targets)
        )
        return outputs, writes

    def _output(
        self,
        schema: Schema,
        tensor: Tensor,
        base: int | None,
        *,
        keep: bool,
    ) -> int | None:
        values = self._values
        if schema.is_collective and schema.name != WAIT:
            return values.written(tensor, arrives_later=True)
        if schema.name == WAIT:
            return values.of(tensor)
        known = values.known(tensor) if base is not None else None
        if known is not None:
            return known  # a view of all of it: `alias`, `detach`
        value = values.add(tensor, base=base, is_garbage=schema.is_uninitialised)
        if keep and base is None and not schema.is_uninitialised:
            values.keep(value, tensor)
        return value

    def _autocast(self, origin: Origin | None) -> str | None:
        call = origin.call if origin is not None else self._names.innermost
        return call.autocast


def _first_reference(arguments: dict[str, Any]) -> int | None:
    for value in arguments.values():
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, Ref):
                return item.value
    return None
