"""Replaying the operators of one recorded step, for a comparison."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor

from accel.numerics.comparing.contents import Contents
from accel.numerics.replaying import references
from accel.numerics.replaying.calls import Call, Given, mapped, widened
from accel.numerics.replaying.chaining import chained_errors
from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.judging import judge
from accel.numerics.replaying.recorded import (
    Tensors,
    call_from,
    inputs_of,
    produced_names,
    results_from,
)
from accel.numerics.storage.entries import Operator


class Replayer:
    """Replays operators of one step whose inputs and outputs were kept.

    Args:
        contents: The step's values.
        kernels: Whose kernels computed it, see `known.kernels_of`; None is the CPU's.
    """

    def __init__(self, contents: Contents, kernels: str | None = None) -> None:
        self._step, self._kernels = contents.step, kernels
        self._tensors = Tensors(contents.step)
        self._last: tuple[int, tuple[Tensor | None, ...]] | None = None

    def can(self, operator: Operator) -> bool:
        """Whether everything that an operator read and produced was kept."""
        return all(map(self._tensors.has, {*inputs_of(operator), *operator.produced}))

    def judged(self, operator: Operator) -> Judged:
        """The verdict on one operator.

        Raises:
            CannotReplayError: An argument cannot be given again.
        """
        return self._judged(operator, call_from(operator, self._tensors.of))

    def judged_with(
        self, operator: Operator, change: Callable[[Tensor], Tensor], but: Collection[str] = ()
    ) -> Judged:
        """The verdict if the operator had been given its tensors changed by `change`.

        Args:
            operator: It.
            change: Makes another tensor.
            but: Arguments that stay as they are.

        Raises:
            CannotReplayError: An argument cannot be given again.
        """

        def changed(value: Given) -> Given:
            return change(value) if isinstance(value, Tensor) else value

        call = call_from(operator, self._tensors.of)
        arguments = {
            name: value if name in but else mapped(value, changed)
            for name, value in call.arguments.items()
        }
        return self._judged(operator, Call(call.name, call.overload, arguments, call.written))

    def truth(self, operator: Operator) -> tuple[Tensor | None, ...]:
        """What float64 makes of an operator's inputs, in the order of `Operator.produced`.

        Raises:
            CannotReplayError: There is no reference.
        """
        if self._last is None or self._last[0] != operator.id:
            recorded = results_from(operator, self._tensors.of)
            call = call_from(operator, self._tensors.of)
            found = dict(references.replayer(call, recorded)(widened(call)).named())
            names = [name for name, _ in produced_names(operator)]
            self._last = operator.id, tuple(found.get(name) for name in names)
        return self._last[1]

    def outputs(self, operator: Operator) -> tuple[Tensor, ...]:
        """What the run made, in the same order."""
        return tuple(map(self._tensors.of, operator.produced))

    def accumulated(self) -> dict[int, float]:
        """Of each kept value its relative rms distance from the whole step in float64.

        Empty unless all operators with something to compute were kept: the chain would break.
        """
        sources = [value for value in self._step.values if value not in self._step.producers]
        is_whole = all(
            self._tensors.has(value) or self._step.values[value].skipped for value in sources
        )
        return chained_errors(self._step) if sources and is_whole else {}

    def _judged(self, operator: Operator, call: Call) -> Judged:
        recorded = results_from(operator, self._tensors.of)
        return judge(
            call, recorded.outputs, recorded.written, str(operator.key), device_type=self._kernels
        )
