"""Modules of the user's that Python would import in the place of this library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from accel.convert.walking import PYTHON, Found, Walk, excluded_by

# What stands at the top of a project.
_TOPS = (".git", ".hg", "pyproject.toml", "setup.py", "setup.cfg")
_OURSELVES = Path(os.path.realpath(__file__)).parents[1]


def shadowing(walk: Walk, name: str) -> Iterator[str]:
    """All of them, as they are called from where the command runs or in the report.

    Besides the files of the run these are modules that lie beside a given path or above it in its
    project, for those are on the path of what is converted too. This library is none of them.

    Args:
        walk: The files of the run.
        name: What the output imports.
    """
    found = {os.path.realpath(one.location): one for one in walk.files}
    yield from shadows([one for one in walk.files if not _is_ours(one.location)], name)
    for place in _beside(walk.roots, name):
        if os.path.realpath(place) not in found and not _is_excluded(walk, place):
            name_from_here = os.path.relpath(place)
            yield str(place) if name_from_here.startswith("..") else Path(name_from_here).as_posix()


def shadows(files: Sequence[Found], name: str) -> Iterator[str]:
    """Modules and packages of the tree that `import name` may find before an installed one.

    A module in a package is imported under the package's name, so it hides nothing.
    """
    paths = {one.path for one in files if one.language == PYTHON}
    for path in sorted(paths):
        parts = path.split("/")
        inside = path.endswith(f"/{name}/__init__.py") or path == f"{name}/__init__.py"
        above = parts[:-2] if inside else parts[:-1]
        if (inside or parts[-1] == f"{name}.py") and "/".join([*above, "__init__.py"]) not in paths:
            yield path


def _beside(roots: Sequence[str], name: str) -> Iterator[Path]:
    folders: dict[Path, None] = {}
    for root in roots:
        place = Path(os.path.realpath(root))
        for folder in _upwards(place if place.is_dir() else place.parent):
            folders |= {folder: None, folder / "src": None}
    for folder in folders:
        # A module in a package is imported under the package's name, so it hides nothing.
        if (folder / "__init__.py").exists():
            continue
        for place in (folder / name / "__init__.py", folder / f"{name}.py"):
            if place.is_file() and not _is_ours(place):
                yield place


def _is_excluded(walk: Walk, place: Path) -> bool:
    """Whether a pattern leaves a module out, by its name from here or from a given path."""
    given = (root if os.path.isdir(root) else os.path.dirname(root) for root in walk.roots)
    for start in (os.curdir, *given):
        name = Path(os.path.relpath(place, start or os.curdir)).as_posix()
        while name.startswith("../"):
            name = name.removeprefix("../")
        if excluded_by(walk.exclude, name):
            return True
    return False


def _upwards(folder: Path) -> list[Path]:
    """A directory and those above it up to the project's; itself alone if it is in none."""
    line = [folder, *folder.parents]
    for number, one in enumerate(line):
        if any((one / top).exists() for top in _TOPS):
            return line[: number + 1]
    return [folder]


def _is_ours(place: Path) -> bool:
    return Path(os.path.realpath(place)).parent == _OURSELVES
