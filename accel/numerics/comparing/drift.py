"""What a later step begins with, and whether earlier steps or rounding carried along explain it.

Where the step before was compared, a pair of values that it ended with is no new beginning: it was
judged there. Where it was not, parameters are judged by size, all of them together: the L2 norm of
the difference over that of the parameters, w. Rounding explains w up to

    DRIFT * how far the parameters have moved since the first step that was compared,
    UNSEEN * sqrt(N), at most MOST_UNSEEN, if none was, before step N.

They come from 60 benign pairs of runs of 200 steps, compared after 1, 2, 5, 10, 20, 50, 100 and
200: five models (language models with composed and segmented attention, a convolutional network,
an encoder, a residual network with a shared block), AdamW and SGD, float32, autocast and bfloat16,
each with two threads and without oneDNN. The largest w over the movement was 0.10 (the
convolutional network under autocast after one step of AdamW; in float32 0.044), the largest
w / sqrt(N) 1.6e-3; other batches make w 0.75 to 1.1 times the movement. A single parameter says
little: AdamW moves a bias whose gradient is nothing but rounding, before a batch norm or of an
attention's keys, as far as any other, in any direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from accel.numerics.comparing.alignment import Alignment, Paths, ValuePair
from accel.numerics.comparing.comparison import Precondition, Run, Verdict
from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.preconditions import named
from accel.numerics.comparing.relations import is_definite
from accel.numerics.comparing.wording import number_of
from accel_kernels.sketch import Sketch

DRIFT, UNSEEN, MOST_UNSEEN = 0.25, 4e-3, 0.1
_TRAINED = ("parameter", "buffer", "state")
_MOST = 5
_ALIKE = 1e-12  # relative: the same elements, added up in another order
_Held = Mapping[tuple[str, str], tuple[Sketch, Sketch]]


@dataclass(frozen=True)
class Ending:
    """What a compared step ended with.

    Attributes:
        index: The step.
        pairs: Contents of values of the two runs that are the same value, as raw sketches.
        values: Contents of each run's values.
        updates: What the optimizer left of each run's parameters and state, by kind and name.
    """

    index: int
    pairs: frozenset[tuple[bytes, bytes]]
    values: Mapping[Run, frozenset[bytes]]
    updates: Mapping[Run, Mapping[tuple[str, str], Sketch]]

    def has_left(self, run: Run, place: tuple[str, str], held: Sketch) -> bool:
        """Whether a run's step ended with these contents of something."""
        known = self.updates[run].get(place)
        if known is None or held.raw == known.raw:
            return known is not None or held.raw in self.values[run]
        # Of several ranks, parts may have been added up in another order.
        return held.count == known.count and held.distance(known) <= _ALIKE * held.norm

    def explains(self, place: tuple[str, str], a: Sketch, b: Sketch) -> bool:
        """Whether the step ended with these two contents of the same value."""
        if (a.raw, b.raw) in self.pairs:
            return True
        named = all(place in of for of in self.updates.values())
        return named and self.has_left("reference", place, a) and self.has_left(
            "candidate", place, b
        )  # fmt: skip


@dataclass(frozen=True)
class Start:
    """The first compared step.

    Attributes:
        index: The step.
        parameters: The reference's before it, by name.
        apart: By how much all parameters together differed before it.
    """

    index: int
    parameters: Mapping[str, Sketch]
    apart: float


@dataclass
class History:
    """The steps that were compared so far, by rank."""

    starts: dict[int, Start] = field(default_factory=dict)
    endings: dict[int, Ending] = field(default_factory=dict)

    def add(
        self,
        a: Contents,
        b: Contents,
        pairs: Iterable[ValuePair],
        begun: Sequence[Precondition],
        alignment: Alignment,
    ) -> None:
        """Note a step that was compared.

        Args:
            a: The reference's values.
            b: The candidate's.
            pairs: Values that are the same one.
            begun: What differed before it and is explained.
            alignment: The step's.
        """
        rank = a.step.rank
        if rank not in self.starts:
            ours = dict(_parameters(a))
            self.starts[rank] = Start(a.step.index, ours, _together(ours, dict(_parameters(b))))
        found = {
            (left.raw, right.raw)
            for one in (*pairs, *alignment.boundaries, *alignment.gradients, *alignment.updates)
            if (left := a.sketch(one.a)) is not None and (right := b.sketch(one.b)) is not None
        }
        held = _held(a, b)
        for one in begun:
            sketches = held.get((one.subject, one.name))
            if sketches is not None and not one.decisive:
                found.add((sketches[0].raw, sketches[1].raw))
        runs: tuple[tuple[Run, Contents], ...] = (("reference", a), ("candidate", b))
        self.endings[rank] = Ending(
            a.step.index,
            frozenset(found),
            {run: frozenset(_raw(contents)) for run, contents in runs},
            {run: dict(_updated(contents)) for run, contents in runs},
        )

    def before(self, rank: int, step: int) -> Ending | None:
        """What the step before ended with, if it was compared."""
        found = self.endings.get(rank)
        return found if found is not None and found.index == step - 1 else None


@dataclass(frozen=True)
class Drift:
    """By how much parameters differ before a step that is not the first.

    Attributes:
        differing: How many parameters differ.
        parameters: How many there are in both runs.
        apart: By how much all together.
        allowed: Up to where rounding explains it; None where the step before does.
        moved: How far the reference's have moved since the first compared step, where known.
        step: The step.
        since: The first compared step, or None.
        largest: The largest distance of any of them, of buffers and of optimizer state.
        facts: The first of them in words.
    """

    differing: int
    parameters: int
    apart: float
    allowed: float | None
    moved: float | None
    step: int
    since: int | None
    largest: float
    facts: tuple[str, ...] = ()

    @property
    def by_size(self) -> bool:
        """Whether the step before was not compared, so that only its size can tell."""
        return self.allowed is not None

    @property
    def explained(self) -> bool:
        """Whether rounding explains it."""
        return self.allowed is None or self.apart <= self.allowed

    def __str__(self) -> str:
        of = f"{self.differing} of {number_of(self.parameters, 'parameter')}"
        verb = "differs" if self.differing == 1 else "differ"
        said = (
            f"{of} {verb} before step {self.step}, all together by {self.apart:.3g} (relative L2)"
        )
        if self.allowed is None:
            return f"{said}, as step {self.step - 1} left them"
        return f"{said}; rounding carried from earlier steps explains {self.allowed:.3g}"

    def verdict(self) -> Verdict:
        """The finding where rounding does not explain it."""
        facts = [str(self), *self.facts]
        if self.moved is not None:
            facts.append(f"they moved by {self.moved:.3g} since step {self.since}")
        return Verdict(
            "cannot decide",
            f"the parameters differ by {self.apart:.3g} (relative L2) before step {self.step}, "
            "more than rounding carried from earlier steps is known to make: it is either such "
            "rounding or another training; record every step from 0, or start both runs from the "
            "same checkpoint",
            tuple(facts),
        )


def judged(
    begun: Sequence[Precondition], a: Contents, b: Contents, history: History
) -> tuple[list[Precondition], Drift | None]:
    """The preconditions of a step, with what earlier steps explain no longer decisive.

    Returns:
        Them, and by how much parameters have drifted apart; None if there is nothing to explain.
    """
    step = a.step.index
    if step == 0 or not begun:
        return list(begun), None
    before, held = history.before(a.step.rank, step), _held(a, b)
    by_size = _sized(begun, held, before)
    found = [_explained(one, held, step, before, by_size=by_size) for one in begun]
    trained = [
        (old, new)
        for old, new in zip(begun, found, strict=True)
        if old.decisive and not new.decisive and old.subject in _TRAINED
    ]
    if not trained:
        return found, None
    return found, _drift([old for old, _ in trained], a, b, history, by_size=by_size)


def explains(before: Ending | None, a: Sketch | None, b: Sketch | None) -> bool:
    """Whether the step before ended with these two contents of the same value."""
    return before is not None and a is not None and b is not None and (a.raw, b.raw) in before.pairs


def _sized(begun: Sequence[Precondition], held: _Held, before: Ending | None) -> bool:
    """Whether there are parameters that only their size can explain."""
    for one in begun:
        sketches = held.get((one.subject, one.name))
        if one.subject != "parameter" or sketches is None or not _may_drift(one):
            continue
        if before is None or len(_changed_in(before, one, *sketches)) == 2:
            return True
    return False


def _explained(
    one: Precondition, held: _Held, step: int, before: Ending | None, *, by_size: bool
) -> Precondition:
    sketches = held.get((one.subject, one.name))
    if sketches is None or not one.decisive:
        return one
    if before is not None and before.explains((one.subject, one.name), *sketches):
        return replace(one, decisive=False, relation=f"as step {step - 1} left it")
    if one.subject not in _TRAINED:
        return one
    changed = () if before is None else _changed_in(before, one, *sketches)
    if len(changed) == 1:
        said = f"the {changed[0]}'s was changed after the optimizer's step {step - 1}"
        return replace(one, relation=", ".join(filter(None, (one.relation, said))))
    return replace(one, decisive=False) if by_size and _may_drift(one) else one


def _changed_in(before: Ending, one: Precondition, a: Sketch, b: Sketch) -> tuple[Run, ...]:
    """The runs in which the step before left something else."""
    runs: tuple[tuple[Run, Sketch], ...] = (("reference", a), ("candidate", b))
    place = one.subject, one.name
    return tuple(run for run, held in runs if not before.has_left(run, place, held))


def _may_drift(one: Precondition) -> bool:
    """Whether training can have made a difference: it transposes and scales nothing."""
    there = ("there", "not there")
    return one.reference not in there and not is_definite(one.relation)


def _drift(
    trained: Sequence[Precondition], a: Contents, b: Contents, history: History, *, by_size: bool
) -> Drift:
    ours, theirs = dict(_parameters(a)), dict(_parameters(b))
    start = history.starts.get(a.step.rank)
    moved = None if start is None else _together(start.parameters, ours)
    if moved is None or start is None:
        allowed = min(MOST_UNSEEN, UNSEEN * math.sqrt(a.step.index))
    else:
        allowed = DRIFT * moved + start.apart
    finite = [one.distance for one in trained if one.distance is not None]
    return Drift(
        differing=sum(one.subject == "parameter" for one in trained),
        parameters=len(ours.keys() & theirs.keys()),
        apart=_together(ours, theirs),
        allowed=allowed if by_size else None,
        moved=moved,
        step=a.step.index,
        since=None if start is None else start.index,
        largest=max((far for far in finite if math.isfinite(far)), default=0.0),
        facts=tuple(map(str, sorted(trained, key=_nearness)[:_MOST])),
    )


def _nearness(one: Precondition) -> float:
    return -(one.distance or 0.0)


def _together(a: Mapping[str, Sketch], b: Mapping[str, Sketch]) -> float:
    """Distance of all parameters together, over the norm of the first."""
    squares = norms = 0.0
    for name, left in a.items():
        right = b.get(name)
        if right is not None and right.count == left.count:
            squares += left.distance(right) ** 2
            norms += left.norm**2
    return math.sqrt(squares / norms) if norms > 0.0 else (math.inf if squares > 0.0 else 0.0)


def _parameters(contents: Contents) -> Iterator[tuple[str, Sketch]]:
    for (kind, name), value in named(contents).items():
        found = contents.sketch(value) if kind == "parameter" else None
        if found is not None:
            yield name, found


def _held(a: Contents, b: Contents) -> _Held:
    """What both runs hold of the same name before the step."""
    theirs = named(b)
    found: dict[tuple[str, str], tuple[Sketch, Sketch]] = {}
    for place, value in named(a).items():
        left = a.sketch(value)
        right = b.sketch(theirs[place]) if place in theirs else None
        if left is not None and right is not None:
            found[place] = left, right
    return found


def _updated(contents: Contents) -> Iterator[tuple[tuple[str, str], Sketch]]:
    paths = Paths(contents.step)
    for one in contents.step.updates:
        held, name = contents.sketch(one.value), paths.of(one.name)
        if held is not None:
            is_parameter = one.slot == "parameter"
            place = ("parameter", name) if is_parameter else ("state", f"{name}.{one.slot}")
            yield place, held


def _raw(contents: Contents) -> Iterator[bytes]:
    for value in contents.step.values.values():
        if value.sketch is not None:
            yield value.sketch.raw
