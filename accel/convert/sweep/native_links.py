"""Extensions over a whole tree: which sources, builds and imports are one, and who needs it.

A file on its own cannot know this: a kernel's source does not say that its extension is optional.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from accel.convert.finding import FileResult, Finding
from accel.convert.sweep.native import WITHOUT
from accel.convert.wording import listed

_LANGUAGES = frozenset({"cuda", "c++", "cython"})
_PYTHON = "python"
_NATIVE, _BUILD, _IMPORT = ("ACC130", "ACC131"), "ACC102", "ACC103"
_SCRIPTS = frozenset({"setup.py", "build.py"})
# Builds ahead of a run: they say nothing about who needs what they make.
_AHEAD = re.compile(r"[\w.]*[Ee]xtension\w*\s*\(")
_SHOWN = 4  # lines that a message names
_STATEMENT = re.compile(r"\s*(?:import|from)\s")


class _Place(NamedTuple):
    """A finding of a file."""

    file: FileResult
    finding: Finding

    @property
    def text(self) -> str:
        """The code that it is about."""
        start, end = self.finding.span
        return self.file.before[start:end].decode("utf-8", "replace")

    @property
    def line(self) -> str:
        """Where it is, for people."""
        return f"{self.file.path}:{self.finding.line}"


def linked(files: Sequence[FileResult]) -> tuple[FileResult, ...]:
    """The same files, with one subject for all that is of one extension.

    An extension that every user can do without stops nothing: its sources and its build are work.
    So is a function that builds what its callers name: they have findings of their own.

    Args:
        files: All files of a tree.
    """
    builds = _places(files, _BUILD)
    if not builds:
        return tuple(files)
    loaders = {id(one.finding): said for one in builds if (said := _for_others(one, builds))}
    real = [one for one in builds if id(one.finding) not in loaders]
    members = _members(files, real)
    python = [file for file in files if file.language == _PYTHON]
    changed: dict[int, Finding] = {}
    for one in builds:
        if told := loaders.get(id(one.finding)):
            changed[id(one.finding)] = _eased(one.finding, told)
    for name, places in members.items():
        said = _not_needed(places)
        if said and _others_import(name, python, places):
            said = ""
        for place in places:
            new = replace(place.finding, subject=name)
            changed[id(place.finding)] = _eased(new, said) if said and new.blocker else new
    return tuple(_with(file, changed) for file in files)


def _places(files: Iterable[FileResult], *rules: str) -> list[_Place]:
    return [_Place(file, one) for file in files for one in file.findings if one.rule in rules]


def _with(file: FileResult, changed: Mapping[int, Finding]) -> FileResult:
    if not any(id(one) in changed for one in file.findings):
        return file
    said = {
        (one.rule, one.message): changed[id(one)].message
        for one in file.findings
        if id(one) in changed
    }
    ledger = tuple(
        entry._replace(reason=said.get((entry.rule, entry.reason), entry.reason))
        for entry in file.ledger
    )
    findings = tuple(changed.get(id(one), one) for one in file.findings)
    return replace(file, findings=findings, ledger=ledger)


def _eased(finding: Finding, said: str) -> Finding:
    return replace(finding, blocker=False, message=f"{finding.message}; {said}")


def _for_others(one: _Place, builds: Sequence[_Place]) -> str:
    """Of a build within a function that others call to build theirs: who they are."""
    name = one.finding.subject.rpartition(".")[2]
    call = re.compile(rf"(?:\w+\.)*{re.escape(name)}\s*\(")
    if not name or call.match(one.text):
        return ""
    others = [other for other in builds if other is not one and call.match(other.text)]
    subjects = dict.fromkeys(other.finding.subject for other in others)
    return f"what it builds is told where it is called: {', '.join(subjects)}" if others else ""


# --- what is of one extension ------------------------------------------------------------------


def _members(files: Sequence[FileResult], builds: Sequence[_Place]) -> Mapping[str, list[_Place]]:
    """Everything that is of an extension, by its name."""
    found: dict[str, list[_Place]] = defaultdict(list)
    named = [one for one in builds if one.finding.action == "flag" and "(" in one.text]
    for build in named:
        found[build.finding.subject].append(build)
    for place in _places(files, _IMPORT, "ACC105"):
        if owner := _by_tail(place, named):
            found[owner].append(place)
    native = [
        place
        for place in _places(files, *_NATIVE)
        if place.file.language in _LANGUAGES and place.finding.action == "flag"
    ]
    owners: dict[str, str] = {}
    rest = []
    for place in native:
        owner = _by_name(place.file.path, named)
        if owner:
            owners[place.file.path] = owner
            found[owner].append(place)
        else:
            rest.append(place)
    for place in rest:
        owner = _beside(place.file.path, owners) or _by_folder(place.file.path, named)
        if owner:
            found[owner].append(place)
    return found


def _by_tail(place: _Place, builds: Sequence[_Place]) -> str:
    """The extension that an import names: `alt_cuda_corr`, or `_C` of `pkg._C`."""
    tail = _tail(place.finding.subject)
    same = [one for one in builds if _tail(one.finding.subject) == tail]
    return _nearest(place.file.path, same)


def _tail(name: str) -> str:
    last = name.rpartition(".")[2]
    return last.lstrip("_") or last


def _by_name(path: str, builds: Sequence[_Place]) -> str:
    """The extension whose build names a source; or its file does, and builds nothing else."""
    base = re.compile(rf"(?<!\w){re.escape(posixpath.basename(path))}(?!\w)")
    within = [one for one in builds if base.search(one.text)]
    if within:
        return _nearest(path, within)
    alone = _alone(builds)
    return _nearest(path, [
        one for one in builds
        if one.file.path in alone and base.search(one.file.before.decode("utf-8", "replace"))
    ])  # fmt: skip


def _by_folder(path: str, builds: Sequence[_Place]) -> str:
    """The one extension that the closest build script above a source makes."""
    alone = _alone(builds)
    scripts = {
        posixpath.dirname(one.file.path): one
        for one in builds
        if posixpath.basename(one.file.path) in _SCRIPTS
    }
    folder = posixpath.dirname(path)
    while True:
        if folder in scripts:
            one = scripts[folder]
            return one.finding.subject if one.file.path in alone else ""
        if folder in ("", "/"):
            return ""
        folder = posixpath.dirname(folder)


def _beside(path: str, owners: Mapping[str, str]) -> str:
    """The extension of a source in the same folder with the same stem: of a header's."""
    stem = posixpath.splitext(path)[0]
    return next((o for known, o in owners.items() if posixpath.splitext(known)[0] == stem), "")


def _alone(builds: Sequence[_Place]) -> set[str]:
    """Files that build one extension."""
    subjects: dict[str, set[str]] = defaultdict(set)
    for one in builds:
        subjects[one.file.path].add(one.finding.subject)
    return {path for path, names in subjects.items() if len(names) == 1}


def _nearest(path: str, builds: Sequence[_Place]) -> str:
    """Of some extensions, the one that is built closest to a file."""
    if not builds:
        return ""
    folder = posixpath.dirname(path)
    best = max(builds, key=lambda one: len(posixpath.commonprefix([one.file.path, f"{folder}/"])))
    return best.finding.subject


# --- whether anybody needs it ------------------------------------------------------------------


def _not_needed(places: Sequence[_Place]) -> str:
    """Why nothing stops without an extension; "" where something does, or nobody is known."""
    users = [one for one in places if _needs(one)]
    optional = [one for one in users if one.finding.action == "keep"]
    guarded = [one for one in users if WITHOUT in one.finding.message]
    if not users or len(optional) + len(guarded) < len(users):
        return ""
    if guarded:
        return f"{WITHOUT}: see {_lines(guarded + optional)}"
    calls = [
        one
        for one in places
        if one.finding.rule == _IMPORT and one.finding.action == "keep" and one not in users
    ]
    used = f"; it is used at {_lines(calls)}" if calls else ""
    return f"the program starts without it, for its import is optional: {_lines(optional)}{used}"


def _others_import(name: str, python: Sequence[FileResult], places: Sequence[_Place]) -> bool:
    """Whether an import that no finding is about names an extension: nobody knows its guard."""
    last = re.escape(name.rpartition(".")[2].encode())
    words = re.compile(
        rb"^[ \t]*(?:from|import)\b[^\n#]*(?<!\w)" + last + rb"(?!\w)"
        rb"|import_module\(\s*['\"](?:[\w.]*\.)?" + last + rb"['\"]",
        re.MULTILINE,
    )
    known = {(one.file.path, one.finding.line) for one in places}
    return any(
        (file.path, file.before.count(b"\n", 0, match.start()) + 1) not in known
        for file in python
        for match in words.finditer(file.before)
    )


def _lines(places: Sequence[_Place]) -> str:
    lines = list(dict.fromkeys(one.line for one in places))
    return listed(lines, _SHOWN, " lines")


def _needs(one: _Place) -> bool:
    """Whether it is an import of an extension, or a build that happens when the program runs."""
    if one.file.language != _PYTHON:
        return False
    if one.finding.rule == _BUILD:
        return _AHEAD.match(one.text) is None
    return one.finding.rule == _IMPORT and _STATEMENT.match(one.text) is not None
