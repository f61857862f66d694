"""One step of one rank, put together from its lines, every reference between them checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from accel.numerics.storage.entries import (
    Adjoint,
    Argument,
    Check,
    End,
    Key,
    Line,
    ModuleCall,
    Operator,
    Ref,
    RootCall,
    Skipped,
    Source,
    Update,
    Value,
)

if TYPE_CHECKING:
    from torch import Tensor

    from accel.numerics.storage.blobs import Blobs

_L = TypeVar("_L")


@dataclass(frozen=True, eq=False)
class Step:
    """What was recorded of one step of one rank.

    Attributes:
        rank: Which process.
        index: Which step.
        operators: In execution order.
        values: By their ids; where several lines speak of one, what they say together.
        sources: What each value is that no operator made, by its id; the first line holds.
        modules: Calls of modules, in the order of their lines.
        calls: Calls of the model from outside, in order.
        adjoints: Id of a value to that of its gradient; the last line holds.
        updates: What the optimizer left.
        checks: What level `check` found, by operator id.
        skipped: What could not be recorded, and why.
        end: None if the step did not end: the run was killed in it, or still runs.
        dropped_line: What was left out because the run was killed while it wrote; None if nothing.
        producers: Id of a value to that of the operator that made it.
        by_key: Operators by their keys.
    """

    rank: int
    index: int
    operators: tuple[Operator, ...]
    values: dict[int, Value]
    sources: dict[int, Source]
    modules: tuple[ModuleCall, ...]
    calls: tuple[RootCall, ...]
    adjoints: dict[int, int]
    updates: tuple[Update, ...]
    checks: dict[int, Check]
    skipped: tuple[Skipped, ...]
    end: End | None
    dropped_line: str | None
    producers: dict[int, int]
    by_key: dict[Key, Operator]
    blobs: Blobs = field(repr=False)

    def has_tensor(self, value_id: int) -> bool:
        """Whether the elements of a value were kept.

        Raises:
            ValueError: There is no such value.
        """
        return self._value(value_id).blob is not None

    def tensor(self, value_id: int) -> Tensor:
        """The elements of a value, on the CPU, checked against their digest.

        Raises:
            ValueError: They were not kept; their file is missing, damaged or holds something else;
                there is no such value.
        """
        value = self._value(value_id)
        if value.blob is None:
            raise ValueError(
                f"the elements of value {value_id} of step {self.index} were not kept: record "
                "this operator at level 'full'"
            )
        return self.blobs.tensor(value.blob, value.dtype, value.shape)

    def _value(self, value_id: int) -> Value:
        if value_id not in self.values:
            raise ValueError(f"step {self.index} has no value {value_id}")
        return self.values[value_id]


class LineError(ValueError):
    """A line of an index is damaged.

    Args:
        number: Which line, from 1.
        reason: Why.
    """

    def __init__(self, number: int, reason: object) -> None:
        super().__init__(f"line {number} is damaged: {reason}")


class Assembly:
    """Collects the lines of one step; `step` then checks what they say of one another."""

    def __init__(self) -> None:
        self._values: dict[int, Value] = {}
        self._value_lines: dict[int, int] = {}
        self._lines: list[tuple[int, Line]] = []
        self._operators: dict[int, int] = {}  # id -> number of its line
        self._keys: dict[Key, int] = {}
        self._calls: set[int] = set()
        self._end: End | None = None

    def add(self, number: int, entry: Line) -> None:
        """Take line `number`.

        Raises:
            ValueError: It contradicts a line before it.
        """
        if isinstance(entry, Value):
            self._values[entry.id] = self._completed(entry)
            self._value_lines.setdefault(entry.id, number)
            return
        if isinstance(entry, Operator):
            self._check_new(entry)
            self._operators[entry.id] = number
            self._keys[entry.key] = entry.id
        elif isinstance(entry, RootCall):
            if entry.index in self._calls:
                raise ValueError(f"call {entry.index} was there before")
            self._calls.add(entry.index)
        elif isinstance(entry, End):
            self._end = entry
        self._lines.append((number, entry))

    def _check_new(self, entry: Operator) -> None:
        if entry.id in self._operators:
            raise ValueError(
                f"operator {entry.id} was there before, in line {self._operators[entry.id]}"
            )
        if entry.key in self._keys:
            raise ValueError(f"operator {self._keys[entry.key]} has the same name: {entry.key}")

    def _completed(self, later: Value) -> Value:
        earlier = self._values.get(later.id)
        if earlier is None:
            return later
        said = {}
        for name in ("dtype", "shape", "sketch", "blob", "base", "shard", "skipped"):
            old, new = getattr(earlier, name), getattr(later, name)
            if old is not None and new is not None and old != new:
                raise ValueError(f"value {later.id} had another {name} before")
            said[name] = old if new is None else new
        return replace(earlier, **said)

    def step(self, rank: int, index: int, dropped: str | None, blobs: Blobs) -> Step:
        """The step that the lines make.

        Of a step that did not end, lines that speak of a value or operator whose line was never
        written are left out, and `dropped_line` says how many.

        Raises:
            LineError: A line speaks of what does not exist, or of what comes later.
        """
        lines = self._checked()
        if len(lines) < len(self._lines):
            count = len(self._lines) - len(lines)
            also = f"{count} lines about values that were not written yet"
            dropped = also if dropped is None else f"{dropped}, and {also}"
        operators = sorted(_of(Operator, lines), key=lambda operator: operator.id)
        sources: dict[int, Source] = {}
        for source in _of(Source, lines):
            sources.setdefault(source.value, source)
        return Step(
            rank=rank,
            index=index,
            operators=tuple(operators),
            values=self._values,
            sources=sources,
            modules=tuple(_of(ModuleCall, lines)),
            calls=tuple(sorted(_of(RootCall, lines), key=lambda call: call.index)),
            adjoints={adjoint.of: adjoint.value for adjoint in _of(Adjoint, lines)},
            updates=tuple(_of(Update, lines)),
            checks={check.operator: check for check in _of(Check, lines)},
            skipped=tuple(_of(Skipped, lines)),
            end=self._end,
            dropped_line=dropped,
            producers=self._producers(operators, sources),
            by_key={operator.key: operator for operator in operators},
            blobs=blobs,
        )

    def _checked(self) -> list[Line]:
        self._check_bases()
        known: list[Line] = []
        for number, entry in self._lines:
            missing = self._missing(entry)
            if missing is None:
                known.append(entry)
            elif self._end is not None:
                raise LineError(number, f"it speaks of {missing}, which has no line")
            elif isinstance(entry, Operator):
                del self._operators[entry.id]
        if self._end is not None and self._end.operators < len(self._operators):
            raise LineError(
                self._lines[-1][0],
                f"it says that {self._end.operators} operators ran, and {len(self._operators)} "
                "have lines",
            )
        return known

    def _missing(self, entry: Line) -> str | None:
        """The first thing that a line speaks of and no line is about."""
        if isinstance(entry, Check):
            return None if entry.operator in self._operators else f"operator {entry.operator}"
        for value in values_in(entry):
            if value not in self._values:
                return f"value {value}"
        return None

    def _check_bases(self) -> None:
        """Check that every view leads to a value that is none; forget bases of a killed run."""
        sound: set[int] = set()
        for value in list(self._values.values()):
            chain: list[int] = []
            on_chain: set[int] = set()
            at = value
            while at.base is not None and at.id not in sound:
                if at.id in on_chain:
                    raise LineError(self._value_lines[at.id], f"value {at.id} is a view of itself")
                chain.append(at.id)
                on_chain.add(at.id)
                if at.base not in self._values:
                    self._lose_base(at)
                    break
                at = self._values[at.base]
            sound.update(chain)

    def _lose_base(self, value: Value) -> None:
        if self._end is not None:
            raise LineError(
                self._value_lines[value.id],
                f"value {value.id} is a view of value {value.base}, which has no line",
            )
        why = "its base was not written before the run ended"
        self._values[value.id] = replace(value, base=None, skipped=value.skipped or why)

    def _producers(self, operators: list[Operator], sources: Iterable[int]) -> dict[int, int]:
        producers: dict[int, int] = {}
        known = set(sources)
        early: set[int] = set()  # read although nothing had made it yet
        for operator in operators:
            early.update(v for v in refs_in(operator.arguments.values()) if v not in known)
            for value in operator.produced:
                if value in early:
                    raise LineError(
                        self._operators[operator.id],
                        f"operator {operator.id} makes value {value}, which an earlier operator "
                        "read already",
                    )
                if value not in known:  # a view of all of a tensor returns what it was given
                    known.add(value)
                    producers[value] = operator.id
        return producers


def refs_in(arguments: Iterable[Argument]) -> Iterator[int]:
    """Ids of the values among arguments, in order, those in lists included."""
    for value in arguments:
        if isinstance(value, Ref):
            yield value.value
        elif isinstance(value, list):
            yield from refs_in(value)


def values_in(entry: Line) -> Iterator[int]:
    """Ids of the values that a line speaks of; the line about a value itself aside."""
    if isinstance(entry, Operator):
        yield from refs_in(entry.arguments.values())
        yield from entry.produced
    elif isinstance(entry, RootCall):
        yield from refs_in(entry.arguments.values())
    elif isinstance(entry, ModuleCall):
        yield from entry.inputs.values()
        yield from entry.outputs.values()
    elif isinstance(entry, Adjoint):
        yield from (entry.of, entry.value)
    elif isinstance(entry, (Source, Update)):
        yield entry.value


def _of(kind: type[_L], lines: list[Line]) -> list[_L]:
    return [line for line in lines if isinstance(line, kind)]
