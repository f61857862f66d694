"""What an operator was given, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from accel.numerics.comparing.comparison import Comparison
from accel.numerics.storage.entries import Argument, Key, Operator, Ref, Special, Value
from accel.numerics.storage.reader import load_recording
from accel.numerics.storage.steps import Step

_LONGEST = 160  # characters of one argument


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


class Given(NamedTuple):
    """One argument of an operator, as both runs have it; None where a run has no such."""

    name: str
    reference: str | None
    candidate: str | None


GivenByRow = Mapping[int, Sequence[Given]]  # by the order of the rows


def given_of(comparison: Comparison) -> tuple[GivenByRow, list[str]]:
    """What the operators of a comparison were given, read from its recordings.

    Returns:
        By the order of the rows, and notes on what could not be read.
    """
    steps: list[Step | None] = []
    notes = []
    for path in (comparison.reference, comparison.candidate):
        try:
            steps.append(_step(path, comparison.step))
        except (ValueError, OSError) as error:
            steps.append(None)
            notes.append(f"what the operators of {path} were given is missing here: {error}")
    found: dict[int, tuple[Given, ...]] = {}
    for row in comparison.rows:
        if row.key is not None:
            # Only what is aligned by name has the same key in both.
            other = steps[1] if row.aligned == "name" else None
            pair = _given(steps[0], row.key), _given(other, row.key)
            names = dict.fromkeys([*pair[0], *pair[1]])
            found[row.order] = tuple(Given(n, pair[0].get(n), pair[1].get(n)) for n in names)
    return found, notes


def _step(path: str, index: int) -> Step:
    """The step of the first rank that has it."""
    for rank in load_recording(path).ranks.values():
        if index in rank.steps:
            return rank.steps[index]
    raise ValueError(f"it has no step {index}")


def _given(step: Step | None, key: Key) -> dict[str, str]:
    operator = None if step is None else step.by_key.get(key)
    return {} if step is None or operator is None else described(operator, step.values)


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
