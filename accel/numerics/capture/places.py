"""Which line of the user's program asked for an operator."""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import Final

import torch

import accel
from accel.numerics.storage.entries import Place

_LIBRARIES: Final = tuple(
    os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep for module in (torch, accel)
)
_is_users: dict[CodeType, bool] = {}
_files: dict[str, str] = {}


def current_place() -> Place | None:
    """The innermost line that is in neither torch nor accel; None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        users = _is_users.get(code)
        if users is None:
            path = code.co_filename
            users = not path.startswith(_LIBRARIES) and not path.startswith("<")
            _is_users[code] = users
        if users:
            return Place(_shown(code.co_filename), frame.f_lineno, code.co_name)
        frame = frame.f_back
    return None


def _shown(path: str) -> str:
    """Relative to the working directory, or the last two parts: no machine's own paths."""
    known = _files.get(path)
    if known is None:
        absolute, here = os.path.abspath(path), os.getcwd() + os.sep
        parts = absolute.split(os.sep)
        known = absolute[len(here) :] if absolute.startswith(here) else os.sep.join(parts[-2:])
        _files[path] = known
    return known
