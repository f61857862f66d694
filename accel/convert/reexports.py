"""Names of torch's modules that the files of a tree pass on to one another."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_DEEPEST = 5  # files through which a name may come
_VENDORS = frozenset({"cuda", "npu", "musa", "mlu"})
_BLOCKS = (ast.If, ast.Try, ast.With, ast.ExceptHandler)


@dataclass
class Brought:
    """What a file's own level brings.

    Attributes:
        names: Dotted names by the name that the file gives them, with the dots of the import.
        assigned: Those of them that an assignment gives.
        stars: Modules of which it takes all names.
    """

    names: dict[str, str] = field(default_factory=dict)
    assigned: set[str] = field(default_factory=set)
    stars: list[str] = field(default_factory=list)


def brought(tree: ast.Module) -> Brought:
    """The imports and plain other names of a file, also within `if` and `try`."""
    found = Brought()
    for node in _level(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                found.names[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            home = "." * node.level + (node.module or "")
            for alias in node.names:
                if alias.name == "*":
                    found.stars.append(home)
                else:
                    dotted = home + alias.name if home.endswith(".") else f"{home}.{alias.name}"
                    found.names[alias.asname or alias.name] = dotted
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, dotted = node.targets[0], _dotted(node.value)
            if isinstance(target, ast.Name) and dotted:
                root, _, rest = dotted.partition(".")
                known = found.names.get(root, "")
                if known:
                    found.names[target.id] = f"{known}.{rest}" if rest else known
                    found.assigned.add(target.id)
    return found


def _level(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements of a file's own level, in order."""
    stack: list[ast.AST] = [*reversed(tree.body)]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, _BLOCKS):
            stack.extend(reversed(list(ast.iter_child_nodes(node))))


def _dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


class Through(NamedTuple):
    """What a name is by way of another file.

    Attributes:
        name: Torch's dotted name for it.
        home: The file that passes it on.
        is_part: It is read from what that file passes on, which has no import of its own there.
    """

    name: str
    home: str
    is_part: bool


class Homes:
    """Finds the files that an import's name may mean."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        """Take the files by dotted module name."""
        self._files: dict[str, str] = {}
        doubtful: set[str] = set()
        for dotted, path in modules.items():
            parts = dotted.split(".")
            # Any folder may be on the path; a name that two files have means neither for sure.
            for start in range(len(parts)):
                name = ".".join(parts[start:])
                if name in self._files and start:
                    doubtful.add(name)
                if name not in self._files or not start:
                    self._files[name] = path
        self._doubtful = doubtful - set(modules)
        self._names = {path: dotted for dotted, path in modules.items()}

    def file(self, path: str, module: str) -> str:
        """The file of a module's name, seen from a file; "" if it is none of the tree's."""
        name = module.lstrip(".")
        level = len(module) - len(name)
        folder = path.split("/")[:-1]
        if level:
            above = folder[: len(folder) - (level - 1)]
            return self._whole(".".join([*above, *([name] if name else [])]))
        beside = self._whole(".".join([*folder, name]))
        return beside or ("" if name in self._doubtful else self._files.get(name, ""))

    def _whole(self, dotted: str) -> str:
        path = self._files.get(dotted, "")
        return path if self._names.get(path) == dotted else ""


def passed_on(files: Mapping[str, Brought], homes: Homes) -> dict[tuple[str, str], str]:
    """What of torch's is to be had from which file by which name: its dotted name there.

    Names that a file assigns count as far as they are modules: a class or function is converted
    where it is assigned.
    """
    found: dict[tuple[str, str], str] = {}
    for path, file in files.items():
        for name, dotted in file.names.items():
            is_converted = name in file.assigned and _is_class(dotted)
            if _matters(dotted) and not is_converted:
                found[path, name] = dotted
    for _ in range(_DEEPEST):
        more = {**_again(files, homes, found), **found}
        if len(more) == len(found):
            break
        found = more
    return found


def _matters(dotted: str) -> bool:
    """Whether a name is torch itself, or what it has of a vendor's."""
    root, _, rest = dotted.partition(".")
    return root == "torch" and (not rest or rest.partition(".")[0] in _VENDORS)


def _is_class(dotted: str) -> bool:
    return dotted.rpartition(".")[2][:1].isupper()


def _again(
    files: Mapping[str, Brought], homes: Homes, found: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], str]:
    """What files pass on of what other files pass on."""
    more: dict[tuple[str, str], str] = {}
    by_file: dict[str, list[str]] = {}
    for path, name in found:
        by_file.setdefault(path, []).append(name)
    for path, file in files.items():
        for name, dotted in file.names.items():
            known = through(path, dotted, homes, found)
            if known and _matters(known.name):
                more[path, name] = known.name
        for star in file.stars:
            home = homes.file(path, star)
            for name in by_file.get(home, ()) if home else ():
                if not name.startswith("_"):
                    more[path, name] = found[home, name]
    return more


def through(
    path: str, dotted: str, homes: Homes, found: Mapping[tuple[str, str], str]
) -> Through | None:
    """What a dotted name is of torch's by way of other files; None if it is nothing of the kind."""
    name = dotted.lstrip(".")
    dots = dotted[: len(dotted) - len(name)]
    parts = name.split(".")
    if not dots and parts[0] == "torch":
        return None
    for end in range(0 if dots else 1, len(parts)):
        home = homes.file(path, dots + ".".join(parts[:end]))
        known = found.get((home, parts[end])) if home and home != path else None
        if known:
            rest = parts[end + 1 :]
            return Through(".".join([known, *rest]), home, bool(rest))
    return None
