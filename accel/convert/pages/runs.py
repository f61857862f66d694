"""A tracing log beside the findings: calls the source does not show, sites that did not run."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from accel.convert.finding import FileResult, Finding, TreeResult
from accel.convert.pages.summary import Place
from accel.convert.pages.words import count
from accel.convert.walking import PYTHON, place_of

if TYPE_CHECKING:
    from accel.convert.traced import TracedCall


class Unseen(NamedTuple):
    """Calls of CUDA on a line where the converter found nothing.

    Attributes:
        path: The file: of the tree, of a package, or a name such as `<string>`.
        line: From 1; 0 where none is known.
        name: What was called.
        given: The device that was asked for; "" where the call itself means CUDA.
        package: The package it came from; "" for the program's own files.
        times: How often.
    """

    path: str
    line: int
    name: str
    given: str
    package: str
    times: int


@dataclass(frozen=True)
class Trace:
    """What a traced run adds to the report.

    Attributes:
        calls: How many calls were logged.
        places: At how many places.
        unseen: Calls where the converter found nothing: the program's own first, and of them those
            that name no device either.
        idle: Sites at whose lines no call was logged.
        sites: Sites of the files in the log.
    """

    calls: int
    places: int
    unseen: tuple[Unseen, ...]
    idle: tuple[Place, ...]
    sites: int

    @property
    def sentence(self) -> str:
        """All of it in a sentence or two."""
        own = sum(not one.package for one in self.unseen)
        packages = len({one.package for one in self.unseen if one.package})
        said = f"{count(self.calls, 'call')} of CUDA at {count(self.places, 'place')} were logged. "
        if not self.unseen:
            return f"{said}The source names CUDA at each of them."
        parts = [f"{count(own, 'place')} of the program's own"] * bool(own)
        parts += [
            f"{count(len(self.unseen) - own, 'place')} in {count(packages, 'package')}"
        ] * bool(packages)
        where = " and at ".join(parts)
        return (
            f"{said}At {where} the line itself names no CUDA: the device comes from another line, "
            "or the call is made through a name that only the run knows:"
        )


def merge(tree: TreeResult, calls: Sequence[TracedCall]) -> Trace:
    """Lay a log beside the findings.

    Args:
        tree: The run of the converter, started where the program was, or with whole paths.
        calls: What the program did.
    """
    files = _Files(tree)
    logged: dict[str, list[TracedCall]] = defaultdict(list)
    unseen: dict[tuple[str, int, str, str, str], int] = defaultdict(int)
    for call in calls:
        file = files.find(call.path)
        if file is not None:
            logged[file.path].append(call)
        if file is None or not _is_shown(file, call):
            path = call.path if file is None else file.path
            unseen[path, call.line, call.api, call.given, call.package] += call.count
    found = [Unseen(*key, times) for key, times in unseen.items()]
    sites = [place for path in sorted(logged) for place in _sites(files.by_path[path])]
    return Trace(
        calls=sum(call.count for call in calls),
        places=len({(call.path, call.line) for call in calls}),
        unseen=tuple(sorted(found, key=lambda one: (one.package != "", one.given != "", one))),
        idle=tuple(one for one in sites if not _ran(one.finding, logged[one.path])),
        sites=len(sites),
    )


class _Files:
    """The tree's files by the names that a log may have for them."""

    def __init__(self, tree: TreeResult) -> None:
        self.by_path: Mapping[str, FileResult] = {file.path: file for file in tree.files}
        self._by_place = {
            os.path.realpath(place_of(tree.roots, file.path)): file for file in tree.files
        }

    def find(self, path: str) -> FileResult | None:
        """The file; None if it is none of the tree's."""
        if not path or path.startswith("<"):
            return None
        found = self._by_place.get(os.path.realpath(path))
        if found is not None:
            return found
        # Logged in another directory, or on another machine: then the end of the path must do.
        named = path.replace(os.sep, "/")
        ends = [
            file for own, file in self.by_path.items()
            if own == named or own.endswith(f"/{named}") or named.endswith(f"/{own}")
        ]  # fmt: skip
        return ends[0] if len(ends) == 1 else None


def _is_shown(file: FileResult, call: TracedCall) -> bool:
    return any(call.line <= one.line <= max(call.line, call.end_line) for one in file.findings)


def _ran(finding: Finding, calls: Sequence[TracedCall]) -> bool:
    return any(one.line <= finding.line <= max(one.line, one.end_line) for one in calls)


def _sites(file: FileResult) -> Iterator[Place]:
    if file.language == PYTHON:
        yield from (Place(file.path, one) for one in file.findings if one.action != "keep")
