"""Run one command that may hang, crash or print without end, and come back from it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

OUTPUT_LIMIT = 1 << 20  # bytes kept of each stream; the rest is read and dropped
_GRACE = 1.0  # seconds for a killed process to be reaped and its pipes to drain

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Completed:
    """How a command ended.

    Attributes:
        returncode: Exit status, negative for a signal as in `subprocess`; None if it never
            started or had to be stopped.
        stdout: What it printed, at most `OUTPUT_LIMIT` bytes of it.
        stderr: The same of the error stream.
        seconds: Wall-clock time.
        timed_out: Whether it was stopped at its time limit.
        refused: Why it could not be started; empty if it was.
    """

    returncode: int | None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    timed_out: bool = False
    refused: str = ""

    @property
    def crashed_by(self) -> str:
        """Name of the signal that ended it (`SIGSEGV`), or an empty string."""
        if self.returncode is None or self.returncode >= 0:
            return ""
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:
            return f"signal {-self.returncode}"

    @property
    def last_line(self) -> str:
        """The last line that says something, of stderr or else of stdout."""
        for text in (self.stderr, self.stdout):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return lines[-1]
        return ""


class _Drain(threading.Thread):
    """Keeps the first bytes of a pipe and drops the rest, so that the writer never blocks."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)  # a grandchild may hold the pipe open for ever
        self._stream = stream
        self._kept = bytearray()
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._stream.fileno(), 65536):
            self._kept += chunk[: OUTPUT_LIMIT - len(self._kept)]
        self._stream.close()

    def text(self) -> str:
        self.join(_GRACE)
        return bytes(self._kept).decode("utf-8", errors="replace")


def run_command(
    command: Sequence[str],
    timeout: float,
    environment: Mapping[str, str],
    running: set[Process] | None = None,
) -> Completed:
    """Run a command to its end or its time limit; nothing it does raises here.

    Args:
        command: Program and arguments.
        timeout: Seconds after which it and its children are killed.
        environment: Its whole environment.
        running: Holds the process while it runs, so that another thread can stop it.

    Returns:
        How it ended.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # so that its children can be killed with it
        )
    except (OSError, ValueError) as error:
        return Completed(None, refused=f"{type(error).__name__}: {error}")
    assert process.stdout is not None  # noqa: S101 - it is a PIPE
    assert process.stderr is not None  # noqa: S101
    streams = _Drain(process.stdout), _Drain(process.stderr)
    running = set() if running is None else running
    running.add(process)
    try:
        timed_out = _wait_or_kill(process, timeout)
    except BaseException:  # Ctrl-C in this thread: a session of its own does not hear of it
        kill_session(process)
        raise
    finally:
        running.discard(process)
    seconds = time.monotonic() - started
    code = None if timed_out else process.returncode
    return Completed(code, streams[0].text(), streams[1].text(), seconds, timed_out)


def _wait_or_kill(process: Process, timeout: float) -> bool:
    """Wait for a process; kill its session at the time limit. True if it had to be killed."""
    try:
        process.wait(timeout)
        return False
    except subprocess.TimeoutExpired:
        kill_session(process)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        # In the kernel, waiting for a device: not even SIGKILL ends it. Leave it behind.
        process.returncode = -signal.SIGTERM
    return True


def kill_session(process: Process) -> None:
    """Kill a process that `run_command` started, with its children."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # it ended on its own just now (a zombie's group may not be signalled on macOS)
    else:
        process.kill()
