"""Findings about what the runs begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accel.numerics.comparing.comparison import Kind, Precondition, Verdict
from accel.numerics.comparing.evidence import Evidence

_KINDS: dict[str, Kind] = {
    "mode": "different switch",
    "argument": "different program",
}
_ORDER = ("mode", "argument", "ranks", "parameter", "buffer", "state", "input", "other", "random")
_MOST = 5
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
    first = group[0]
    more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
    named = f"the {first.subject} {first.name}"
    if first.subject == "other":
        named = f"the tensor from elsewhere that is {first.name}"
    if first.reference in ("there", "not there"):
        what = f"is {first.candidate} in the candidate and {first.reference} in the reference"
    elif first.subject in ("mode", "argument"):
        what = f"is {first.candidate} where the reference has {first.reference}"
    elif first.relation.startswith(_STATES):
        what = f"is {first.relation}"
    else:
        what = f"differs: {first.relation}" if first.relation else "differs"
    facts = [str(one) for one in group[:_MOST]]
    if len(group) > _MOST:
        facts.append(f"{len(group) - _MOST} more differ")
    kind = _KINDS.get(first.subject, "different weight/input")
    return Verdict(kind, f"{named} {what}{more}", tuple(facts))


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
        (f"{len(rounded)} parameters are each other's rounded", str(first)),
    )


def _rounded_to(one: Precondition) -> str:
    dtypes = {one.candidate.split(" ")[0], one.reference.split(" ")[0]}
    if len(dtypes) < 2:
        return "\0"
    return next((f"rounded to {dtype}" for dtype in dtypes if one.relation.endswith(dtype)), "\0")
