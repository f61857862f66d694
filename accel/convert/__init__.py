"""The source converter: CUDA-bound PyTorch code becomes code for any device. Standard library only.

`convert_source` takes one file, `convert_tree` a tree; `accel convert` is the command. Every place
that a file says something of CUDA's is a `Finding`: converted, kept for a reason, or flagged for a
human. An independent pass over the tokens checks that none is left out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.convert.engine import convert_source as convert_source
    from accel.convert.finding import Edit as Edit
    from accel.convert.finding import Entry as Entry
    from accel.convert.finding import FileResult as FileResult
    from accel.convert.finding import Finding as Finding
    from accel.convert.finding import Span as Span
    from accel.convert.finding import TreeResult as TreeResult
    from accel.convert.options import Options as Options
    from accel.convert.rule import Rule as Rule
    from accel.convert.rules import RULES as RULES
    from accel.convert.tree import convert_tree as convert_tree

_HOMES = {
    "Edit": "finding",
    "Entry": "finding",
    "FileResult": "finding",
    "Finding": "finding",
    "Options": "options",
    "RULES": "rules",
    "Rule": "rule",
    "Span": "finding",
    "TreeResult": "finding",
    "convert_source": "engine",
    "convert_tree": "tree",
}

__all__ = [
    "RULES",
    "Edit",
    "Entry",
    "FileResult",
    "Finding",
    "Options",
    "Rule",
    "Span",
    "TreeResult",
    "convert_source",
    "convert_tree",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'accel.convert' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"accel.convert.{home}"), name)
    globals()[name] = value  # the next access is a plain attribute look-up
    return value


def __dir__() -> list[str]:
    return list(__all__)
