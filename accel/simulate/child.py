"""Running a command as this process's child: its signals and its exit status. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

_FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
# A terminal sends these to every process of the command itself.
_FROM_TERMINAL = ("SIGINT", "SIGQUIT")


def run_child(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command, and hand signals on to it.

    Returns:
        Its exit status; 128 + N if signal N ended it.

    Raises:
        OSError: It cannot be started.
    """
    try:
        process = subprocess.Popen(argv, env=environment)
    except OSError as error:
        raise OSError(f"cannot run {argv[0]!r}: {error.strerror}") from error
    with _forwarding(process):
        status = process.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the command decide what a signal means."""

    def forward(number: int, _: FrameType | None) -> None:
        if signal.Signals(number).name not in _FROM_TERMINAL or not _in_foreground():
            process.send_signal(number)

    before = {name: signal.signal(getattr(signal, name), forward) for name in _FORWARDED}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _in_foreground() -> bool:
    """Whether a terminal's signals reach this process and its child alike."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
