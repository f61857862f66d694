"""Counts the redirected calls of one process by the line that made them. No torch."""

from __future__ import annotations

import atexit
import logging
import multiprocessing.util
import os
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType

from accel.simulate.porting.locations import Locator, shown
from accel.tracing.parts import Call, Part, Process, part_name, write_part
from accel.tracing.settings import Settings

MOST_PLACES = 20_000  # of one process; calls from further ones are counted together
_SECONDS = 2.0  # between two states on the disk: what a killed process may lose
_SITES = ("site-packages", "dist-packages")
_logger = logging.getLogger("accel")

# id of the code, instruction, what was called, with what, where it went, note
_Key = tuple[int, int, str, str, str, str]


class Recorder:
    """The counts of this process. After a fork the child counts from zero."""

    def __init__(self, settings: Settings, torch_version: str) -> None:
        """Begin to count."""
        self._settings = settings
        self._torch_version = torch_version
        self._places = _Places()
        self.device = ""  # set when it is known
        self._start_anew()
        self._is_changed = True  # a process that imports torch is named, whatever it does
        os.register_at_fork(after_in_child=self._start_anew)
        # A forked child of multiprocessing runs no atexit functions, but these.
        multiprocessing.util.register_after_fork(self, Recorder._finish_with_multiprocessing)
        atexit.register(self.finish)

    def _start_anew(self) -> None:
        self._lock = threading.RLock()  # a finalizer may ask for CUDA while a call is counted
        # The code is kept, so that its id stays its own.
        self._calls: dict[_Key, tuple[CodeType | None, list[int]]] = {}
        self._dropped = 0
        self._written = 0.0
        self._is_changed = False
        self._name = part_name(self._settings.stem)

    def _finish_with_multiprocessing(self) -> None:
        multiprocessing.util.Finalize(None, self.finish, exitpriority=0)

    def note(self, api: str, given: str, to: str, note: str = "") -> None:
        """Count a call for the innermost line of the program that is under way."""
        frame = self._places.frame_of_user()
        code = None if frame is None else frame.f_code
        instruction = -1 if frame is None else frame.f_lasti
        key = (id(code), instruction, api, given, to, note)
        with self._lock:
            cell = self._calls.get(key)
            self._is_changed = True
            if cell is not None:
                cell[1][0] += 1
            elif len(self._calls) < MOST_PLACES:
                self._calls[key] = (code, [1])
            else:
                self._dropped += 1
            due = time.monotonic() - self._written > _SECONDS
            if due:
                self._written = time.monotonic()
        if due:
            self._write(ended=False)

    def finish(self) -> None:
        """Write the last state, if there is anything new to say."""
        if self._is_changed:
            self._write(ended=True)

    def _write(self, *, ended: bool) -> None:
        try:
            write_part(self._name, self._part(ended=ended))
        except OSError as error:
            # The program goes on; at the end the log says which process is incomplete.
            _logger.warning("the trace of process %d: %s", os.getpid(), error)

    def _part(self, *, ended: bool) -> Part:
        with self._lock:
            found = [(key, code, cell[0]) for key, (code, cell) in self._calls.items()]
        process = Process(
            pid=os.getpid(),
            rank=os.environ.get("RANK", ""),
            program=" ".join(sys.argv) if hasattr(sys, "argv") else "",
            device=self.device,
            torch=self._torch_version,
            ended=ended,
            dropped=self._dropped,
        )
        return Part(process, tuple(self._call(*one) for one in found))

    def _call(self, key: _Key, code: CodeType | None, count: int) -> Call:
        _, instruction, api, given, to, note = key
        path = "" if code is None else shown(code.co_filename, self._settings.directory)
        line, end_line = (0, 0) if code is None else _lines(code, instruction)
        package = "" if code is None else _package_of(code.co_filename)
        return Call(path, line, end_line, api, given, to, package, note, count)


class _Places(Locator):
    """The same idea of the program's own lines as the porting report's."""

    def frame_of_user(self) -> FrameType | None:
        """The innermost frame of the program; None in a thread that torch or Python began."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and not self._is_user(frame.f_code.co_filename):
            frame = frame.f_back
        return frame

    def _decide(self, name: str) -> bool:
        # It wraps torch's deprecated classes; the line is that of who makes one.
        return Path(name).name != "typing_extensions.py" and super()._decide(name)


def _lines(code: CodeType, instruction: int) -> tuple[int, int]:
    """First and last line of the expression under way."""
    if sys.version_info >= (3, 11):
        for index, (line, end_line, _, _) in enumerate(code.co_positions()):
            if index == instruction // 2 and line is not None:
                return line, end_line or line
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line, line
    return code.co_firstlineno, code.co_firstlineno


def _package_of(path: str) -> str:
    """The package under site-packages that a file belongs to; "" for other files."""
    parts = Path(os.path.realpath(path)).parts
    for site in _SITES:
        if site in parts[:-1]:
            return parts[parts.index(site) + 1].removesuffix(".py")
    return ""
