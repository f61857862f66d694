"""Several ranks of one run, put together: sketches of parts add up to that of the whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from accel.numerics.comparing.comparison import Run, Verdict
from accel.numerics.comparing.contents import is_same, refs
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
_UNKNOWN = "other on every rank, and the recording does not say which part of a whole it is"


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
        differing: Parameters of which ranks have different copies, before the step.
        drifting: Parameters of which they have different copies only after it.
        notes: How many values were put together how.
    """

    step: RecordedStep
    parts: frozenset[int] = frozenset()
    differing: tuple[str, ...] = ()
    drifting: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def broken(self, run: Run) -> Iterator[Verdict]:
        """Findings about copies that should be equal."""
        if self.differing:
            names = ", ".join(self.differing[:5])
            yield Verdict(
                "different weight/input",
                f"the ranks of the {run} hold different copies of {self.differing[0]}",
                (f"{len(self.differing)} parameters differ between ranks: {names}",),
                run=run,
            )
        if self.drifting:
            names = ", ".join(self.drifting[:5])
            yield Verdict(
                "different program",
                f"the copies of {self.drifting[0]} on the ranks of the {run} drift apart in this "
                "step: their gradients were not made equal",
                (f"{len(self.drifting)} parameters do: {names}",),
                run=run,
            )


def merged(steps: Mapping[int, RecordedStep]) -> Merged:
    """Put one step of all ranks of a run together."""
    first = steps[min(steps)]
    if len(steps) == 1:
        return Merged(first)
    roles = {rank: _roles(step) for rank, step in steps.items()}
    by_value = {value: role for role, value in reversed(roles[first.rank].items())}
    values: dict[int, Value] = {}
    parts, how = set(), Counter[str]()
    for number, value in first.values.items():
        copies = _copies(steps, roles, by_value.get(number))
        values[number], kind = _together(value, copies)
        how[kind] += 1
        if kind == "pieces" and any(_is_row_piece(copy) for copy in copies):
            parts.add(number)
    step = Whole(
        first.rank, first.index, first.operators, values, first.sources, first.modules,
        first.calls, first.adjoints, first.updates, first.skipped, first.end, first.producers,
        first.by_key,
    )  # fmt: skip
    differing = _differing(steps, roles, "source")
    drifting = [name for name in _differing(steps, roles, "update") if name not in differing]
    return Merged(step, frozenset(parts), tuple(differing), tuple(drifting), _notes(steps, how))


def _notes(steps: Mapping[int, RecordedStep], how: Counter[str]) -> tuple[str, ...]:
    words = {
        "copies": "equal on all of them",
        "pieces": "put together from pieces",
        "addends": "added up",
        "unknown": "left out: " + _UNKNOWN,
    }
    said = ", ".join(f"{how[kind]} {text}" for kind, text in words.items() if how[kind])
    return (f"{len(steps)} ranks were put together: {said}",)


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


def _together(template: Value, copies: Sequence[Value]) -> tuple[Value, str]:
    """One value for the copies or parts of all ranks, and how it came to be."""
    unknown = replace(template, sketch=None, blob=None, skipped=_UNKNOWN)
    if template.base is not None:
        return replace(template, blob=None), "views"
    if not copies:
        return unknown, "unknown"
    shards = [copy.shard for copy in copies]
    if all(shard is None for shard in shards):
        if all(is_same(copies[0].sketch, copy.sketch) for copy in copies[1:]):
            return replace(template, blob=None), "copies"
        return unknown, "unknown"
    added = _added(copies, shards)
    if added is None:
        return unknown, "unknown"
    whole, kind = added
    shape = next(shard.shape for shard in shards if shard is not None)
    return replace(template, sketch=whole, shape=shape, blob=None, shard=None), kind


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
    if pieces and total.count != math.prod(first.shape):
        return None
    if addends:
        total = _as_value(total, addends[0].count)
    return total, "addends" if addends else "pieces"


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


def _differing(
    steps: Mapping[int, RecordedStep], roles: Mapping[int, Mapping[Role, int]], what: str
) -> list[str]:
    """Parameters of which ranks hold unequal copies."""
    first = min(steps)
    names = []
    for role in roles[first]:
        is_source = what == "source" and role[:2] == ("source", "parameter")
        is_update = what == "update" and role[0] == "update" and role[2] == "parameter"
        if not is_source and not is_update:
            continue
        copies = _copies(steps, roles, role)
        whole = [copy for copy in copies if copy.shard is None and copy.sketch is not None]
        if len(whole) == len(steps) and not all(
            is_same(whole[0].sketch, copy.sketch) for copy in whole[1:]
        ):
            names.append(str(role[2] if is_source else role[1]))
    return names


def has_other_parts(ours: Mapping[int, RecordedStep], theirs: Mapping[int, RecordedStep]) -> bool:
    """Whether runs of equally many ranks hold their parameters or batch in other parts."""
    return any(_parts(ours[rank]) != _parts(theirs[rank]) for rank in ours)


def _parts(step: RecordedStep) -> dict[tuple[str, str], tuple[tuple[int, ...], Shard | None]]:
    return {
        (source.kind, source.name): (step.values[value].shape, step.values[value].shard)
        for value, source in step.sources.items()
        if source.kind in ("parameter", "input")
    }
