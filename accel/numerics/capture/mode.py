"""The dispatch mode that sees every operator, in the forward, the backward and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _get_current_dispatch_mode_stack,
)

from accel.numerics.capture.operators import Operators
from accel.numerics.capture.schemas import is_plain
from accel.numerics.capture.sharding_wrappers import is_dtensor_class

_FAKE = torch._C._TorchDispatchModeKey.FAKE


class CaptureMode(TorchDispatchMode):
    """Hands operators to the step that is being recorded; between such steps it is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Operators | None = None
        self._is_entered = self._is_paused = False
        self._passing: Any = None  # the operator on DTensors that is to run the local ones now

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default imports torch._dynamo, which takes a second

    def begin(self, operators: Operators) -> None:
        """Record operators from now on."""
        self.operators = operators
        if not self._is_entered:
            self.__enter__()
            self._is_entered = True

    def end(self) -> None:
        """Record no more; step aside if no other mode was entered since and is still there."""
        self.operators = None
        if self._is_entered and _get_current_dispatch_mode() is self:
            self.__exit__(None, None, None)
            self._is_entered = False

    def is_seen(self) -> bool:
        """Whether operators of the thread that asks are seen: modes belong to threads.

        Autograd's threads inherit them, those of the program do not.
        """
        return any(mode is self for mode in _get_current_dispatch_mode_stack())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the recorder itself computes is not recorded."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operators, kwargs = self.operators, kwargs or {}
        if operators is None or self._is_paused or _is_fake():
            return func(*args, **kwargs)
        if is_plain(types):
            return operators.run(func, args, kwargs)
        # A wrapper runs operators on the tensors inside: see those.
        if func is self._passing:
            self._passing = None
            return NotImplemented
        if any(is_dtensor_class(kind) for kind in types):
            return self._distributed(operators, func, args, kwargs)
        operators.foretell(func)
        return NotImplemented

    def _distributed(self, operators: Operators, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on DTensors, to see where the results of the local ones belong."""
        with operators.within_wrapper(func) as results:
            self._passing = func
            try:
                with self:
                    result = func(*args, **kwargs)
            finally:
                self._passing = None
            results += (args, kwargs, result)
        return result


def _is_fake() -> bool:
    """Whether an operator only works out shapes (DTensor does, the first time it meets one)."""
    return torch._C._get_dispatch_mode(_FAKE) is not None
