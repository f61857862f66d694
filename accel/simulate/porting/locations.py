"""Which line of the user's program a call comes from. No torch.

That is the innermost Python frame outside torch, torch_npu, this library and the standard library.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_PACKAGES = ("torch", "torch_npu", "accel", "accel_kernels")
# Code that Python or torch made without a file; `<string>`, `<stdin>` and cells are the user's.
_GENERATED = ("<frozen ", "<eval_with_key>", "<torch_package", "<__array_function__", "<attrs ")
_SITES = ("site-packages", "dist-packages")
# The function of torch.autograd under which torch's engine runs in the calling thread.
_ENGINE = "_engine_run_backward"


class Location(NamedTuple):
    """A line of a program.

    Attributes:
        file: As Python names it: a path, or `<string>` and the like.
        line: Counted from 1; 0 where no line is known.
        backward: The line is that of the forward operator, the call its derivative.
    """

    file: str
    line: int
    backward: bool = False


UNKNOWN = Location("", 0)


class Locator:
    """Finds the user's line; remembers which files are the user's."""

    def __init__(self, packages: Iterable[str] = _PACKAGES) -> None:
        """Read where the packages and the standard library are; packages not imported are left."""
        homes: list[str] = []
        for name in packages:
            module = sys.modules.get(name)
            homes += getattr(module, "__path__", ())
        self._homes = tuple(os.path.join(os.path.realpath(home), "") for home in homes)
        libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
        self._libraries = tuple(os.path.join(os.path.realpath(path), "") for path in libraries)
        self._known: dict[str, bool] = {}

    def find(self) -> tuple[Location | None, bool]:
        """The calling thread's line.

        Returns:
            It, or None where no frame is the user's, and whether torch's engine was passed on the
            way: then the line is that of the call of `backward()`.
        """
        frame: FrameType | None = sys._getframe(1)
        passed = False
        while frame is not None:
            code = frame.f_code
            if self._is_user(code.co_filename):
                return Location(code.co_filename, frame.f_lineno), passed
            passed = passed or code.co_name == _ENGINE
            frame = frame.f_back
        return None, passed

    def _is_user(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._decide(name)
        return known

    def _decide(self, name: str) -> bool:
        if name.startswith("<"):
            return not name.startswith(_GENERATED)
        path = os.path.realpath(name)
        if path.startswith(self._homes):
            return False
        for library in self._libraries:
            if path.startswith(library):
                rest = Path(path[len(library) :]).parts
                return rest[0] in _SITES
        return True


def shown(file: str, base: str) -> str:
    """A file's name as a report shows it: relative to `base` if it is below it."""
    if not file or file.startswith("<"):
        return file
    path = os.path.realpath(file)
    inside = path.startswith(os.path.join(os.path.realpath(base), ""))
    return os.path.relpath(path, os.path.realpath(base)) if inside else path
