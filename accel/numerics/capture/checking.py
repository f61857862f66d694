"""Level `check`: one operator of each kind is replayed in float64 while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from accel.numerics.capture.arguments import described
from accel.numerics.capture.schemas import Schema
from accel.numerics.capture.values import is_opaque, outputs_of, tensors_in
from accel.numerics.replaying.judging import judge_call
from accel.numerics.storage.encoding import copied, dtype_name
from accel.numerics.storage.entries import Check, Line


class Checking:
    """Replays the first operator of each signature: name, dtypes, shapes and plain arguments.

    Args:
        emit: Takes lines of the recording.
        kernels: Whose kernels run, as `replaying.known.kernels_of` says.
    """

    def __init__(self, emit: Callable[[Line], None], kernels: str) -> None:
        self._emit, self._kernels = emit, kernels
        self._seen: set[str] = set()

    def before(self, schema: Schema, func: Any, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Copies of the arguments of an operator that is to be replayed; None for others."""
        if schema.is_view or schema.is_uninitialised or schema.is_collective:
            return None
        if any(is_opaque(tensor) for value in given.values() for tensor in tensors_in(value)):
            return None
        signature = repr((schema.name, schema.overload, _signature(given)))
        if signature in self._seen:
            return None
        self._seen.add(signature)
        return {name: _copied(value) for name, value in given.items()}

    def after(
        self,
        operator: int,
        schema: Schema,
        func: Any,
        before: Mapping[str, Any],
        given: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Replay it and write down what was found."""
        written = {name: tensors_in(given[name]) for name in schema.written if name in given}
        targets = [tensor for tensors in written.values() for tensor in tensors]
        with _disable_current_modes():  # the program's own modes do not see the replay
            judged = judge_call(
                func,
                (),
                before,
                [_copied(output) for output in outputs_of(result, targets)],
                {name: [copied(tensor) for tensor in ts] for name, ts in written.items() if ts},
                device_type=self._kernels,
            )
        self._emit(Check(operator, judged.to_dict()))


def _signature(given: Mapping[str, Any]) -> dict[str, Any]:
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def of(tensor: Tensor) -> int:
        shapes.append((dtype_name(tensor.dtype), tuple(tensor.shape)))
        return 0

    return {**{name: described(value, of) for name, value in given.items()}, "(tensors)": shapes}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        with torch._C._DisableTorchDispatch():
            return copied(value)
    if isinstance(value, (list, tuple)):
        return [_copied(item) for item in value]
    return value
