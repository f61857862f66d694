"""Noise on every intermediate result of a function that runs in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accel.numerics.replaying.calls import flattened
from accel.numerics.replaying.operators import is_exact, is_view, why_nothing_to_check
from accel.numerics.replaying.responses import is_inexact, with_noise


class Shaking(TorchDispatchMode):
    """While it is active, every operator's floating-point results are wrong by `unit`.

    A function of several operators rounds in between, and where it cancels (the gradient of a bias
    that a softmax does not see) that is all that its result consists of. Operators that round
    nothing (views, copies, choices) are left alone.

    Args:
        unit: The relative size of the noise.
        generator: Where its signs come from.
    """

    def __init__(self, unit: float, generator: torch.Generator) -> None:
        super().__init__()
        self._unit, self._generator = unit, generator

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator and shake what it returns."""
        returned = func(*args, **(kwargs or {}))
        name, overload = str(func._schema.name), func._schema.overload_name or "default"
        if is_exact(name) or is_view(name, overload) or why_nothing_to_check(name, overload):
            return returned
        for result in flattened(returned):
            if isinstance(result, Tensor) and is_inexact(result):
                self._shake(result)
        return returned

    def _shake(self, result: Tensor) -> None:
        with torch.no_grad():
            result.copy_(with_noise(result.detach(), self._unit, self._generator))
