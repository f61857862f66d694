"""Counts what one process does and writes its part of the report. No torch."""

from __future__ import annotations

import atexit
import linecache
import logging
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from accel.simulate.library import Counters
from accel.simulate.porting import parts
from accel.simulate.porting.findings import DeviceMemory, Finding, Operator, Process
from accel.simulate.porting.locations import Location, shown

_SECONDS = 2.0  # between two states on the disk: what a killed process may lose
_logger = logging.getLogger("accel")


@dataclass(frozen=True)
class Environment:
    """What the collector asks when it writes.

    Attributes:
        counters: The runtime's counters.
        memory: Memory of the devices in use.
        versions: Of the packages.
    """

    counters: Callable[[], Counters]
    memory: Callable[[], tuple[DeviceMemory, ...]]
    versions: Mapping[str, str]


class Collector:
    """The counts of this process. After a fork the child counts from zero."""

    def __init__(self, stem: str, environment: Environment) -> None:
        """Begin to count.

        Args:
            stem: Name of the run's parts (`parts.new_stem`).
            environment: What is asked when a part is written.
        """
        self._stem = stem
        self._environment = environment
        self._base = os.getcwd()
        self._start_anew()
        os.register_at_fork(after_in_child=self._start_anew)
        # A forked child of multiprocessing runs no atexit functions, but these.
        multiprocessing.util.register_after_fork(self, Collector._finish_with_multiprocessing)
        atexit.register(self.finish)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._findings: dict[tuple[str, str, str, Location], list[int]] = {}
        self._operators: dict[str, list[float]] = {}
        self._started = time.monotonic()
        self._written = 0.0
        self._name = parts.part_name(self._stem)
        self._ignored = self._environment.counters()

    def _finish_with_multiprocessing(self) -> None:
        multiprocessing.util.Finalize(None, self.finish, exitpriority=0)

    def note(
        self, kind: str, what: str, where: Location, *, size: int = 0, detail: str = ""
    ) -> None:
        """Count one call."""
        with self._lock:
            cell = self._findings.setdefault((kind, what, detail, where), [0, 0])
            cell[0] += 1
            cell[1] += size

    def note_operator(self, name: str, seconds: float) -> None:
        """Count an operator's run; from time to time write the state to the disk."""
        with self._lock:
            cell = self._operators.setdefault(name, [0, 0.0])
            cell[0] += 1
            cell[1] += seconds
            due = time.monotonic() - self._written > _SECONDS
            if due:
                self._written = time.monotonic()
        if due:
            self._write(ended=False)

    def finish(self) -> None:
        """Write the last state, if there is anything to say."""
        if self._operators or self._findings:
            self._write(ended=True)

    def _write(self, *, ended: bool) -> None:
        part = self.part(ended=ended)
        try:
            parts.write_part(self._name, part)
        except OSError as error:
            # The program goes on; at the end the report says which process is incomplete.
            _logger.warning("the porting report of process %d: %s", os.getpid(), error)

    def part(self, *, ended: bool) -> parts.Part:
        """The state as a value."""
        with self._lock:
            found = {key: tuple(cell) for key, cell in self._findings.items()}
            operators = {name: tuple(cell) for name, cell in self._operators.items()}
        return parts.Part(
            process=self._process(ended, sum(int(count) for count, _ in operators.values())),
            findings=tuple(self._finding(key, cell) for key, cell in found.items()),
            operators=tuple(
                Operator(name, int(count), seconds) for name, (count, seconds) in operators.items()
            ),
            versions=self._environment.versions,
        )

    def _process(self, ended: bool, operators: int) -> Process:
        counters, ignored = self._environment.counters(), self._ignored
        return Process(
            pid=os.getpid(),
            rank=os.environ.get("RANK", ""),
            program=" ".join(sys.argv),
            ended=ended,
            seconds=round(time.monotonic() - self._started, 3),
            operators=operators,
            copies={name: n - ignored.copies[name] for name, n in counters.copies.items()},
            copied_bytes={
                name: n - ignored.copied_bytes[name] for name, n in counters.copied_bytes.items()
            },
            synchronizations=counters.synchronizations - ignored.synchronizations,
            devices=self._environment.memory(),
        )

    def _finding(self, key: tuple[str, str, str, Location], cell: tuple[int, ...]) -> Finding:
        kind, what, detail, where = key
        return Finding(
            kind=kind,
            what=what,
            file=shown(where.file, self._base),
            line=where.line,
            backward=where.backward,
            code=linecache.getline(where.file, where.line).strip() if where.line else "",
            detail=detail,
            count=cell[0],
            bytes=cell[1],
        )
