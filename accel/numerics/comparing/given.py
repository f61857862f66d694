"""What operators were given, in words."""

from __future__ import annotations

from collections.abc import Mapping

from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.pairing import Measured
from accel.numerics.storage.entries import Argument, Operator, Ref, Special, Value

_LONGEST = 160  # characters of one argument
_NOT_GIVEN = "(not given)"


def given(a: Contents, b: Contents, one: Measured) -> tuple[tuple[str, str, str], ...]:
    """Name, reference's text and candidate's text of each argument of the operators of a row."""
    left, right = _operators(a, b, one)
    if left is None or right is None:
        return ()
    ours, theirs = described(left, a.step.values), described(right, b.step.values)
    names = dict.fromkeys([*ours, *theirs])
    return tuple((name, ours.get(name, _NOT_GIVEN), theirs.get(name, _NOT_GIVEN)) for name in names)


def _operators(
    a: Contents, b: Contents, one: Measured
) -> tuple[Operator, Operator] | tuple[None, None]:
    if one.operators is not None:
        return one.operators.a, one.operators.b
    if one.pair.key is None:
        return None, None
    found = []
    for contents, value in ((a, one.pair.a), (b, one.pair.b)):
        maker = contents.step.producers.get(contents.root(value))
        if maker is None:
            return None, None
        found.append(contents.step.operators[maker])
    return found[0], found[1]


def described(operator: Operator, values: Mapping[int, Value]) -> dict[str, str]:
    """An operator's arguments by their names: tensors by dtype and shape, the rest by value.

    Args:
        operator: As recorded.
        values: The values of its step.
    """
    return {
        name: _shortened(_text(argument, values))
        for name, argument in operator.arguments.items()
        if argument is not None
    }


def shape_of(value: Value) -> str:
    """A tensor's dtype and shape: `float32 [4, 48]`."""
    return f"{value.dtype} {list(value.shape)}"


def _text(argument: Argument, values: Mapping[int, Value]) -> str:
    if isinstance(argument, Ref):
        return shape_of(values[argument.value])
    if isinstance(argument, Special):
        return argument.text
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_text(item, values) for item in argument)}]"
    return repr(argument)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
