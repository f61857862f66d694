"""Findings about what only one run does to a value: another optimizer, a clipped gradient."""

from __future__ import annotations

from collections.abc import Iterator

from accel.numerics.comparing.comparison import Row, Run, Verdict
from accel.numerics.comparing.contents import Contents, distance, rounding
from accel.numerics.comparing.divergence import LIMIT
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.preconditions import named
from accel.numerics.comparing.value_findings import numbers
from accel.numerics.comparing.wording import listed, operator_in_words, row_in_words
from accel.numerics.storage.entries import Operator

_ROLES: tuple[tuple[Run, Run], ...] = (("candidate", "reference"), ("reference", "candidate"))


def of_gradients(evidence: Evidence) -> Iterator[Verdict]:
    """Whether parameters have a gradient in one run only."""
    steps = evidence.a.step, evidence.b.step
    if evidence.merged or any(step.end is None or not step.operators for step in steps):
        return
    with_gradient = [_with_gradient(evidence.a), _with_gradient(evidence.b)]
    if not all(with_gradient):
        return
    common = _parameters(evidence.a) & _parameters(evidence.b)
    runs: tuple[tuple[Run, Run, set[str], set[str]], ...] = (
        ("candidate", "reference", with_gradient[0], with_gradient[1]),
        ("reference", "candidate", with_gradient[1], with_gradient[0]),
    )
    for run, other, has, lacks in runs:
        missing = sorted((has - lacks) & common)
        if missing:
            are = "it is" if len(missing) == 1 else "they are"
            yield Verdict(
                "different program",
                f"the {run} has no gradient of {listed(missing)}, which the {other} has: {are} "
                "frozen there, or not used",
                (f"parameters with a gradient in the {other}: {len(has)}, in the {run}: "
                 f"{len(lacks)}",),
                run=run,
            )  # fmt: skip


def _parameters(contents: Contents) -> set[str]:
    return {name for kind, name in named(contents) if kind == "parameter"}


def _with_gradient(contents: Contents) -> set[str]:
    return {
        name
        for (kind, name), value in named(contents).items()
        if kind == "parameter" and value in contents.step.adjoints
    }


def finding(evidence: Evidence, row: Row) -> Iterator[Verdict]:
    """What only one run does to the first value that differs by more than rounding explains."""
    other_optimizer = list(_optimizers(evidence, row))
    yield from other_optimizer or _once_more(evidence, row)


def _optimizers(evidence: Evidence, row: Row) -> Iterator[Verdict]:
    if row.phase != "optimizer":
        return
    names = [
        sorted({one.key.module for one in contents.step.operators if one.key.phase == "optimizer"})
        for contents in (evidence.a, evidence.b)
    ]
    if names[0] == names[1] or not all(names):
        return
    yield Verdict(
        "different program",
        f"the candidate's optimizer is {listed(names[1])}, in the reference {listed(names[0])}",
        (numbers(row),), place=row.place,
    )  # fmt: skip


def _once_more(evidence: Evidence, row: Row) -> Iterator[Verdict]:
    """Whether one run goes on to change what is the other's final value."""
    for run, other in _ROLES:
        maker = _maker(evidence, run, row)
        if maker is None or not any(maker.id == one.id for one in evidence.unmatched(run)):
            continue
        if not _reads_final(evidence, run, other, maker, row):
            continue
        yield Verdict(
            "different program",
            f"the {run} changes {row_in_words(row)} once more than the {other}, by "
            f"{operator_in_words(maker.key, maker.place)}",
            (numbers(row), f"only in the {run}: {maker.key}"), maker.key, maker.place, run,
        )  # fmt: skip
        return


def _value(evidence: Evidence, run: Run, row: Row) -> int:
    pair = evidence.measured[row.order].pair
    return evidence.contents(run).root(pair.a if run == "reference" else pair.b)


def _maker(evidence: Evidence, run: Run, row: Row) -> Operator | None:
    step = evidence.contents(run).step
    found = step.producers.get(_value(evidence, run, row))
    return None if found is None else step.operators[found]


def _reads_final(evidence: Evidence, run: Run, other: Run, maker: Operator, row: Row) -> bool:
    """Whether an operator of one run read what the other run ends with."""
    ours, theirs = evidence.contents(run), evidence.contents(other)
    final = _value(evidence, other, row)
    near = LIMIT * rounding(theirs.value(final).dtype) + (row.input_distance or 0.0)
    read = (distance(theirs.sketch(final), ours.sketch(value)) for value in ours.inputs(maker))
    return any(apart is not None and apart <= near for apart in read)
