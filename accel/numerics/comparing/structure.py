"""Where two runs do not run the same program: dtypes, shapes, arguments, operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from accel.numerics.comparing.alignment import Alignment, OperatorPair
from accel.numerics.comparing.arguments import changed
from accel.numerics.comparing.contents import Contents, is_float, rounding
from accel.numerics.storage.entries import OUTSIDE, Operator, Phase

_CASTS = frozenset({"_to_copy", "to", "convert_element_type"})
# Optimizers and loss scalers compute some arguments from tensors (a norm that is clipped to, …):
# those differ as the tensors do.
_DERIVED: frozenset[Phase] = frozenset({"optimizer", "backward"})


@dataclass(frozen=True)
class Structural:
    """One difference between two aligned operators.

    Attributes:
        pair: The operators.
        kind: `dtype` (they compute in other dtypes), `shape`, `argument`, `tensor` (one of them is
            given a tensor that the other is not), `number` (a number that differs by `apart`).
        text: What differs, in words.
        apart: Relative difference of numbers; infinity for the rest.
        dtypes: Of `dtype`, what the two compute in.
    """

    pair: OperatorPair
    kind: Literal["dtype", "shape", "argument", "tensor", "number"]
    text: str
    apart: float
    dtypes: tuple[str, str] = ("", "")


def structural(a: Contents, b: Contents, alignment: Alignment) -> list[Structural]:
    """Every difference between aligned operators, in the reference's order."""
    found: list[Structural] = []
    for pair in alignment.operators:
        if any(a.value(value).base is None for value in pair.a.produced):  # no mere view
            found += _of_pair(a, b, pair)
    return found


def _of_pair(a: Contents, b: Contents, pair: OperatorPair) -> Iterator[Structural]:
    dtypes = computed_in(a, pair.a), computed_in(b, pair.b)
    if dtypes[0] != dtypes[1]:
        text = f"computes in {dtypes[1]} where the reference computes in {dtypes[0]}"
        yield Structural(pair, "dtype", text, float("inf"), dtypes)
    shapes = _shapes(a, pair.a), _shapes(b, pair.b)
    if shapes[0] != shapes[1]:
        text = f"makes shapes {_listed(shapes[1])} where the reference makes {_listed(shapes[0])}"
        yield Structural(pair, "shape", text, float("inf"))
    if pair.a.name.rstrip("_") != pair.b.name.rstrip("_") or pair.a.overload != pair.b.overload:
        return  # another operator of the same name has other arguments
    for one in changed(pair.a, pair.b, _rank(a, pair.a)):
        if one.kind == "dtype" and dtypes[0] != dtypes[1]:
            continue
        if one.kind == "shape" and shapes[0] != shapes[1]:
            continue
        kinds: dict[str, Literal["tensor", "number"]] = {"tensor": "tensor", "number": "number"}
        yield Structural(pair, kinds.get(one.kind, "argument"), f"argument {one}", one.apart)


def is_scaling(pair: OperatorPair, scale: float) -> bool:
    """Whether two operators multiply by numbers of which the candidate's is `scale` times as large.

    That is what scales a loss in one run by more than in the other, and its gradient.
    """
    if scale == 1.0 or pair.a.name != "aten::mul" or pair.b.name != "aten::mul":
        return False
    ours, theirs = pair.a.arguments.get("other"), pair.b.arguments.get("other")
    if pair.a.key.module != OUTSIDE:
        return False
    if not isinstance(ours, (int, float)) or not isinstance(theirs, (int, float)):
        return False
    return theirs == scale * ours


def computed_in(contents: Contents, operator: Operator) -> str:
    """The dtype that an operator computes in, by name: that of its floating-point inputs.

    Of several, the coarsest; of a cast and of what has no such inputs that of its output.
    """
    inputs = {contents.value(value).dtype for value in contents.inputs(operator)}
    outputs = {contents.value(value).dtype for value in operator.produced}
    if operator.key.op in _CASTS or not any(map(is_float, inputs)):
        inputs = outputs
    floats = sorted(filter(is_float, inputs), key=_coarseness)
    return floats[-1] if floats else ", ".join(sorted(inputs))


def _coarseness(dtype: str) -> tuple[float, str]:
    return rounding(dtype), dtype


def _shapes(contents: Contents, operator: Operator) -> list[tuple[int, ...]]:
    return [contents.value(value).shape for value in operator.produced]


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes[:3]) or "none"


def _rank(contents: Contents, operator: Operator) -> int:
    first = next(iter(contents.inputs(operator)), None)
    if first is None:
        first = next(iter(operator.produced), None)
    return 0 if first is None else len(contents.value(first).shape)


def is_cast(operator: Operator) -> bool:
    """Whether an operator only changes a dtype."""
    return operator.key.op.split("::")[-1] in _CASTS


def is_derived(one: Structural) -> bool:
    """Whether a number may follow from tensors, and thus differ as they do."""
    return one.kind == "number" and one.pair.a.key.phase in _DERIVED


def counted(operators: Iterable[Operator]) -> str:
    """How often which operator, in words: `2 mul, 1 add`."""
    names = Counter(one.key.op for one in operators)
    return ", ".join(f"{count} {name}" for name, count in names.most_common(6))
