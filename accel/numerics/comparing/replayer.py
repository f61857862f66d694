"""Replaying the operators of one recorded step, for a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from accel.numerics.comparing.contents import Contents
from accel.numerics.replaying import references
from accel.numerics.replaying.calls import Call, Given, Results, call_of, widened
from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.judging import judge
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Argument, Operator, Ref


class Replayer:
    """Replays operators of one step whose inputs and outputs were kept.

    Args:
        contents: The step's values.
    """

    def __init__(self, contents: Contents) -> None:
        self._step = contents.step

    def can(self, operator: Operator) -> bool:
        """Whether everything that an operator read and produced was kept."""
        return all(map(self._step.has_tensor, {*self._read(operator), *operator.produced}))

    def judged(self, operator: Operator) -> Judged:
        """The verdict on one operator.

        Raises:
            CannotReplayError: An argument cannot be given again.
        """
        recorded = self.recorded(operator)
        call = self.call(operator)
        return judge(call, recorded.outputs, recorded.written, str(operator.key))

    def judged_with(self, operator: Operator, change: Callable[[Tensor], Tensor]) -> Judged:
        """The verdict if the operator had been given its tensors changed by `change`."""
        recorded, call = self.recorded(operator), self.call(operator)

        def changed(value: Given) -> Given:
            if isinstance(value, Tensor):
                return change(value)
            return [changed(item) for item in value] if isinstance(value, list) else value

        arguments = {name: changed(value) for name, value in call.arguments.items()}
        narrowed = Call(call.name, call.overload, arguments, call.written)
        return judge(narrowed, recorded.outputs, recorded.written, str(operator.key))

    def truth(self, operator: Operator) -> tuple[Tensor | None, ...]:
        """What float64 makes of an operator's inputs, in the order of `Operator.produced`.

        Raises:
            CannotReplayError: There is no reference.
        """
        recorded, call = self.recorded(operator), self.call(operator)
        results = references.replayer(call, recorded)(widened(call))
        found = dict(results.named())
        return tuple(found.get(name) for name, _ in recorded.named())

    def outputs(self, operator: Operator) -> tuple[Tensor, ...]:
        """What the run made, in the same order."""
        return tuple(self._step.tensor(value) for value in operator.produced)

    def call(self, operator: Operator) -> Call:
        """The operator's call with its recorded inputs.

        Raises:
            CannotReplayError: An argument is opaque.
        """
        given = {name: self._given(value) for name, value in operator.arguments.items()}
        return call_of(operator.name, operator.overload, given, tuple(operator.writes))

    def recorded(self, operator: Operator) -> Results:
        """What the run produced."""
        outputs = tuple(
            None if value is None else self._step.tensor(value) for value in operator.outputs
        )
        written: Mapping[str, tuple[Tensor, ...]] = {
            name: tuple(map(self._step.tensor, values)) for name, values in operator.writes.items()
        }
        return Results(outputs, written)

    def _read(self, operator: Operator) -> list[int]:
        from accel.numerics.comparing.contents import refs

        return [value for argument in operator.arguments.values() for value in refs(argument)]

    def _given(self, argument: Argument) -> Given:
        if isinstance(argument, Ref):
            return self._step.tensor(argument.value)
        return [self._given(item) for item in argument] if isinstance(argument, list) else argument


__all__ = ["CannotReplayError", "Replayer"]
