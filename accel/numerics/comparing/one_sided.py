"""Findings where only one run has operators: the other is another framework's, values by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accel.numerics.comparing.comparison import Accuracy, Row, Run, Verdict
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.value_findings import numbers
from accel.numerics.comparing.wording import listed, number_of, row_in_words
from accel.numerics.storage.entries import Operator

_MOST = 3  # elements


def finding(evidence: Evidence, row: Row) -> Iterator[Verdict]:
    """What is known of a value that differs, if float64 says that one run's operators are right.

    Args:
        evidence: Of runs of which one has no operators.
        row: The first value that differs by more than its inputs and rounding explain.

    Returns:
        A finding at most: nothing where the elements of either run are missing, or not all
        operators there could be replayed.
    """
    run: Run = "reference" if evidence.a.step.operators else "candidate"
    other: Run = "candidate" if run == "reference" else "reference"
    known = evidence.accuracies.get(run, {})
    there = [one for one in evidence.contents(run).step.operators if _is_at(one, row)]
    checked = [known[one.id] for one in there if one.id in known]
    if not checked or not all(map(_is_right, checked)) or evidence.lacks(other, row):
        return
    names = listed(list(dict.fromkeys(one.key.op for one in there if one.id in known)))
    count = number_of(len(checked), "operator")
    verb = "is" if len(checked) == 1 else "are"
    yield Verdict(
        "different program",
        f"{row_in_words(row)} differs by more than rounding explains, and the {run}'s {count} "
        f"there ({names}) {verb} right by float64 replay: the {other}'s framework computes "
        "something else there, or its program asks for something else",
        (numbers(row), *_elements(row), _how_right(run, checked)),
        row.key, row.place, other,
    )  # fmt: skip


def _is_at(operator: Operator, row: Row) -> bool:
    """Whether an operator ran in the module that a value is of, or in one below it."""
    key = operator.key
    if key.phase != row.phase:
        return False
    return not row.module or key.module == row.module or key.module.startswith(f"{row.module}.")


def _is_right(accuracy: Accuracy) -> bool:
    return accuracy.verdict in ("right", "known inaccurate")


def _elements(row: Row) -> Iterator[str]:
    """The worst elements, in words."""
    for one in row.elements[:_MOST]:
        values = {"reference": one.reference, "candidate": one.candidate, "float64": one.exact}
        said = ", ".join(f"{what} {x:.9g}" for what, x in values.items() if x is not None)
        yield f"element {list(one.index)}: {said} ({one.ulps:.3g} units in the last place)"


def _how_right(run: Run, checked: Sequence[Accuracy]) -> str:
    worst = max((one.rms for one in checked if one.rms is not None), default=None)
    said = "" if worst is None else f", R at most {worst:.3g}"
    return (
        f"replayed in float64 and right: {number_of(len(checked), 'operator')} of the {run}{said}"
    )
