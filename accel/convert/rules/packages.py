"""ACC100 to ACC109: third-party packages, CUDA code in a program, and names known at run time."""

from __future__ import annotations

from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules import (
    packages_compiled,
    packages_dynamic,
    packages_extensions,
    packages_imports,
)
from accel.convert.rules.packages_rules import RULES as RULES


def find(module: Module) -> Iterator[Finding]:
    """What a file takes from outside of torch, or builds itself."""
    if module.options.source != "cuda":
        return
    yield from packages_imports.find(module)
    yield from packages_compiled.find(module)
    yield from packages_extensions.find(module)
    yield from packages_dynamic.find(module)
