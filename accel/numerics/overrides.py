"""`ACCEL_RECORD`: what `accel record` asks of a program that calls `accel.numerics.record`.

The variable holds a JSON object with any of `path`, `level`, `only` and `steps`; each overrides the
argument of that name, so that a window of a run is recorded in full without changing the program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["sketch", "full", "check"]
VARIABLE = "ACCEL_RECORD"
_LEVELS: tuple[Level, ...] = ("sketch", "full", "check")
_EXAMPLE = '{"level": "full", "only": ["blocks.1.*"], "steps": [0], "path": "run-b-zoom"}'
_MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Overrides:
    """What is to be recorded instead of what the program says; None leaves it the choice.

    Attributes:
        path: The directory.
        level: `sketch`, `full` or `check`.
        only: Patterns of operators that are kept in full.
        steps: Which steps.
    """

    path: str | None = None
    level: Level | None = None
    only: tuple[str, ...] | None = None
    steps: tuple[int, ...] | None = None

    def to_text(self) -> str:
        """The variable's value."""
        fields = {
            "path": self.path,
            "level": self.level,
            "only": None if self.only is None else list(self.only),
            "steps": None if self.steps is None else list(self.steps),
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True)
class Chosen:
    """The arguments of `record` after the variable had its say."""

    path: str
    level: Level
    only: Sequence[str] | None
    steps: frozenset[int] | None


def parse_overrides(text: str) -> Overrides:
    """Read the variable's value.

    Raises:
        ValueError: It is no JSON object of the four fields.
    """
    try:
        fields = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _wrong(f"it is no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _wrong(f"it holds a {type(fields).__name__} and not an object")
    unknown = sorted(set(fields) - {"path", "level", "only", "steps"})
    if unknown:
        raise _wrong(f"it has the unknown field {unknown[0]!r:.40}")
    return Overrides(_path(fields), _level(fields), _only(fields), _steps(fields))


def overridden(
    *,
    path: str,
    level: Level,
    only: Sequence[str] | None,
    steps: Collection[int] | None,
    environment: Mapping[str, str] = os.environ,
) -> Chosen:
    """What to record: the arguments of `record`, but for those that the variable overrides.

    Args:
        path: The program's.
        level: The program's.
        only: The program's; left out where the variable changes the level, since it belongs to the
            program's own.
        steps: The program's.
        environment: Where the variable is looked up.

    Raises:
        ValueError: The variable holds something else than the four fields.
    """
    text = environment.get(VARIABLE, "")
    asked = parse_overrides(text) if text else Overrides()
    if asked.only is not None or asked.level not in (None, level):
        patterns: Sequence[str] | None = asked.only
    else:
        patterns = only
    chosen_steps = steps if asked.steps is None else asked.steps
    return Chosen(
        path=path if asked.path is None else asked.path,
        level=level if asked.level is None else asked.level,
        only=patterns if patterns is None or isinstance(patterns, str) else tuple(patterns),
        steps=None if chosen_steps is None else frozenset(chosen_steps),
    )


def parse_steps(text: str) -> tuple[int, ...]:
    """Steps as a command line has them: `0,200,400-402`.

    Raises:
        ValueError: It is something else.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"steps are written as 0,200,400-402, got {text!r:.60}")
        begin, end = int(first), int(last) if dash else int(first)
        if end < begin or end - begin >= _MOST_STEPS:
            raise ValueError(f"{part.strip()!r:.40} is no range of at most {_MOST_STEPS} steps")
        found.update(range(begin, end + 1))
    return tuple(sorted(found))


def steps_text(steps: Iterable[int]) -> str:
    """Steps as `parse_steps` reads them."""
    return ",".join(map(str, sorted(steps)))


def _wrong(reason: str) -> ValueError:
    return ValueError(
        f"the environment variable {VARIABLE} is wrong: {reason}; unset it, or write it as "
        f"`accel record` does: {_EXAMPLE}"
    )


def _path(fields: Mapping[str, object]) -> str | None:
    path = fields.get("path")
    if path is None or (isinstance(path, str) and path and "\0" not in path):
        return path
    raise _wrong(f"its path must be the name of a directory, got {path!r:.60}")


def _level(fields: Mapping[str, object]) -> Level | None:
    level = fields.get("level")
    for known in (None, *_LEVELS):
        if level == known:
            return known
    raise _wrong(f"its level must be one of {', '.join(_LEVELS)}, got {level!r:.40}")


def _only(fields: Mapping[str, object]) -> tuple[str, ...] | None:
    only = fields.get("only")
    if only is None:
        return None
    if isinstance(only, list) and all(isinstance(pattern, str) for pattern in only):
        return tuple(only)
    raise _wrong(f"its only must be a list of patterns, got {only!r:.60}")


def _steps(fields: Mapping[str, object]) -> tuple[int, ...] | None:
    steps = fields.get("steps")
    if steps is None:
        return None
    if isinstance(steps, list) and all(type(step) is int and step >= 0 for step in steps):
        return tuple(steps)
    raise _wrong(f"its steps must be a list of numbers from 0, got {steps!r:.60}")
