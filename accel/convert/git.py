"""Whether what would be written over can be had back from git."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# Set where a hook runs us; they would name the hook's tree for every other one.
_OF_A_HOOK = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"})


class State(NamedTuple):
    """What git knows of the files that would be written.

    Attributes:
        modified: Tracked files under the given paths with changes that are not committed.
        unprotected: Files that would be written and that git has no copy of.
        problem: Why git could not be asked, although the tree is under git; "" otherwise.
    """

    modified: tuple[str, ...]
    unprotected: tuple[str, ...]
    problem: str = ""


def state(roots: Sequence[str], files: Iterable[Path]) -> State:
    """Ask git.

    Args:
        roots: The paths that the user gave: changes under them count.
        files: The files that would be written.
    """
    by_tree: dict[Path, list[Path]] = {}
    modified: list[str] = []
    unprotected: list[str] = []
    for file in files:
        real = Path(os.path.realpath(file))
        tree = _tree_of(real)
        if tree is None:
            unprotected.append(str(real))
        else:
            by_tree.setdefault(tree, []).append(real)
    for tree, members in by_tree.items():
        try:
            modified += _modified(tree, roots)
            unprotected += _untracked(tree, members)
        except (OSError, subprocess.CalledProcessError) as error:
            return State((), (), f"git cannot be asked about {tree}: {_reason(error)}")
    return State(tuple(sorted(modified)), tuple(sorted(unprotected)))


def _tree_of(path: Path) -> Path | None:
    """The work tree that a file is in: the nearest directory above it that holds `.git`."""
    return next((parent for parent in path.parents if (parent / ".git").exists()), None)


def _modified(tree: Path, roots: Sequence[str]) -> list[str]:
    inside = [real for root in roots if (real := _within(tree, Path(os.path.realpath(root))))]
    listed = _git(
        tree,
        "status",
        "--porcelain=v1",
        "-z",
        "--untracked-files=no",
        "--no-renames",
        "--",
        *inside,
    )
    return [str(tree / entry[3:]) for entry in listed.split("\0") if entry]


def _within(tree: Path, root: Path) -> str | None:
    """What of a work tree lies under a root; None if nothing does."""
    if root == tree or root in tree.parents:
        return "."
    return str(root.relative_to(tree)) if tree in root.parents else None


def _untracked(tree: Path, files: Sequence[Path]) -> list[str]:
    tracked = set(_git(tree, "ls-files", "-z").split("\0"))
    return [str(path) for path in files if str(path.relative_to(tree)) not in tracked]


def _git(tree: Path, *arguments: str) -> str:
    # A pathspec is a name here, never a pattern: a file may be called `[a].py`.
    command = ("git", "--literal-pathspecs", "-C", str(tree), *arguments)
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    return os.fsdecode(done.stdout)


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = error.stderr.decode("utf-8", "replace").strip()
    return said.splitlines()[0] if said else f"status {error.returncode}"
