"""The command that records the flagged window of a run with all elements."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence

from accel.numerics.comparing.comparison import Row
from accel.numerics.overrides import steps_text
from accel.numerics.storage.entries import OUTSIDE, Key
from accel.numerics.storage.manifest import Manifest

_MOST_PATTERNS = 4


def window(rows: Iterable[Row]) -> tuple[str, ...]:
    """Patterns for `--only` that take in everything near the rows that diverge.

    Args:
        rows: Those that diverge, in order; the first few count.
    """
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(_patterns(row)))
        if len(found) >= _MOST_PATTERNS:
            break
    return tuple(found)


def _patterns(row: Row) -> tuple[str, ...]:
    if row.key is not None:
        return (pattern_of(row.key),)
    if row.phase == "optimizer":
        return ("optimizer:*",)
    return (row.module, f"{row.module}.*") if row.module else (f"{row.phase}:*",)


def pattern_of(key: Key) -> str:
    """A pattern for the module call, or the phase outside of modules, that an operator is in."""
    if key.module in ("", OUTSIDE) or key.phase in ("optimizer", "collective"):
        return f"{key.phase}:{key.module}*" if key.module else f"{key.phase}:/*"
    return key.module


def command(
    path: str | os.PathLike[str], manifest: Manifest, step: int, only: Sequence[str]
) -> str:
    """A command line that records one step of the run again, the window in full.

    Args:
        path: The recording; the new one lies beside it.
        manifest: Its manifest, which knows the program's arguments.
        step: Which step.
        only: The window.
    """
    out = f"{os.fspath(path).rstrip('/')}-zoom"
    parts = ["accel", "record", "--level", "full"]
    for pattern in only:
        parts += ["--only", pattern]
    parts += ["--steps", steps_text([step]), "--out", out, "--"]
    return shlex.join([*parts, *program(manifest)])


def program(manifest: Manifest) -> list[str]:
    """How the recorded program was started, as far as its arguments tell."""
    script, *rest = manifest.arguments or ("YOUR_PROGRAM",)
    if not script or script.startswith("-"):  # an interactive session, `python -c`
        return ["YOUR_PROGRAM", *rest]
    if manifest.world > 1:
        return ["torchrun", f"--nproc-per-node={manifest.world}", script, *rest]
    return ["python", script, *rest] if script.endswith(".py") else [script, *rest]
