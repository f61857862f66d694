"""From aligned operators to pairs of values: each output, with the inputs that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from accel.numerics.comparing.alignment import Alignment, OperatorPair, ValuePair
from accel.numerics.comparing.contents import Contents, refs
from accel.numerics.storage.entries import Argument, Operator

# In-place operators that read nothing of what they write to.
_OVERWRITING = frozenset(
    {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_",
     "log_normal_", "cauchy_", "geometric_", "set_", "resize_"}
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A pair of values and the operators that made them.

    Attributes:
        pair: The values and what they are called.
        operators: The operators, where both are aligned by name or order.
        output: Which of the operator's outputs it is.
    """

    pair: ValuePair
    operators: OperatorPair | None = None
    output: int = 0


def measured(
    a: Contents, b: Contents, alignment: Alignment, content: Sequence[ValuePair]
) -> list[Measured]:
    """Every pair of values worth a row, in the reference's execution order.

    Views are left out: they hold what another value holds. So are kernels' workspaces, and a
    boundary or gradient that is an aligned operator's output: it has its row.
    """
    found: list[tuple[float, Measured]] = []
    covered: set[tuple[int, int]] = set()
    for operators in alignment.operators:
        for one in _of_operators(a, b, operators):
            covered.add((one.pair.a, one.pair.b))
            found.append((operators.a.id, one))
    for pair in content:
        covered.add((pair.a, pair.b))
        found.append((_made_at(a, pair.a), Measured(pair)))
    for pair in (*alignment.boundaries, *alignment.gradients, *alignment.updates):
        roots = a.root(pair.a), b.root(pair.b)
        if roots not in covered and roots[0] not in a.step.sources:
            covered.add(roots)
            found.append((_made_at(a, roots[0]) + 0.5, Measured(pair)))
    return [one for _, one in sorted(found, key=lambda each: each[0])]


def _made_at(contents: Contents, value: int) -> float:
    """When a value came to be: the place of its operator; the end if nobody knows."""
    maker = contents.step.producers.get(contents.root(value))
    return float(len(contents.step.operators)) if maker is None else float(maker)


def _of_operators(a: Contents, b: Contents, pair: OperatorPair) -> Iterator[Measured]:
    outputs = [
        (index, x, y)
        for index, (x, y) in enumerate(zip(pair.a.produced, pair.b.produced, strict=False))
        if a.value(x).base is None and b.value(y).base is None
        if not (a.value(x).skipped and b.value(y).skipped)
        if x not in a.workspaces
    ]
    several = len(pair.a.produced) > 1
    for index, x, y in outputs:
        name = f"{pair.a.key} output {index}" if several else str(pair.a.key)
        inputs = tuple(input_pairs(pair, index))
        key = pair.a.key
        value = ValuePair(name, key.phase, key.module, key.op, x, y, pair.how, key, inputs)
        yield Measured(value, pair, index)


def input_pairs(pair: OperatorPair, output: int) -> list[tuple[int, int]]:
    """The pairs of values that two aligned operators read for one of their outputs.

    Of an operator on lists (`_foreach_add_`, a fused optimizer) only those at the output's place
    of the list.
    """
    place, length = _place_in_list(pair.a, output)
    found: list[tuple[int, int]] = []
    for name, left in pair.a.arguments.items():
        if name in pair.b.arguments and not is_overwritten(pair.a, name):
            found += _pairs(left, pair.b.arguments[name], place, length)
    return found


def is_overwritten(operator: Operator, name: str) -> bool:
    """Whether an operator writes to an argument without reading it."""
    bare = operator.name.rpartition("::")[2]
    return name == "out" or (name == "self" and bare in _OVERWRITING)


def _place_in_list(operator: Operator, output: int) -> tuple[int, int]:
    """Index in, and length of, the lists that an output belongs to; length 0 if to none."""
    if not any(isinstance(argument, list) for argument in operator.arguments.values()):
        return 0, 0
    before = len(operator.produced) - sum(map(len, operator.writes.values()))
    if output < before:
        length = before
        return (
            (output, length) if operator.key.op.split("::")[-1].startswith("_foreach") else (0, 0)
        )
    output -= before
    for values in operator.writes.values():
        if output < len(values):
            return (output, len(values)) if len(values) > 1 else (0, 0)
        output -= len(values)
    return 0, 0


def _pairs(left: Argument, right: Argument, place: int, length: int) -> list[tuple[int, int]]:
    if isinstance(left, list) and isinstance(right, list) and length and len(left) == length:
        left, right = left[place : place + 1], right[place : place + 1]
    ours, theirs = list(refs(left)), list(refs(right))
    return list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []
