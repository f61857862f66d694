"""Which line of the user's program asked for an operator."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import torch

from accel.numerics.storage.entries import Place

_LIBRARIES: Final = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[2])
)
_is_users: dict[CodeType, bool] = {}


def current_place() -> Place | None:
    """The innermost line that is in neither torch nor accel; None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        users = _is_users.get(code)
        if users is None:
            users = _is_users[code] = is_users(code.co_filename)
        if users:
            return Place(shown(code.co_filename), frame.f_lineno, code.co_name)
        frame = frame.f_back
    return None


def is_users(path: str) -> bool:
    """Whether a source file belongs to neither torch nor accel."""
    return not path.startswith(_LIBRARIES) and not path.startswith("<")


@functools.cache
def shown(path: str) -> str:
    """Relative to the working directory, or the last two parts: no machine's own paths."""
    absolute, here = os.path.abspath(path), os.getcwd() + os.sep
    if absolute.startswith(here):
        return absolute[len(here) :]
    return os.sep.join(absolute.split(os.sep)[-2:])
