"""Which files of a tree are read, and which parts of it are left out, with the reason."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PYTHON, SHELL = "python", "shell"
_JSON = "json"
_OURS = re.compile(
    rb'\s*\{\s*"(?:schema":\s*"accel\.|\$schema":.{0,800}?"name":\s*"accel convert")', re.DOTALL
)
LARGEST = 16 << 20  # bytes; what is larger is data, or would not be parsed on a small machine
_PYTHON_SUFFIXES = (".py", ".pyw", ".pyi")
_SHELL = re.compile(rb"\b(?:ba|z|k|da|a)?sh\b")
_OUTPUTS = frozenset({"__pycache__", "node_modules", "site-packages", ".eggs"})
# Written by a build that stands beside them; a package of that name holds source code.
_BUILDS = frozenset({"build", "dist", "_build"})
_BUILD_FILES = ("setup.py", "setup.cfg", "pyproject.toml", "CMakeLists.txt")
# Hidden, and yet a project's own text: continuous integration and containers.
_SHOWN = frozenset({".github", ".circleci", ".devcontainer", ".buildkite"})


class Found(NamedTuple):
    """A file to read.

    Attributes:
        path: Its name in the report, with forward slashes.
        location: Where it is.
        language: `python`, or as `sweep.language_of` calls it.
    """

    path: str
    location: Path
    language: str


class Omitted(NamedTuple):
    """What was left out, and why."""

    path: str
    reason: str


class Walk(NamedTuple):
    """Everything under the paths that were given.

    Attributes:
        roots: The paths as they were given.
        files: By name.
        omitted: Files and directories that nobody looked into, by name.
        exclude: The patterns of names that were to be left out.
    """

    roots: tuple[str, ...]
    files: tuple[Found, ...]
    omitted: tuple[Omitted, ...]
    exclude: tuple[str, ...] = ()


def discover(
    paths: Sequence[str | os.PathLike[str]],
    *,
    exclude: Sequence[str] = (),
    language_of: Callable[[str], str | None],
) -> Walk:
    """Find the files.

    A file that was given by name is read whatever directory it is in; so is a directory.

    Args:
        paths: Files and directories.
        exclude: Patterns such as `third_party/*` or `*_test.py`, for names in the report and for
            single parts of them.
        language_of: Says for a name what kind of file it is, if any that is read; not asked for
            Python.

    Raises:
        ValueError: No path is given.
        FileNotFoundError: A path does not exist.
    """
    roots = tuple(os.fspath(path) for path in paths)
    if not roots:
        raise ValueError("no path is given: name files or directories, such as `.`")
    for root in roots:
        if not os.path.exists(root):
            raise FileNotFoundError(f"{root} does not exist: name a file or a directory")
    walker = _Walker(exclude, language_of, is_relative=len(roots) == 1)
    for root in roots:
        walker.walk(root)
    files = list(_once(walker))
    return Walk(roots, tuple(sorted(files)), tuple(sorted(walker.omitted)), tuple(exclude))


def _once(walker: _Walker) -> Iterator[Found]:
    """Each file under one name: its own rather than a link's."""
    names: dict[str, str] = {}
    for found in sorted(walker.files.values(), key=lambda one: (one.location.is_symlink(), one)):
        first = names.setdefault(os.path.realpath(found.location), found.path)
        if first == found.path:
            yield found
        else:
            walker.omitted.add(Omitted(found.path, f"another name of {first}"))


def excluded_by(patterns: Sequence[str], path: str) -> str:
    """The pattern that leaves a path out; "" if none does."""
    names = (path, *path.split("/"))
    for pattern in patterns:
        bare = pattern.rstrip("/").removeprefix("./")
        if any(fnmatch.fnmatch(name, bare) for name in names):
            return pattern
    return ""


def place_of(roots: Sequence[str], path: str) -> Path:
    """Where the file is that a report calls `path`."""
    (root, *others) = roots
    return Path(root, path) if not others and os.path.isdir(root) else Path(path)


class _Walker:
    def __init__(
        self, exclude: Sequence[str], language_of: Callable[[str], str | None], is_relative: bool
    ) -> None:
        self._exclude, self._language_of = tuple(exclude), language_of
        self._is_relative = is_relative
        self.files: dict[str, Found] = {}
        self.omitted: set[Omitted] = set()
        self._seen: set[str] = set()  # real paths: a link may lead into what was walked already

    def walk(self, root: str) -> None:
        """Add everything under one path."""
        if not os.path.isdir(root):
            self._add(Path(root).as_posix(), Path(root), is_given=True)
            return
        prefix = "" if self._is_relative else f"{Path(root).as_posix().rstrip('/')}/"
        prefix = "" if prefix == "./" else prefix
        self._enter(Path(root), prefix)

    def _enter(self, directory: Path, prefix: str) -> None:
        real = os.path.realpath(directory)
        if real in self._seen:
            self._omit(prefix or ".", "a link to a directory that was read already")
            return
        self._seen.add(real)
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            self._omit(prefix or ".", f"cannot be read: {error.strerror}")
            return
        names = {entry.name for entry in entries}
        below: list[tuple[Path, str]] = []
        for entry in entries:
            path = prefix + entry.name
            try:
                if not entry.is_dir():
                    self._add(path, Path(entry.path), is_given=False)
                elif reason := self._why_not(Path(entry.path), path, names):
                    self._omit(f"{path}/", reason)
                else:
                    below.append((Path(entry.path), f"{path}/"))
            except OSError as error:  # links in a circle, a directory that must not be searched
                self._omit(path, f"cannot be read: {error.strerror or error}")
        # Links last, so that a directory is read under its own name.
        for inner, name in sorted(below, key=lambda one: one[0].is_symlink()):
            self._enter(inner, name)

    def _add(self, path: str, location: Path, *, is_given: bool) -> None:
        if pattern := excluded_by(self._exclude, path):
            self._omit(path, f"excluded by {pattern}")
            return
        language = self._kind(path, location)
        if language is None:
            if is_given:
                self._omit(path, "not a kind of file that is read")
        elif not location.is_file():
            self._omit(path, "neither a file nor a directory")
        elif language != PYTHON and (size := location.stat().st_size) > LARGEST:
            self._omit(path, f"data: {size >> 20} MiB, over the limit of {LARGEST >> 20}")
        elif language == _JSON and _is_ours(location):
            self._omit(path, "a report or a log of accel's own")
        else:
            self.files.setdefault(path, Found(path, location, language))

    def _kind(self, path: str, location: Path) -> str | None:
        """What a file is: by its name, or by its first line where the name says nothing."""
        if location.suffix in _PYTHON_SUFFIXES:
            return PYTHON
        language = self._language_of(path)
        if language is None and not location.suffix and location.is_file():
            return _interpreted(location)
        return language

    def _why_not(self, directory: Path, path: str, siblings: set[str]) -> str:
        """Why a directory is not entered; "" if it is."""
        name = directory.name
        if pattern := excluded_by(self._exclude, path):
            return f"excluded by {pattern}"
        if name in _OUTPUTS or name.endswith(".egg-info"):
            return "made by a tool"
        if (directory / "pyvenv.cfg").exists() or (directory / "conda-meta").is_dir():
            return "a Python environment"
        if name in _BUILDS and siblings.intersection(_BUILD_FILES):
            return "" if (directory / "__init__.py").exists() else "made by a build"
        return "hidden" if name.startswith(".") and name not in _SHOWN else ""

    def _omit(self, path: str, reason: str) -> None:
        self.omitted.add(Omitted(path, reason))


def _interpreted(script: Path) -> str | None:
    """What a script without a suffix is, by the interpreter that its first line asks for."""
    try:
        with script.open("rb") as file:
            first = file.readline(200)
    except OSError:
        return None  # of no name that is read, so nobody expects it in the report
    if not first.startswith(b"#!"):
        return None
    if b"python" in first:
        return PYTHON
    return SHELL if _SHELL.search(first) else None


def _is_ours(document: Path) -> bool:
    """Whether JSON was written by this library: by its first key, or as SARIF by its tool."""
    try:
        with document.open("rb") as file:
            return _OURS.match(file.read(1000)) is not None
    except OSError:
        return False  # the run itself reports the file
