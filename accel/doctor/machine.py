"""The one object through which the doctor reads a machine, so that a recording can stand in."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accel.doctor.process import Completed, Process, kill_session, run_command

READ_LIMIT = 1 << 20  # bytes of a file that are looked at; version files have a few hundred


@dataclass(frozen=True)
class Plugin:
    """An installed entry point: `name = value` in `group`, brought by `distribution`."""

    group: str
    name: str
    value: str
    distribution: str


@dataclass(frozen=True)
class Installed:
    """What importlib.metadata finds.

    Attributes:
        versions: Version by normalised distribution name.
        plugins: Entry points of the groups that PyTorch and Accel load.
        broken: Metadata that could not be read, as `path: reason`.
    """

    versions: Mapping[str, str]
    plugins: tuple[Plugin, ...] = ()
    broken: tuple[str, ...] = ()


PLUGIN_GROUPS = ("torch.backends", "accel.devices", "accel.kernels")


class Machine(Protocol):
    """What the doctor asks of a machine."""

    environment: Mapping[str, str]
    executable: str
    python_version: str
    system: str

    def read(self, path: str) -> str | None:
        """Text of a file, or None where there is none that can be read."""

    def exists(self, path: str) -> bool:
        """Whether a path exists."""

    def glob(self, pattern: str) -> list[str]:
        """Absolute paths that match an absolute pattern, sorted."""

    def which(self, tool: str) -> str | None:
        """Where a program is, or None."""

    def run(
        self, command: Sequence[str], timeout: float, overrides: Mapping[str, str]
    ) -> Completed:
        """Run a command with the machine's environment and some variables on top."""

    def stop(self) -> None:
        """Kill whatever `run` is running in any thread: the user has had enough."""

    def installed(self) -> Installed:
        """Installed distributions and their entry points."""

    def python_command(self) -> list[str]:
        """This interpreter with the flags that decide which packages it sees."""


class LocalMachine:
    """The machine this process runs on.

    Args:
        root: Where its file tree hangs; another directory only for a recorded machine.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self._running: set[Process] = set()
        self.environment: Mapping[str, str] = dict(os.environ)
        self.executable = sys.executable
        self.python_version = platform.python_version()
        self.system = f"{platform.system()} {platform.machine()}"

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str | None:
        """Text of a file, or None where there is none that can be read."""
        try:
            with self._at(path).open("rb") as file:
                return file.read(READ_LIMIT).decode("utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Whether a path exists; one that may not be looked at does not."""
        try:
            return self._at(path).exists()
        except OSError:
            return False

    def glob(self, pattern: str) -> list[str]:
        """Absolute paths that match an absolute pattern, sorted."""
        found = self.root.glob(pattern.lstrip("/"))
        return sorted("/" + path.relative_to(self.root).as_posix() for path in found)

    def which(self, tool: str) -> str | None:
        """Where a program is, or None."""
        return shutil.which(tool, path=self.environment.get("PATH"))

    def run(
        self, command: Sequence[str], timeout: float, overrides: Mapping[str, str]
    ) -> Completed:
        """Run a command with the machine's environment and some variables on top."""
        return run_command(command, timeout, {**self.environment, **overrides}, self._running)

    def stop(self) -> None:
        """Kill whatever `run` is running in any thread."""
        for process in list(self._running):
            kill_session(process)

    def python_command(self) -> list[str]:
        """This interpreter with the flags that decide which packages it sees."""
        flags = {
            "-I": sys.flags.isolated,
            "-E": sys.flags.ignore_environment and not sys.flags.isolated,
            "-s": sys.flags.no_user_site and not sys.flags.isolated,
            "-S": sys.flags.no_site,
        }
        return [self.executable, *(flag for flag, on in flags.items() if on)]

    def installed(self) -> Installed:
        """Installed distributions and their entry points."""
        versions: dict[str, str] = {}
        plugins: list[Plugin] = []
        broken: list[str] = []
        for distribution in importlib.metadata.distributions():
            try:
                name = normalised(distribution.metadata["Name"] or "")
                if name in versions:
                    continue  # shadowed by one earlier on the path, as for the importer
                entries = [e for e in distribution.entry_points if e.group in PLUGIN_GROUPS]
                versions[name] = distribution.version or ""
            except Exception as error:  # whatever a damaged dist-info makes the parser raise
                where = getattr(distribution, "_path", "unknown")
                broken.append(f"{where}: {type(error).__name__}: {error}")
                continue
            plugins += [Plugin(e.group, e.name, e.value, name) for e in entries]
        return Installed(versions, tuple(plugins), tuple(broken))


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()
