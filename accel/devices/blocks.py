"""Blocks that may be entered again, also within themselves, and used as decorators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType


class Block(contextlib.ContextDecorator):
    """A context manager made of one that can be entered once, anew each time.

    `torch.cuda.device(1)` and `torch.cuda.stream(s)` can be kept and entered many times, which what
    `contextlib.contextmanager` makes cannot.

    Args:
        make: Makes what is entered; takes no arguments.
    """

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._make = make
        self._entered: list[contextlib.AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        block = self._make()
        block.__enter__()
        self._entered.append(block)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._entered.pop().__exit__(kind, error, traceback)
