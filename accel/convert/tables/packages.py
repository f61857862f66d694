"""Third-party packages that are bound to CUDA, or known to run on Ascend, and what to use there."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Literal

# supported: it runs on Ascend as it is, or with a plugin. replaceable: something else does the
# same. none: nothing known; what is named is what to write it with.
Verdict = Literal["supported", "replaceable", "none"]
# Where a name means the package: anywhere, within longer names too; where no letter is before it;
# where no letter is on either side.
Within = Literal["anywhere", "begins", "alone"]

# What onnxruntime-gpu calls its ways to NVIDIA devices, and what sentences call them.
PROVIDERS = {"CUDAExecutionProvider": "CUDA", "TensorrtExecutionProvider": "TensorRT"}


@dataclass(frozen=True)
class Replacement:
    """What to install or call instead.

    Attributes:
        package: Its name.
        version: The one that was looked at; "" where any will do.
        link: Host and path, without the scheme.
    """

    package: str
    version: str
    link: str


@dataclass(frozen=True)
class Package:
    """One package, or a group that goes together.

    Attributes:
        name: What people call it.
        imports: Top modules, or dotted ones where only a part is meant.
        distributions: What installers call it.
        what: What it is, in a few words.
        verdict: `supported`, `replaceable` or `none`.
        advice: What to do, in a sentence or two.
        source: Where that is from.
        replacement: What to use, best first.
        members: Names of which one must be imported for it to be this package, where the top
            module's name is common; empty if the name is enough.
        words: Of the imports, those that must be accounted for wherever they stand, and within
            what. The others count in an import alone, as they mean other things elsewhere (`warp`,
            `kernels`), or hold a word of the platform's in any case (`pycuda`).
        only_cuda: Of the imports, those that make a block behind a test for CUDA a block for CUDA
            alone, and what sentences call them. No matter of the verdict: what does the same on
            another device has another import.
        kernels: Of the imports, those that are the name of a custom kernel, or a part of it.
    """

    name: str
    imports: tuple[str, ...]
    distributions: tuple[str, ...]
    what: str
    verdict: Verdict
    advice: str
    source: str
    replacement: tuple[Replacement, ...] = ()
    members: frozenset[str] = frozenset()
    words: tuple[tuple[str, Within], ...] = ()
    only_cuda: tuple[tuple[str, str], ...] = ()
    kernels: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What the verdict comes to, as the end of a sentence about it."""
        if self.verdict == "supported":
            return f"runs on Ascend: {self.advice}"
        return "is bound to CUDA" if self.verdict == "none" else "does not run on Ascend as it is"

    def instead(self) -> str:
        """The replacements as `package version (link)`, or "" where there is none."""
        return ", ".join(
            f"{one.package} {one.version} ({one.link})".replace("  ", " ")
            for one in self.replacement
        )


@functools.cache
def known_packages() -> tuple[Package, ...]:
    """Return the whole table."""
    text = resources.files(__package__).joinpath("packages.json").read_text("utf-8")
    return tuple(
        Package(
            name=row["name"],
            imports=tuple(row["imports"]),
            distributions=tuple(row["distributions"]),
            what=row["what"],
            verdict=row["verdict"],
            advice=row["advice"],
            source=row["source"],
            replacement=tuple(Replacement(**one) for one in row["replacement"]),
            members=frozenset(row.get("members", ())),
            words=tuple(row.get("words", {}).items()),
            only_cuda=tuple(row.get("only_cuda", {}).items()),
            kernels=tuple(row.get("kernels", ())),
        )
        for row in json.loads(text)["packages"]
    )


def imported(module: str, names: frozenset[str] | None = None) -> Package | None:
    """Return the package that an import statement is about.

    Args:
        module: As written: `apex.amp`.
        names: What a `from` statement takes from it; None for a plain import.
    """
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        package = _by_import().get(".".join(parts[:length]))
        if package is not None:
            taken = {*parts[1:], *(names or ())}
            return package if not package.members or package.members & taken else None
    for name in names or ():
        # `from numba import cuda` names a part that the table has as `numba.cuda`.
        package = _by_import().get(f"{module}.{name}")
        if package is not None:
            return package
    return None


def distribution(name: str) -> Package | None:
    """Return the package by what an installer calls it; case and `-_.` do not count."""
    return _by_distribution().get(_normal(name))


@functools.cache
def _by_import() -> dict[str, Package]:
    return {name: package for package in known_packages() for name in package.imports}


@functools.cache
def _by_distribution() -> dict[str, Package]:
    return {
        _normal(name): package for package in known_packages() for name in package.distributions
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
