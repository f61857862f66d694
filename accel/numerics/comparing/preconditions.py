"""What two runs begin with: parameters, batch, optimizer state, random generators, modes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from accel.numerics.comparing.alignment import Paths
from accel.numerics.comparing.comparison import Precondition
from accel.numerics.comparing.contents import Contents, distance, is_same, rounding
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.comparing.relations import Related, relation
from accel.numerics.storage.dtypes import INTEGERS
from accel.numerics.storage.entries import Argument, RootCall, Source, SourceKind
from accel_kernels.sketch import Sketch

_ORDER: tuple[SourceKind, ...] = ("parameter", "buffer", "input", "state")
_NOTHING = object()
_Values = dict[tuple[SourceKind, str], int]


def preconditions(a: Contents, b: Contents) -> list[Precondition]:
    """Everything that the runs begin with and that differs, parameters first.

    Tensors that were made before the step and have no name (`other`) are compared where operators
    read them, by `foreign`.
    """
    found = list(_tensors(a, b))
    found += _calls(a.step, b.step)
    return found


def named(contents: Contents) -> _Values:
    """Named values that no operator made, by kind and name; the first of each counts."""
    paths = Paths(contents.step)
    found: _Values = {}
    for value, source in sorted(contents.step.sources.items()):
        if source.kind != "other" and source.name:
            name = paths.of(source.name) if source.kind in ("parameter", "buffer") else source.name
            found.setdefault((source.kind, name), value)
    return found


def _tensors(a: Contents, b: Contents) -> Iterator[Precondition]:
    ours, theirs = named(a), named(b)
    for kind in _ORDER:
        for (of, name), value in ours.items():
            if of == kind and (of, name) in theirs:
                one = compared(a, b, kind, name, value, theirs[of, name])
                if one is not None:
                    yield one
        if kind in ("parameter", "input"):
            yield from _missing(kind, ours, theirs)


def _missing(kind: SourceKind, ours: _Values, theirs: _Values) -> Iterator[Precondition]:
    # A parameter that nothing read is in no recording: only where the other has some of the kind.
    names = [{name for of, name in side if of == kind} for side in (ours, theirs)]
    if not all(names):
        return
    for name in sorted(names[0] - names[1]):
        yield Precondition(kind, name, "there", "not there")
    for name in sorted(names[1] - names[0]):
        yield Precondition(kind, name, "not there", "there")


def compared(
    a: Contents, b: Contents, kind: SourceKind, name: str, left: int, right: int
) -> Precondition | None:
    """How two values that should be equal differ; None if they do not or nobody knows."""
    if not a.has_whole(left) or not b.has_whole(right):
        return None  # parts of a whole that nobody knows are of any shape
    ours, theirs = _related(a, left), _related(b, right)
    equal = _equal(ours.sketch, theirs.sketch)
    unknown = ours.sketch is None or theirs.sketch is None
    if ours.shape == theirs.shape and (equal or unknown) and kind != "other":
        return _other_dtype(kind, name, ours, theirs)
    if ours.shape == theirs.shape and equal:
        return None
    if ours.shape == theirs.shape and (ours.sketch is None or theirs.sketch is None):
        return None
    return Precondition(
        kind,
        name,
        _words(ours),
        _words(theirs),
        relation(ours, theirs),
        distance(ours.sketch, theirs.sketch),
    )


def _other_dtype(
    kind: SourceKind, name: str, ours: Related, theirs: Related
) -> Precondition | None:
    """Values that are equal, or nobody knows, in two dtypes: what is computed from them differs.

    Integers of two widths are only mentioned: frameworks differ in them (token ids), and what is
    equal in both indexes and counts alike.
    """
    if ours.dtype == theirs.dtype:
        return None
    found = f"of dtype {theirs.dtype}, in the reference {ours.dtype}"
    equal = kind == "parameter" and ours.sketch is not None and theirs.sketch is not None
    if equal and 0.0 < rounding(ours.dtype) < rounding(theirs.dtype):
        found = f"rounded to {theirs.dtype}"  # as its neighbours are that rounding changed
    elif equal and 0.0 < rounding(theirs.dtype) < rounding(ours.dtype):
        found = f"the reference is it rounded to {ours.dtype}"
    return Precondition(
        kind, name, _words(ours), _words(theirs), found, distance(ours.sketch, theirs.sketch),
        decisive=not {ours.dtype, theirs.dtype} <= set(INTEGERS),
    )  # fmt: skip


def _equal(a: Sketch | None, b: Sketch | None) -> bool:
    return is_same(a, b) or (distance(a, b) == 0.0)


def _related(contents: Contents, number: int) -> Related:
    value = contents.value(number)
    tensor: Tensor | None = None
    if contents.step.has_tensor(number):
        tensor = contents.step.tensor(number)
    return Related(value.dtype, value.shape, contents.sketch(number), tensor)


def _words(one: Related) -> str:
    """A tensor in a few words: `float32 [4, 8] of norm 3.1`."""
    text = f"{one.dtype} {list(one.shape)}"
    return text if one.sketch is None else f"{text} of norm {one.sketch.norm:.6g}"


def _calls(a: RecordedStep, b: RecordedStep) -> Iterator[Precondition]:
    theirs = {call.index: call for call in b.calls}
    for call in a.calls:
        other = theirs.get(call.index)
        if other is not None:
            yield from _call(call, other)
    if a.calls and b.calls and len(a.calls) != len(b.calls):
        counts = [_times(len(calls)) for calls in (a.calls, b.calls)]
        yield Precondition("argument", "the model", counts[0], counts[1])


def _times(count: int) -> str:
    return "called once" if count == 1 else f"called {count} times"


def _call(a: RootCall, b: RootCall) -> Iterator[Precondition]:
    name = f"call {a.index}"
    modes = {
        "training": ("training" if a.training else "eval", "training" if b.training else "eval"),
        "autocast": (str(a.autocast), str(b.autocast)),
        "gradients": ("on" if a.gradients else "off", "on" if b.gradients else "off"),
    }
    for mode, (left, right) in modes.items():
        if left != right:
            yield Precondition("mode", f"{name}: {mode}", left, right)
    yield from _arguments(name, a.arguments, b.arguments)
    for generator, state in a.generators.items():
        other = b.generators.get(generator)
        if other is not None and other != state:
            yield Precondition(
                "random", f"{name}: {generator} generator", state[:8], other[:8], decisive=False
            )


def _arguments(
    name: str, a: Mapping[str, Argument], b: Mapping[str, Argument]
) -> Iterator[Precondition]:
    for place in [*a, *(place for place in b if place not in a)]:
        if a.get(place, _NOTHING) != b.get(place, _NOTHING):
            left, right = (repr(side[place]) if place in side else "not given" for side in (a, b))
            if not any(_is_reference(side.get(place)) for side in (a, b)):
                yield Precondition("argument", f"{name}: {place}", left, right)


def _is_reference(argument: Argument) -> bool:
    from accel.numerics.comparing.contents import refs

    return bool(list(refs(argument)))


def is_foreign(sources: Mapping[int, Source], root: int) -> bool:
    """Whether a value was made outside of the recorded step and has no name."""
    source = sources.get(root)
    return source is not None and (source.kind == "other" or not source.name)
