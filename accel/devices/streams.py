"""Streams and events: what every device's have, and those of a CPU.

On a CPU work is done when the call that asks for it returns: streams and events are there so that a
program needs no second path, and elapsed times are real.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Stream(Protocol):
    """A queue of work on one device, as `torch.Stream`; entering it makes it the current one."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def synchronize(self) -> None:
        """Wait until its work is done."""

    def query(self) -> bool:
        """Whether its work is done."""

    def wait_stream(self, other: Any, /) -> None:
        """Let work submitted from now on wait for what `other` holds now."""

    def wait_event(self, event: Any, /) -> None:
        """Let work submitted from now on wait for `event`."""

    def record_event(self, event: Any = None, /) -> Any:
        """Record `event`, or a new one, here and return it."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> Any: ...


class Event(Protocol):
    """A mark in a stream's work, as `torch.Event`."""

    def record(self, stream: Any = None) -> None:
        """Put the mark after the work in `stream`, by default the current one."""

    def query(self) -> bool:
        """Whether the work before the mark is done."""

    def synchronize(self) -> None:
        """Wait until the work before the mark is done."""

    def wait(self, stream: Any = None) -> None:
        """Let `stream`, by default the current one, wait for the mark."""

    def elapsed_time(self, other: Any, /) -> float:
        """Milliseconds from this mark to `other`, once both have been reached."""


class HostStream:
    """A stream of a CPU: its waits do nothing, and entering it changes nothing."""

    device = torch.device("cpu")

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """Always true: all work is done."""
        return True

    def wait_stream(self, other: Any, /) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any, /) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None, /) -> Any:
        """Record `event`, or a new one without timing, and return it."""
        event = HostEvent(timing=False) if event is None else event
        event.record()
        return event

    def __enter__(self) -> HostStream:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> None:
        return None


class HostEvent:
    """An event of a CPU: recording it notes the time.

    Args:
        timing: Whether `elapsed_time` may be asked for.
    """

    def __init__(self, timing: bool) -> None:
        self._timing = timing
        self._recorded: int | None = None

    def record(self, stream: Any = None) -> None:
        """Note the time now."""
        self._recorded = time.perf_counter_ns()

    def query(self) -> bool:
        """Always true, as torch's events are before they are recorded."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait(self, stream: Any = None) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, other: Any, /) -> float:
        """Milliseconds between the two records.

        Raises:
            TypeError: `other` is no event of a CPU.
            ValueError: One of them was made without timing, or not recorded.
        """
        if not isinstance(other, HostEvent):
            raise TypeError(f"elapsed_time takes another event of a CPU, not {other!r}")
        if not (self._timing and other._timing):
            raise ValueError("elapsed_time needs events made with device.event(timing=True)")
        if self._recorded is None or other._recorded is None:
            raise ValueError("elapsed_time needs both events recorded: call record() on each first")
        return (other._recorded - self._recorded) / 1e6
