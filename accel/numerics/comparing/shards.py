"""Several ranks of one run, put together: sketches of parts add up to that of the whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from accel.numerics.comparing.contents import NO_WHOLE, is_same, refs
from accel.numerics.comparing.copies import Differing, are_alike, is_copy
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.storage.entries import (
    Check,
    End,
    Key,
    ModuleCall,
    Operator,
    RootCall,
    Shard,
    Skipped,
    Source,
    Update,
    Value,
)
from accel_kernels.sketch import Sketch

Role = tuple[object, ...]
_PARAMETER = ("source", "parameter")


@dataclass(frozen=True)
class Whole:
    """A step put together; the operators and ids are those of its first rank."""

    rank: int
    index: int
    operators: tuple[Operator, ...]
    values: Mapping[int, Value]
    sources: Mapping[int, Source]
    modules: tuple[ModuleCall, ...]
    calls: tuple[RootCall, ...]
    adjoints: Mapping[int, int]
    updates: tuple[Update, ...]
    skipped: tuple[Skipped, ...]
    end: End | None
    producers: Mapping[int, int]
    by_key: Mapping[Key, Operator]
    checks: Mapping[int, Check] = field(default_factory=dict)

    def tensor(self, value: int, /) -> Tensor:
        """Always refused: a whole has sketches only.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"value {value} is put together from several ranks: it has no elements")

    def has_tensor(self, value: int, /) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Merged:
    """A step put together, and what was seen while that was done.

    Attributes:
        step: The step.
        parts: Ids of values that are put together from pieces along dimension 0.
        differing: Copies that ranks have of parameters and gradients, where they are not alike.
        notes: How many values were put together how.
    """

    step: RecordedStep
    parts: frozenset[int] = frozenset()
    differing: tuple[Differing, ...] = ()
    notes: tuple[str, ...] = ()

    def named(self) -> dict[tuple[str, str], Value]:
        """The values of parameters, their gradients and their updates, by kind and name."""
        found = {}
        for role, value in _roles(self.step).items():
            known = _parameter(role)
            if known is not None:
                found[known] = self.step.values[value]
        return found


def merged(steps: Mapping[int, RecordedStep], world: int) -> Merged:
    """Put one step of all ranks of a run together.

    Args:
        steps: Of the ranks that were recorded.
        world: How many ranks the run had.
    """
    first = steps[min(steps)]
    if world == 1:
        return Merged(first)
    roles = {rank: _roles(step) for rank, step in steps.items()}
    by_value = {value: role for role, value in reversed(roles[first.rank].items())}
    values: dict[int, Value] = {}
    kinds: dict[int, str] = {}
    parts = set()
    for number, value in first.values.items():
        copies = _copies(steps, roles, by_value.get(number))
        values[number], kinds[number] = _together(value, copies, is_all=len(steps) == world)
        if kinds[number] == "pieces" and any(_is_row_piece(copy) for copy in copies):
            parts.add(number)
    _doubt(first, values, kinds)
    step = Whole(
        first.rank, first.index, first.operators, values, first.sources, first.modules,
        first.calls, first.adjoints, first.updates, first.skipped, first.end, first.producers,
        first.by_key,
    )  # fmt: skip
    differing = tuple(_differing(steps, roles))
    notes = (*_notes(steps, Counter(kinds.values())), *_uneven(steps, roles))
    return Merged(step, frozenset(parts), differing, notes)


def _doubt(step: RecordedStep, values: dict[int, Value], kinds: dict[int, str]) -> None:
    """Leave out copies that were computed from parts: a count of rows is no count of all rows.

    What a collective returns is of the whole.
    """
    for operator in step.operators:
        if operator.key.phase == "collective":
            continue
        given = operator.arguments
        if operator.name == "aten::copy_":  # what it overwrites does not matter
            given = {name: value for name, value in given.items() if name != "self"}
        read = {kinds[_base(values, v)] for argument in given.values() for v in refs(argument)}
        if not read & {"pieces", "unknown"}:
            continue
        for number in operator.produced:
            if kinds[number] == "copies":
                kinds[number] = "unknown"
                values[number] = replace(values[number], sketch=None, skipped=NO_WHOLE)


def _base(values: Mapping[int, Value], number: int) -> int:
    while (base := values[number].base) is not None:
        number = base
    return number


def _notes(steps: Mapping[int, RecordedStep], how: Counter[str]) -> tuple[str, ...]:
    words = {
        "copies": "equal on all of them",
        "pieces": "put together from pieces",
        "addends": "added up",
        "unknown": "left out: " + NO_WHOLE,
    }
    how = how.copy()
    how["copies"] += how.pop("stated", 0)
    said = ", ".join(f"{how[kind]} {text}" for kind, text in words.items() if how[kind])
    return (f"{len(steps)} ranks were put together: {said}",)


def _uneven(
    steps: Mapping[int, RecordedStep], roles: Mapping[int, Mapping[Role, int]]
) -> Iterator[str]:
    """Inputs of which ranks do not agree how large the whole is."""
    for role in roles[min(steps)]:
        is_input = role[:2] == ("source", "input") or (role[0] == "input" and role[2] == "")
        copies = _copies(steps, roles, role) if is_input else []
        if len({copy.shard.shape for copy in copies if copy.shard is not None}) > 1:
            rows = ", ".join(str(copy.shape[0]) for copy in copies)
            yield (
                f"the ranks are given {rows} rows of input {role[-1]}: say which with Recorder.rows"
            )


def _roles(step: RecordedStep) -> dict[Role, int]:
    """What each value of a step is, in words that are the same on every rank."""
    found: dict[Role, int] = {}
    for value, source in step.sources.items():
        if source.name:
            found.setdefault(("source", source.kind, source.name), value)
    for operator in step.operators:
        for index, value in enumerate(operator.produced):
            found.setdefault(("made", operator.key, index), value)
        for index, value in enumerate(_read(operator)):
            found.setdefault(("read", operator.key, index), value)
    for update in step.updates:
        found.setdefault(("update", update.name, update.slot), update.value)
    for call in step.modules:
        place = call.phase, call.module, call.call
        for name, value in call.inputs.items():
            found.setdefault(("input", *place, name), value)
        for name, value in call.outputs.items():
            found.setdefault(("output", *place, name), value)
    first = {value: role for role, value in reversed(found.items())}
    for of, value in step.adjoints.items():
        if of in first:
            found.setdefault(("adjoint", first[of]), value)
    return found


def _read(operator: Operator) -> list[int]:
    return [value for argument in operator.arguments.values() for value in refs(argument)]


def _copies(
    steps: Mapping[int, RecordedStep], roles: Mapping[int, Mapping[Role, int]], role: Role | None
) -> list[Value]:
    """The same value on all ranks; empty if a rank has none."""
    found = []
    for rank, step in steps.items():
        number = None if role is None else roles[rank].get(role)
        if number is None:
            return []
        found.append(step.values[number])
    return found


def _together(template: Value, copies: Sequence[Value], *, is_all: bool) -> tuple[Value, str]:
    """One value for the copies or parts of all ranks, and how it came to be.

    Args:
        template: The first rank's.
        copies: Those of the ranks that were recorded.
        is_all: Whether these are all: of a sum no addend may be missing.
    """
    unknown = replace(template, sketch=None, blob=None, skipped=NO_WHOLE)
    if template.base is not None and template.sketch is None:
        return replace(template, blob=None), "views"
    if not copies:
        return unknown, "unknown"
    shards = [copy.shard for copy in copies]
    if all(shard is None for shard in shards):
        if len(copies) > 1 and all(is_same(copies[0].sketch, copy.sketch) for copy in copies[1:]):
            return replace(template, blob=None), "copies"
        return unknown, "unknown"
    added = _added(copies, shards)
    if added is None or (added[1] == "addends" and not is_all):
        return unknown, "unknown"
    whole, kind = added
    shape = next(shard.shape for shard in shards if shard is not None)
    return replace(template, sketch=whole, shape=shape, blob=None, base=None, shard=None), kind


def _added(copies: Sequence[Value], shards: Sequence[Shard | None]) -> tuple[Sketch, str] | None:
    """The sum of the parts' sketches; None if they do not make up the whole."""
    known = [(shard, copy.sketch) for shard, copy in zip(shards, copies, strict=True)]
    pieces: dict[tuple[int, ...], Sketch] = {}
    addends: list[Sketch] = []
    for shard, one in known:
        if shard is None or one is None:
            return None
        if shard.partial:
            addends.append(one)
        elif shard.offset in pieces:
            if not is_same(pieces[shard.offset], one):
                return None
        else:
            pieces[shard.offset] = one
    if addends and pieces:
        return None
    total = _sum(addends or list(pieces.values()))
    first = next(shard for shard in shards if shard is not None)
    if pieces and total.count not in (math.prod(first.shape), 2 * math.prod(first.shape)):
        return None  # a complex element counts twice
    if addends:
        each = addends[0].count // max(1, math.prod(copies[0].shape))  # 2 if complex
        total = _as_value(total, each * math.prod(first.shape))
    if addends:
        return total, "addends"
    return total, "stated" if all(map(is_copy, copies)) else "pieces"


def _sum(sketches: Sequence[Sketch]) -> Sketch:
    total = sketches[0]
    for one in sketches[1:]:
        total = total + one
    return total


def _as_value(total: Sketch, count: int) -> Sketch:
    """A sum of addends as a tensor of `count` elements; its norm is estimated from the sums."""
    import struct

    from accel_kernels.sketch.layout import COUNT, NUMBERS, SQUARES

    numbers = list(total.numbers)
    numbers[COUNT] = float(count)
    numbers[SQUARES] = math.fsum(x * x for x in total.sums)
    return Sketch(struct.pack(f"<{NUMBERS}d", *numbers))


def _is_row_piece(value: Value) -> bool:
    """Whether a value is some rows of a whole: a part of the batch."""
    shard = value.shard
    return (
        shard is not None
        and not shard.partial
        and len(shard.shape) > 0
        and shard.shape[0] != value.shape[0]
        and shard.shape[1:] == value.shape[1:]
    )


def _parameter(role: Role) -> tuple[str, str] | None:
    """Which parameter's value, gradient or update a role is; None for others."""
    if role[:2] == _PARAMETER:
        return "parameter", str(role[2])
    if role[0] == "adjoint" and isinstance(role[1], tuple) and role[1][:2] == _PARAMETER:
        return "gradient", str(role[1][2])
    if role[0] == "update" and role[2] == "parameter":
        return "update", str(role[1])
    return None


def _differing(
    steps: Mapping[int, RecordedStep], roles: Mapping[int, Mapping[Role, int]]
) -> Iterator[Differing]:
    """Parameters and gradients of which ranks hold unequal copies."""
    for role in roles[min(steps)]:
        known = _parameter(role)
        copies = [] if known is None else _copies(steps, roles, role)
        if known is None or not copies or are_alike(copies):
            continue
        if len({(copy.shape, copy.shard) for copy in copies}) == 1:
            yield Differing(*known, dict(zip(steps, copies, strict=True)))


def has_other_parts(ours: Mapping[int, RecordedStep], theirs: Mapping[int, RecordedStep]) -> bool:
    """Whether runs of equally many ranks hold their parameters or batch in other parts."""
    return any(_parts(ours[rank]) != _parts(theirs[rank]) for rank in ours)


def _parts(step: RecordedStep) -> dict[tuple[str, str], tuple[tuple[int, ...], Shard | None]]:
    return {
        (source.kind, source.name): (step.values[value].shape, step.values[value].shard)
        for value, source in step.sources.items()
        if source.kind in ("parameter", "input")
    }
