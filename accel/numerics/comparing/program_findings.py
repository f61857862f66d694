"""Findings about programs that differ: dtypes, arguments, operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accel.numerics.comparing import value_findings
from accel.numerics.comparing.comparison import Kind, Row, Verdict
from accel.numerics.comparing.divergence import LIMIT
from accel.numerics.comparing.environment import switches
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.structure import Structural, counted, is_cast, is_derived
from accel.numerics.comparing.wording import ending, number_of, operator_in_words, row_in_words
from accel.numerics.storage.entries import Operator

_MOST = 5
_HARMLESS = ("num_threads",)  # they order sums, and change no dtype
_ALL = 0.9  # share of operators beyond which a dtype is the model's and no single operator's


def of_arguments(evidence: Evidence) -> Iterator[Verdict]:
    """The first operator in another dtype, and the first with another argument, with an effect."""
    effective = [one for one in evidence.structural if _counts(evidence, one)]
    dtypes = [one for one in effective if one.kind == "dtype"]
    dtypes = [one for one in dtypes if not is_cast(one.pair.a)] or dtypes
    others = [one for one in effective if one.kind != "dtype"]
    others = [one for one in others if not _follows(evidence, one)]
    found = []
    if dtypes:
        found.append((dtypes[0].pair.a.id, _dtype(evidence, dtypes)))
    if others and not (dtypes and others[0].kind == "shape"):
        found.append((others[0].pair.a.id, _argument(others)))
    yield from (verdict for _, verdict in sorted(found, key=lambda pair: pair[0]))


def _follows(evidence: Evidence, one: Structural) -> bool:
    """Whether a difference is that of an input's shape or of the training mode."""
    found = [begun for begun in evidence.preconditions if begun.decisive]
    is_shape = one.kind == "shape"
    other_mode = any(one.subject == "mode" and one.name.endswith("training") for one in found)
    if other_mode and (is_shape or one.text.startswith(("argument train", "argument dropout"))):
        return True
    return is_shape and any(begun.relation == "of another shape" for begun in found)


def _counts(evidence: Evidence, one: Structural) -> bool:
    pair = one.pair
    if not evidence.has_effect(pair.a):
        return False
    if is_derived(one) and one.apart <= LIMIT * evidence.largest_before(pair.a.id):
        return False
    if one.kind == "dtype" or not _is_rebuilt(evidence, pair.a):
        return True
    # Where other operators run, two of the same name need not be the same.
    return any(row.status == "diverges" for row in evidence.rows_of(pair.a.key))


def _is_rebuilt(evidence: Evidence, operator: Operator) -> bool:
    """Whether other operators than casts have no counterpart at an operator's place."""
    place = operator.key[:3]
    runs = (evidence.unmatched("reference"), evidence.unmatched("candidate"))
    return any(one.key[:3] == place and not is_cast(one) for side in runs for one in side)


def _dtype(evidence: Evidence, found: Sequence[Structural]) -> Verdict:
    first = found[0]
    a, b = first.pair.a, first.pair.b
    facts = [f"{one.pair.a.key} {one.text}" for one in found[:_MOST]]
    if len(found) > _MOST:
        more = len(found) - _MOST
        facts.append(f"{number_of(more, 'more operator')} do{'es' if more == 1 else ''}")
    casts = [
        [one for one in evidence.unmatched(run) if is_cast(one) and one.key[:3] == a.key[:3]]
        for run in ("reference", "candidate")
    ]
    if casts[0] or casts[1]:
        facts.append(
            f"casts there: {len(casts[0])} missing in the candidate, {len(casts[1])} extra"
        )
    kind, why = _reason(evidence, found)
    facts += switches_in_words(evidence)
    place = b.place or a.place
    sentence = f"{operator_in_words(a.key, place)} {first.text}{why}"
    return Verdict(kind, sentence, tuple(facts), a.key, place)


def _reason(evidence: Evidence, found: Sequence[Structural]) -> tuple[Kind, str]:
    first = found[0]
    a, b = first.pair.a, first.pair.b
    if a.autocast != b.autocast:
        return (
            "different switch",
            f": it runs {_under(b.autocast)}, in the reference {_under(a.autocast)}",
        )
    if a.autocast is not None:
        return "different switch", f": a rule of autocast ({a.autocast}) is missing or different"
    if len(found) >= _ALL * max(1, len(evidence.alignment.operators)):
        return "different switch", ", as nearly all operators do"
    return "different program", ""


def _under(autocast: str | None) -> str:
    return f"under autocast to {autocast}" if autocast else "without autocast"


def switches_in_words(evidence: Evidence) -> list[str]:
    """The numeric switches in which the runs differ, as facts."""
    return [
        f"the switch {name} is {right}, in the reference {left}"
        for name, (left, right) in list(switches(evidence.environment).items())[:_MOST]
        if name not in _HARMLESS
    ]


def _argument(found: Sequence[Structural]) -> Verdict:
    first = found[0]
    a, b = first.pair.a, first.pair.b
    facts = [f"{one.pair.a.key}: {one.text}" for one in found[:_MOST]]
    if len(found) > _MOST:
        more = len(found) - _MOST
        facts.append(f"{more} more differ{ending(more)}")
    place = b.place or a.place
    name, text = operator_in_words(a.key, place), first.text
    if text.startswith("argument "):
        sentence = f"{name} is called with another argument: {text.removeprefix('argument ')}"
    else:
        sentence = f"{name} {text}"
    return Verdict("different program", sentence, tuple(facts), a.key, place)


def of_operators(evidence: Evidence, first: Row) -> Iterator[Verdict]:
    """Whether the first value that diverges does so where the runs have other operators."""
    left = _rebuilt(evidence.unmatched("reference"), first)
    right = _rebuilt(evidence.unmatched("candidate"), first)
    if not left and not right:
        return
    facts = [
        f"only in the reference: {counted(left) or 'nothing'}",
        f"only in the candidate: {counted(right) or 'nothing'}",
        value_findings.numbers(first),
    ]
    where, what = first.module or "the model", row_in_words(first)
    if _all_right(evidence, left, right):
        yield Verdict(
            "different program",
            f"{where} runs other operators, each of them right, and {what} differs by more "
            "than rounding explains",
            tuple(facts), first.key, first.place,
        )  # fmt: skip
        return
    yield Verdict(
        "cannot decide",
        f"{where} runs other operators, and {what} differs by more than rounding explains; "
        "whether they are meant to compute the same takes their elements",
        tuple(facts), first.key, first.place,
    )  # fmt: skip


def _rebuilt(operators: Sequence[Operator], row: Row) -> list[Operator]:
    return [
        one
        for one in operators
        if one.key.module == row.module and one.key.phase == row.phase and not is_cast(one)
    ]


def _all_right(evidence: Evidence, left: Sequence[Operator], right: Sequence[Operator]) -> bool:
    ours = evidence.accuracies.get("reference", {})
    theirs = evidence.accuracies.get("candidate", {})
    checked = [
        known[one.id].verdict
        for known, side in ((ours, left), (theirs, right))
        for one in side
        if one.id in known
    ]
    return bool(ours) and bool(theirs) and set(checked) == {"right"}
