"""The program's lines that an exported program remembers."""

from __future__ import annotations

import os
import re

import torch

import accel
from accel.numerics.storage.entries import Place

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<function>\S+)')
_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep for module in (torch, accel)
)


def place_of(node: torch.fx.Node) -> Place | None:
    """The innermost line that is in neither torch nor accel; None if there is none."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    for frame in reversed(frames):
        path = frame["file"]
        if not path.startswith(_LIBRARIES) and not path.startswith("<"):
            return Place(_shown(path), int(frame["line"]), frame["function"])
    return None


def _shown(path: str) -> str:
    """Relative to the working directory, or the last two parts: no machine's own paths."""
    absolute, here = os.path.abspath(path), os.getcwd() + os.sep
    if absolute.startswith(here):
        return absolute[len(here) :]
    return os.sep.join(absolute.split(os.sep)[-2:])
