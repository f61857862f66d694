"""The dispatch mode that sees every operator, in the forward, the backward and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from accel.numerics.capture.operators import Operators
from accel.numerics.capture.schemas import is_plain


class CaptureMode(TorchDispatchMode):
    """Hands operators to the step that is being recorded; between such steps it is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Operators | None = None
        self._is_entered = self._is_paused = False

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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the recorder itself computes is not recorded."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.operators is None or self._is_paused:
            return func(*args, **(kwargs or {}))
        if not is_plain(types):
            return NotImplemented  # a wrapper runs operators on the tensors inside: see those
        return self.operators.run(func, args, kwargs or {})
