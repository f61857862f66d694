"""A one-line progress bar on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_WIDTH = 30
_DRAW_EVERY = 0.1  # seconds, on a terminal
_PRINT_EVERY = 10.0  # seconds, in a log


class Progress:
    """Progress through `total` steps, with the rate.

    On a terminal one line is redrawn at most ten times a second; elsewhere (a log, CI) a plain line
    is printed at most every ten seconds. Use it as a context manager, which draws the last state:

        with Progress(total=200, label="train") as progress:
            for step in range(200):
                progress.advance(text=f"loss {loss:.3f}")
    """

    def __init__(
        self,
        total: int,
        label: str = "",
        *,
        unit: str = "step",
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at step 0.

        Args:
            total: How many steps there will be, at least 0.
            label: Shown before the bar.
            unit: What one step is; the rate is shown in it per second.
            enabled: False draws nothing, for all but one of several processes.
            stream: Where to draw; standard error if None.
            clock: Seconds, for tests.

        Raises:
            ValueError: `total` is negative.
        """
        if total < 0:
            raise ValueError(f"total must be at least 0, got {total}")
        self.total, self.done, self._label, self._unit = total, 0, label, unit
        self._stream = sys.stderr if stream is None else stream
        self._terminal, self._enabled = self._stream.isatty(), enabled
        self._interval = _DRAW_EVERY if self._terminal else _PRINT_EVERY
        self._clock = clock
        self._begun = self._drawn_at = clock()
        self._text, self._width, self._drawn_done = "", 0, -1

    def advance(self, n: int = 1, text: str = "") -> None:
        """Count `n` more steps.

        Args:
            n: Steps since the last call.
            text: Shown after the bar until the next call.
        """
        self.done += n
        self._text = text
        now = self._clock()
        if self._enabled and now - self._drawn_at >= self._interval:
            self._draw(now)

    def close(self) -> None:
        """Draw the last state and end the line."""
        if not self._enabled:
            return
        if self._drawn_done != self.done or self._terminal:
            self._draw(self._clock())
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _draw(self, now: float) -> None:
        self._drawn_at, self._drawn_done = now, self.done
        line = self._line(now - self._begun)
        if self._terminal:
            # Blanks wipe what is left of a longer earlier line.
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _line(self, elapsed: float) -> str:
        share = min(1.0, self.done / self.total) if self.total else 1.0
        filled = int(share * _WIDTH)
        bar = "█" * filled + "·" * (_WIDTH - filled) if self._terminal else ""
        speed = self.done / elapsed if elapsed > 0 else 0.0
        rate = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        parts = [
            self._label,
            bar,
            f"{self.done:,}/{self.total:,}",
            f"{rate} {self._unit}/s",
            self._text,
        ]
        return "  ".join(part for part in parts if part)
