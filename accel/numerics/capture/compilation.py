"""torch.compile during a recorded step: switched off, and said.

A dispatch mode sees operators, and compiled code has none. Under a mode, torch would trace the
recorder into the program; instead, compiled functions run as they are written, in recorded steps
only.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from accel.numerics.storage.entries import Skipped


class Uncompiled:
    """Runs compiled functions as they are written, from `begin` to `end`."""

    def __init__(self) -> None:
        self._stance: Any = None

    def begin(self) -> Skipped | None:
        """Switch compilation off; what to write down about it, or None where there is none."""
        if self._stance is not None or not _is_anything_compiled():
            return None
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        return Skipped(
            "torch.compile",
            "functions that the program compiles ran uncompiled in this step: their compiled code "
            "is not what was recorded",
        )

    def end(self) -> None:
        """Switch it on again."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None


def _is_anything_compiled() -> bool:
    """Whether `torch.compile` was called in this process, as far as torch tells."""
    frames = sys.modules.get("torch._dynamo.eval_frame")  # optimizers alone import it too
    if frames is None:
        return False
    backends = getattr(frames, "cached_backends", {0: True})  # not public: if unknown, take care
    return any(backend is not None for backend in backends.values())
