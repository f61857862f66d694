"""Which operator, boundary and gradient of one run is which of the other.

By name first: operators of one module call and phase, in order. Where the two runs have other
operators in a module (fused against unfused, another version, a cast that autocast adds), their
sequences are aligned as texts are; what is left is aligned by content (`content.py`), and module
boundaries, gradients and updated parameters are aligned by their own names in any case.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.storage.entries import Key, ModuleCall, Operator, Phase

How = Literal["name", "order", "module", "content"]
_WRAPPERS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")
_LONGEST = 2000  # operators in one module call that are aligned in any order (it takes its square)


@dataclass(frozen=True)
class OperatorPair:
    """Two operators that are the same one."""

    a: Operator
    b: Operator
    how: How


@dataclass(frozen=True)
class ValuePair:
    """Two values that are the same one.

    Attributes:
        name: What they are, in words.
        phase: When they came to be.
        module: In which module.
        op: `module`, `gradient`, `parameter`, `state`, or an operator's name.
        a: The reference's value.
        b: The candidate's.
        how: How they were found.
        key: The reference's operator that made it, if it is about one.
        inputs: Pairs of values that it was computed from, where known.
    """

    name: str
    phase: Phase
    module: str
    op: str
    a: int
    b: int
    how: How
    key: Key | None = None
    inputs: tuple[tuple[int, int], ...] = ()


@dataclass
class Alignment:
    """What was aligned, in the reference's order."""

    operators: list[OperatorPair] = field(default_factory=list)
    only_a: list[Operator] = field(default_factory=list)
    only_b: list[Operator] = field(default_factory=list)
    boundaries: list[ValuePair] = field(default_factory=list)
    gradients: list[ValuePair] = field(default_factory=list)
    updates: list[ValuePair] = field(default_factory=list)


class Paths:
    """Module paths and parameter names without the wrappers that one run has and another not."""

    def __init__(self, step: RecordedStep) -> None:
        paths = {call.module for call in step.modules if call.module}
        # DistributedDataParallel has everything below one child called `module`.
        self._has_prefix = bool(paths) and all(
            path == "module" or path.startswith("module.") for path in paths
        )

    def of(self, path: str) -> str:
        """A path as an unwrapped model would have it."""
        parts = [part for part in path.split(".") if part not in _WRAPPERS]
        if self._has_prefix and parts[:1] == ["module"]:
            parts = parts[1:]
        return ".".join(parts)


def aligned(a: RecordedStep, b: RecordedStep) -> Alignment:
    """Align two steps."""
    result = Alignment()
    _align_operators(a, b, result)
    paths = Paths(a), Paths(b)
    result.boundaries = list(_boundaries(a, b, paths))
    result.gradients = list(_gradients(a, b, paths, result.boundaries))
    result.updates = list(_updates(a, b, paths))
    return result


def plain(op: str) -> str:
    """An operator's name without what only says where its result goes."""
    bare = op.split("::")[-1]
    return bare[:-1] if bare.endswith("_") and not bare.endswith("__") else bare


# --- operators ------------------------------------------------------------------------------------

_Group = tuple[Phase, str, int, str]


def _align_operators(a: RecordedStep, b: RecordedStep, result: Alignment) -> None:
    pairs: list[OperatorPair] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    origins: dict[tuple[str, int, str], str] = {}
    for backward in (False, True):
        ours, theirs = _groups(a, backward, {}), _groups(b, backward, origins)
        for group, left in ours.items():
            pairs += _matched(left, theirs.get(group, []))
        if not backward:
            origins = _translated(pairs, Paths(b))
    for pair in pairs:
        taken[0].add(pair.a.id)
        taken[1].add(pair.b.id)
    result.operators = sorted(pairs, key=lambda pair: pair.a.id)
    result.only_a = [one for one in a.operators if one.id not in taken[0]]
    result.only_b = [one for one in b.operators if one.id not in taken[1]]


def _groups(
    step: RecordedStep, backward: bool, origins: dict[tuple[str, int, str], str]
) -> dict[_Group, list[Operator]]:
    """Operators of each place, in order; the candidate's origins in the reference's names."""
    paths = Paths(step)
    found: dict[_Group, list[Operator]] = defaultdict(list)
    for one in step.operators:
        key = one.key
        if bool(key.origin) != backward:
            continue
        module = paths.of(key.module)
        first, slash, rest = key.origin.partition("/")
        origin = origins.get((module, key.call, first), first) + slash + rest
        found[key.phase, module, key.call, origin].append(one)
    return dict(found)


def _translated(pairs: Iterable[OperatorPair], paths: Paths) -> dict[tuple[str, int, str], str]:
    """The candidate's `op#k` of forward operators, to the reference's."""
    return {
        (paths.of(pair.b.key.module), pair.b.key.call, f"{pair.b.key.op}#{pair.b.key.k}"): (
            f"{pair.a.key.op}#{pair.a.key.k}"
        )
        for pair in pairs
        if pair.a.key.phase == "forward"
    }


def _matched(left: list[Operator], right: list[Operator]) -> Iterator[OperatorPair]:
    names = [[plain(one.key.op) for one in side] for side in (left, right)]
    if names[0] == names[1]:
        for x, y in zip(left, right, strict=True):
            yield OperatorPair(x, y, "name")
        return
    if max(map(len, names)) > _LONGEST:
        yield from _by_count(left, right)
        return
    matcher = difflib.SequenceMatcher(None, names[0], names[1], autojunk=False)
    for begin, start, size in matcher.get_matching_blocks():
        for x, y in zip(left[begin : begin + size], right[start : start + size], strict=True):
            yield OperatorPair(x, y, "name" if x.key[4:] == y.key[4:] else "order")


def _by_count(left: list[Operator], right: list[Operator]) -> Iterator[OperatorPair]:
    """The n-th `mul` or `mul_` of one side is the n-th of the other, wherever it stands.

    Counted anew: an operator's own `k` counts `mul` and `mul_` apart.
    """
    known = dict(_counted(right))
    for place, one in _counted(left):
        other = known.get(place)
        if other is not None:
            yield OperatorPair(one, other, "name")


def _counted(side: list[Operator]) -> Iterator[tuple[tuple[str, int], Operator]]:
    seen: Counter[str] = Counter()
    for one in side:
        name = plain(one.key.op)
        yield (name, seen[name]), one
        seen[name] += 1


# --- boundaries -----------------------------------------------------------------------------------


def _module_calls(step: RecordedStep, paths: Paths) -> dict[tuple[str, str, int], ModuleCall]:
    return {(call.phase, paths.of(call.module), call.call): call for call in step.modules}


def _boundaries(
    a: RecordedStep, b: RecordedStep, paths: tuple[Paths, Paths]
) -> Iterator[ValuePair]:
    theirs = _module_calls(b, paths[1])
    for (phase, module, number), call in _module_calls(a, paths[0]).items():
        other = theirs.get((phase, module, number))
        if other is None:
            continue
        inputs = tuple(
            (value, other.inputs[place])
            for place, value in call.inputs.items()
            if place in other.inputs
        )
        for place, value in call.outputs.items():
            if place in other.outputs:
                times = f", call {number}" if number else ""
                name = f"output {place} of {module or '(the model)'}{times}"
                name = name if phase == "forward" else f"recomputed {name}"
                yield ValuePair(
                    name, call.phase, module, "module", value, other.outputs[place], "module",
                    inputs=inputs,
                )  # fmt: skip


def _gradients(
    a: RecordedStep, b: RecordedStep, paths: tuple[Paths, Paths], boundaries: list[ValuePair]
) -> Iterator[ValuePair]:
    for pair in boundaries:
        left, right = a.adjoints.get(pair.a), b.adjoints.get(pair.b)
        if pair.phase == "forward" and left is not None and right is not None:
            name = f"gradient of {pair.name}"
            yield ValuePair(name, "backward", pair.module, "gradient", left, right, "module")
    theirs = {(s.kind, paths[1].of(s.name)): value for value, s in b.sources.items() if s.name}
    for value, source in a.sources.items():
        name = paths[0].of(source.name)
        other = theirs.get((source.kind, name)) if source.name else None
        left, right = a.adjoints.get(value), None if other is None else b.adjoints.get(other)
        if left is not None and right is not None:
            module = name.rpartition(".")[0] if source.kind == "parameter" else ""
            text = f"gradient of {source.kind} {name}"
            yield ValuePair(text, "backward", module, "gradient", left, right, "module")


def _updates(a: RecordedStep, b: RecordedStep, paths: tuple[Paths, Paths]) -> Iterator[ValuePair]:
    theirs = dict(_each_update(b, paths[1]))
    for (name, slot, number), value in _each_update(a, paths[0]):
        other = theirs.get((name, slot, number))
        if other is not None:
            op = "parameter" if slot == "parameter" else "state"
            times = f", step {number}" if number else ""
            text = f"{slot} of {name} after the optimizer{times}"
            module = name.rpartition(".")[0]
            yield ValuePair(text, "optimizer", module, op, value, other, "module")


def _each_update(step: RecordedStep, paths: Paths) -> Iterator[tuple[tuple[str, str, int], int]]:
    """Updated values by parameter, slot and how often an optimizer updated it before."""
    seen: Counter[tuple[str, str]] = Counter()
    for one in step.updates:
        place = paths.of(one.name), one.slot
        yield (*place, seen[place]), one.value
        seen[place] += 1
