"""The program's lines that an exported program remembers."""

from __future__ import annotations

import re

import torch

from accel.numerics.capture.places import is_users, shown
from accel.numerics.storage.entries import Place

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<function>\S+)')


def place_of(node: torch.fx.Node) -> Place | None:
    """The innermost line that is in neither torch nor accel; None if there is none."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    for frame in reversed(frames):
        if is_users(frame["file"]):
            return Place(shown(frame["file"]), int(frame["line"]), frame["function"])
    return None
