"""The same modules under other names: `fc1` in one run, `0` in the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from accel.numerics.comparing.alignment import Paths
from accel.numerics.comparing.comparison import Precondition
from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.comparing.wording import listed
from accel.numerics.storage.entries import OUTSIDE
from accel.numerics.storage.steps import Step

Names = dict[str, str]  # of the candidate's modules, those of the reference


def renamed_modules(a: RecordedStep, b: RecordedStep) -> Names:
    """Which modules that only the candidate has are which that only the reference has.

    Parameters that each run lacks are paired by equal contents (shape, dtype and all numbers of
    their sketches) where the name below their module is the same; a module is renamed if all its
    parameters are paired with those of one other. Modules without parameters follow if those that
    are left are of the same classes in the same order.

    Args:
        a: The reference's step.
        b: The candidate's.

    Returns:
        The reference's paths by the candidate's, both without wrappers; empty if a parameter of
        one run is left without a partner in the other: then they are other models.
    """
    ours, theirs = _parameters(a), _parameters(b)
    only_a = {name: what for name, what in ours.items() if name not in theirs}
    only_b = {name: what for name, what in theirs.items() if name not in ours}
    if not only_a or len(only_a) != len(only_b):
        return {}
    left, right = _by_module(only_a), _by_module(only_b)
    waiting: dict[object, list[str]] = defaultdict(list)
    for module, what in left.items():
        waiting[what].append(module)
    found: Names = {}
    for module, what in right.items():
        if not waiting[what]:
            return {}
        found[module] = waiting[what].pop(0)  # equal modules in the order of their first use
    found |= _without_parameters(a, b, found)
    order = list(_classes(b))
    return {name: found[name] for name in sorted(found, key=lambda one: _place(order, one))}


def _place(order: list[str], name: str) -> int:
    return order.index(name) if name in order else -1


def _parameters(step: RecordedStep) -> dict[str, object]:
    """What tells the contents of each named parameter, in the order of their use."""
    contents, paths = Contents(step), Paths(step)
    found: dict[str, object] = {}
    for value, source in sorted(step.sources.items()):
        sketch = contents.sketch(value)
        if source.kind == "parameter" and source.name and sketch is not None:
            described = contents.value(value)
            what = described.dtype, described.shape, sketch.raw
            found.setdefault(paths.of(source.name), what)
    return found


def _by_module(parameters: Mapping[str, object]) -> dict[str, frozenset[tuple[str, object]]]:
    found: dict[str, set[tuple[str, object]]] = defaultdict(set)
    for name, what in parameters.items():
        module, _, leaf = name.rpartition(".")
        found[module].add((leaf, what))
    return {module: frozenset(what) for module, what in found.items()}


def _without_parameters(a: RecordedStep, b: RecordedStep, found: Names) -> Names:
    classes = [_classes(step) for step in (a, b)]
    left = {m: c for m, c in classes[0].items() if m not in classes[1] and m not in found.values()}
    right = {m: c for m, c in classes[1].items() if m not in classes[0] and m not in found}
    if list(left.values()) != list(right.values()):
        return {}
    return dict(zip(right, left, strict=True))


def _classes(step: RecordedStep) -> dict[str, str]:
    """The classes of the modules below the root, in the order of their first calls."""
    paths, found = Paths(step), dict[str, str]()
    for call in sorted(step.modules, key=lambda one: (one.first, -one.last)):
        path = paths.of(call.module)
        if path:
            found.setdefault(path, call.class_name)
    return found


def with_names(step: RecordedStep, names: Names) -> RecordedStep:
    """A recorded step with the reference's names for its modules; any other as it is."""
    if not names or not isinstance(step, Step):
        return step
    paths = Paths(step)

    def module(path: str) -> str:
        return path if path == OUTSIDE else names.get(paths.of(path), path)

    def parameter(name: str) -> str:
        inside, dot, leaf = name.rpartition(".")
        found = module(inside)
        return f"{found}.{leaf}" if found else leaf if dot or found != inside else name

    optimizers = {one.key.module for one in step.operators if one.key.phase == "optimizer"}
    operators = tuple(
        one if one.key.module in optimizers
        else replace(one, key=one.key._replace(module=module(one.key.module)))
        for one in step.operators
    )  # fmt: skip
    return replace(
        step,
        operators=operators,
        by_key={one.key: one for one in operators},
        modules=tuple(replace(call, module=module(call.module)) for call in step.modules),
        updates=tuple(replace(one, name=parameter(one.name)) for one in step.updates),
        sources={
            value: replace(one, name=parameter(one.name))
            if one.kind in ("parameter", "buffer") and one.name else one
            for value, one in step.sources.items()
        },
    )  # fmt: skip


def said(names: Names) -> list[Precondition]:
    """What was renamed, to be known: it explains no difference."""
    return [
        Precondition(
            "argument", f"the name of a module: {ours or '(the model)'}", ours, theirs, "renamed",
            decisive=False,
        )
        for theirs, ours in names.items()
    ]  # fmt: skip


def in_words(names: Names) -> list[str]:
    """The same in a sentence."""
    if not names:
        return []
    pairs = [f"{theirs} is {ours or '(the model)'}" for theirs, ours in names.items()]
    return [
        "modules have other names in the candidate, with equal parameters, and are named as in the "
        f"reference: {listed(pairs)}"
    ]
