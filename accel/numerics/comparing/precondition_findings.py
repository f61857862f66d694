"""Findings about what the runs begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accel.numerics.comparing.comparison import Kind, Precondition, Verdict
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.wording import ending, number_of

_KINDS: dict[str, Kind] = {
    "mode": "different switch",
    "argument": "different program",
}
_ORDER = ("mode", "argument", "ranks", "parameter", "buffer", "state", "input", "other", "random")
_MOST = 5
_NOUNS = {"mode": "mode", "argument": "argument", "ranks": "place", "parameter": "parameter",
          "buffer": "buffer", "state": "state", "input": "input", "other": "tensor",
          "random": "operator"}  # fmt: skip
_MODES = {
    "training": {"eval": "in evaluation mode", "training": "in training mode"},
    "autocast": {"None": "without autocast"},
    "gradients": {"on": "with gradients", "off": "without gradients"},
}
_CHANGED = ("the candidate's was", "the reference's was")  # see `drift`
_STATES = ("transposed", "permuted", "scaled", "rounded", "reversed", "rolled", "reshaped", "of ")


def of_preconditions(evidence: Evidence) -> Iterator[Verdict]:
    """One finding for each kind of thing that the runs begin with and that differs."""
    decisive = [one for one in evidence.preconditions if one.decisive]
    narrowed = _narrowed(decisive)
    if narrowed is not None:
        yield narrowed
        decisive = [one for one in decisive if not one.relation.endswith(_rounded_to(one))]
    for subject in _ORDER:
        group = [one for one in decisive if one.subject == subject]
        if group:
            yield _finding(group)


def of_swapped(swapped: Sequence[Precondition]) -> Verdict:
    """The finding that ranks have one another's inputs or parameters."""
    ranks = sorted({one.name.rpartition(" ")[2] for one in swapped})
    what = swapped[0].name.rpartition(" of rank ")[0]
    sentence = f"ranks {' and '.join(ranks)} have one another's {what}"
    return Verdict("different weight/input", sentence, tuple(map(str, swapped)))


def _finding(group: Sequence[Precondition]) -> Verdict:
    facts = [str(one) for one in group[:_MOST]]
    if len(group) > _MOST:
        more = len(group) - _MOST
        facts.append(f"{more} more differ{ending(more)}")
    sentence = _sentence(group[0])
    if len(group) > 1:
        others = number_of(len(group) - 1, f"more {_NOUNS[group[0].subject]}")
        sentence += f", and {others} differ{ending(len(group) - 1)}"
    kind = _KINDS.get(group[0].subject, "different weight/input")
    return Verdict(kind, sentence, tuple(facts))


def _sentence(one: Precondition) -> str:
    if one.subject == "mode":
        return _mode(one)
    if one.subject == "random":
        return f"other random numbers are drawn by {one.name}"
    if one.subject == "argument" and ": " in one.name:
        call, _, name = one.name.partition(": ")
        what = f"the model's argument {name}{_in_call(call)}"
        return f"{what} is {one.candidate}, in the reference {one.reference}"
    if one.subject == "argument":
        return f"the model is {one.candidate}, in the reference {one.reference}"
    named = f"the {one.subject} {one.name}"
    if one.subject == "other":
        named = f"a tensor that was made before the step, {one.name},"
    if one.reference in ("there", "not there"):
        run, other = ("reference", "candidate")
        if one.reference == "there":
            run, other = other, run
        return f"the {run} has no {one.subject} {one.name}, which the {other} has"
    return f"{named} {_relation(one)}"


def _relation(one: Precondition) -> str:
    """How the candidate's tensor is, after its name."""
    relation = one.relation
    if relation.startswith("of another shape"):
        shapes = [text.partition(" of norm")[0] for text in (one.candidate, one.reference)]
        return f"is of another shape: {shapes[0]}, in the reference {shapes[1]}"
    if relation.startswith(_STATES):
        return f"is {relation}"
    if relation.startswith("differs by"):
        return relation
    if relation.startswith("same elements"):
        return f"has the {relation}"
    far = "" if one.distance is None else f" by {one.distance:.3g} (relative L2)"
    if relation.startswith(_CHANGED):
        return f"differs{far}: {relation}"
    return f"differs: {relation}" if relation else f"differs{far}"


def _mode(one: Precondition) -> str:
    call, _, mode = one.name.partition(": ")
    words = _MODES[mode]
    here, there = (words.get(text, f"under autocast to {text}") for text in (
        one.candidate, one.reference))  # fmt: skip
    return f"the model runs {here}{_in_call(call)}, in the reference {there}"


def _in_call(call: str) -> str:
    """Which call of the model, unless it is the first."""
    return "" if call == "call 0" else f" in {call}"


def _narrowed(decisive: Sequence[Precondition]) -> Verdict | None:
    """One finding if most parameters are the other run's in another dtype."""
    parameters = [one for one in decisive if one.subject == "parameter"]
    rounded = [one for one in parameters if one.relation.endswith(_rounded_to(one))]
    if not rounded or 2 * len(rounded) < len(parameters):
        return None
    first = rounded[0]
    return Verdict(
        "different switch",
        f"the parameters have other dtypes: {first.candidate.split(' ')[0]} in the candidate, "
        f"{first.reference.split(' ')[0]} in the reference",
        (f"rounded, of the other run's: {number_of(len(rounded), 'parameter')}", str(first)),
    )


def _rounded_to(one: Precondition) -> str:
    dtypes = {one.candidate.split(" ")[0], one.reference.split(" ")[0]}
    if len(dtypes) < 2:
        return "\0"
    return next((f"rounded to {dtype}" for dtype in dtypes if one.relation.endswith(dtype)), "\0")
