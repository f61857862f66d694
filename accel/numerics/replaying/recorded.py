"""An operator's call and results out of a recorded step, within bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Protocol

from torch import Tensor

from accel.numerics.replaying.calls import Call, Given, Results, call_of
from accel.numerics.replaying.operators import is_view
from accel.numerics.replaying.references import why_nothing_to_replay
from accel.numerics.storage.entries import Argument, Operator, Ref, Value

_CACHE = 256 * 2**20  # bytes; an operator's output is the next one's input


class RecordedStep(Protocol):
    """What a replay reads of a step; `accel.numerics.storage.steps.Step` is one."""

    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def operators(self) -> tuple[Operator, ...]: ...  # noqa: D102
    @property
    def values(self) -> Mapping[int, Value]: ...  # noqa: D102

    def has_tensor(self, value_id: int, /) -> bool:
        """Whether the elements of a value were kept."""

    def tensor(self, value_id: int, /) -> Tensor:
        """The elements of a value; ValueError if they were not kept."""


class Tensors:
    """The kept elements of one step, those read last in memory.

    Args:
        step: The step.
        most: Bytes to keep in memory.
    """

    def __init__(self, step: RecordedStep, most: int = _CACHE) -> None:
        self._step, self._left = step, most
        self._read: OrderedDict[str, Tensor] = OrderedDict()

    def has(self, value: int) -> bool:
        """Whether the elements of a value were kept."""
        return self._step.has_tensor(value)

    def of(self, value: int) -> Tensor:
        """The elements of a value, not to be written to.

        Raises:
            ValueError: They were not kept.
        """
        key = self._step.values[value].blob or f"value {value}"  # equal contents are read once
        found = self._read.get(key)
        if found is None:
            found = self._read[key] = self._step.tensor(value)
            self._left -= found.nbytes
            while self._left < 0 and len(self._read) > 1:
                self._left += self._read.popitem(last=False)[1].nbytes
        self._read.move_to_end(key)
        return found


def refs_in(value: Argument) -> Iterator[int]:
    """The values that one recorded argument names."""
    if isinstance(value, Ref):
        yield value.value
    elif isinstance(value, list):
        for item in value:
            yield from refs_in(item)


def inputs_of(operator: Operator) -> list[int]:
    """The values that an operator read, in order, with repetitions."""
    return [ref for value in operator.arguments.values() for ref in refs_in(value)]


def is_checkable(operator: Operator) -> bool:
    """Whether there is something to check in an operator: it computes a result that is determined.

    Views, collectives, random numbers and uninitialised memory are not.
    """
    name, overload = operator.name, operator.overload
    return (
        bool(operator.produced)
        and not is_view(name, overload)
        and why_nothing_to_replay(name, overload) is None
    )


def signature_of(operator: Operator, values: Mapping[int, Value]) -> Hashable:
    """What makes two calls the same kind of call: name, dtypes, shapes, plain arguments.

    Args:
        operator: The call.
        values: Of its step.
    """

    def plain(argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            value = values[argument.value]
            return value.dtype, value.shape
        return tuple(map(plain, argument)) if isinstance(argument, list) else repr(argument)

    given = tuple((name, plain(value)) for name, value in operator.arguments.items())
    return operator.name, operator.overload, given


def call_from(operator: Operator, tensor_of: Callable[[int], Tensor]) -> Call:
    """An operator's call.

    Args:
        operator: As recorded.
        tensor_of: The elements of a value.

    Raises:
        CannotReplayError: An argument cannot be given again.
        ValueError: A tensor was not kept.
    """

    def given(value: Argument) -> Given:
        if isinstance(value, Ref):
            return tensor_of(value.value)
        return [given(item) for item in value] if isinstance(value, list) else value

    arguments = {name: given(value) for name, value in operator.arguments.items()}
    return call_of(operator.name, operator.overload, arguments, tuple(operator.writes))


def results_from(operator: Operator, tensor_of: Callable[[int], Tensor]) -> Results:
    """What an operator produced in the run.

    Raises:
        ValueError: A tensor was not kept.
    """
    return Results(
        tuple(None if value is None else tensor_of(value) for value in operator.outputs),
        {name: tuple(map(tensor_of, values)) for name, values in operator.writes.items()},
    )


def produced_names(operator: Operator) -> Iterator[tuple[str, int]]:
    """The values that an operator produced, by the names of `Results.named`."""
    for index, value in enumerate(operator.outputs):
        if value is not None:
            yield str(index), value
    for name, values in operator.writes.items():
        for index, value in enumerate(values):
            yield (name if len(values) == 1 else f"{name}.{index}"), value
