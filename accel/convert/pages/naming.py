"""Names of files as they are from where the command runs, for reports that people read there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accel.convert.finding import TreeResult
from accel.convert.pages.runs import Trace
from accel.convert.pages.summary import Place
from accel.convert.walking import Omitted, place_of


def tree_from_here(tree: TreeResult) -> TreeResult:
    """A run whose files are called as the diff and `--check` call them."""
    files = (replace(file, path=_name(tree, file.path)) for file in tree.files)
    return replace(tree, files=tuple(files))


def omitted_from_here(tree: TreeResult, omitted: Sequence[Omitted]) -> tuple[Omitted, ...]:
    """The same for what was left out of a run; directories keep their slash."""
    return tuple(
        Omitted(_name(tree, path) + "/" * path.endswith("/"), reason) for path, reason in omitted
    )


def trace_from_here(tree: TreeResult, trace: Trace) -> Trace:
    """The same for a log beside a run; what is none of its files keeps its name.

    Args:
        tree: The run as it was.
        trace: What was merged with it.
    """
    names = {file.path: _name(tree, file.path) for file in tree.files}
    return replace(
        trace,
        unseen=tuple(one._replace(path=names.get(one.path, one.path)) for one in trace.unseen),
        idle=tuple(Place(names[path], finding) for path, finding in trace.idle),
    )


def _name(tree: TreeResult, path: str) -> str:
    place = place_of(tree.roots, path)
    if place.is_absolute():
        below = os.path.relpath(place)
        return place.as_posix() if below.startswith("..") else Path(below).as_posix()
    return place.as_posix()
