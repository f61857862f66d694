"""Where Python files name a CUDA or C++ source: the lines that build, load or call it."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from accel.convert.finding import FileResult, TreeResult
from accel.convert.walking import PYTHON

_COMPILED = "ACC103"  # the rule about imports and calls of compiled modules
_TELLING = 20  # lines up to which a file's stem is taken for its name, and not for a common word


def callers(tree: TreeResult) -> Mapping[str, tuple[str, ...]]:
    """Lines of Python by the source with a blocker that they name, as `file:line`.

    A source is named by its file name, `ops.cu`; where nobody does that, by its stem, as the module
    that it becomes is called. Imports and calls of the extension that it is a part of come after.
    """
    native = [
        file.path
        for file in tree.files
        if file.language != PYTHON and any(one.blocker for one in file.findings)
    ]
    python = [file for file in tree.files if file.language == PYTHON]
    found = dict(_named(native, python, posixpath.basename))
    rest = [path for path in native if path not in found]
    stems = _named(rest, python, lambda path: posixpath.splitext(posixpath.basename(path))[0])
    found |= {path: lines for path, lines in stems if len(lines) <= _TELLING}
    return _with_uses(tree, native, found)


def _with_uses(
    tree: TreeResult, native: Sequence[str], found: Mapping[str, tuple[str, ...]]
) -> Mapping[str, tuple[str, ...]]:
    uses: dict[str, dict[str, None]] = defaultdict(dict)
    subjects: dict[str, set[str]] = defaultdict(set)
    for file in tree.files:
        for one in file.findings:
            if one.rule == _COMPILED:
                uses[one.subject][f"{file.path}:{one.line}"] = None
            elif file.path in native and one.blocker:
                subjects[file.path].add(one.subject)
    lines = {
        path: (
            *found.get(path, ()),
            *(line for name in sorted(subjects[path]) for line in uses[name]),
        )
        for path in native
    }
    return {path: tuple(dict.fromkeys(named)) for path, named in lines.items() if named}


def _named(
    paths: Sequence[str], python: Sequence[FileResult], name_of: Callable[[str], str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    by_name: dict[bytes, list[str]] = defaultdict(list)
    for path in paths:
        by_name[name_of(path).encode("utf-8", "surrogateescape")].append(path)
    if not by_name:
        return
    # The longest first: of `a.cuh` and `a.cu`, the former.
    names = sorted(by_name, key=len, reverse=True)
    pattern = re.compile(rb"(?<!\w)(?:" + b"|".join(map(re.escape, names)) + rb")(?!\w)")
    lines: dict[str, dict[str, None]] = defaultdict(dict)
    for file in python:
        for match in pattern.finditer(file.before):
            number = file.before.count(b"\n", 0, match.start()) + 1
            for path in by_name[match.group()]:
                lines[path][f"{file.path}:{number}"] = None
    for path, places in lines.items():
        yield path, tuple(places)
