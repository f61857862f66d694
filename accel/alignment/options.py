"""Checking options that are words and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_choice(name: str, given: object, allowed: Sequence[str]) -> None:
    """Refuse what is none of the allowed words.

    Raises:
        ValueError: It is none.
    """
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {given!r}")


def check_not_negative(name: str, given: float) -> None:
    """Refuse a number that is negative or not finite.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not finite.
    """
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name} must be a number, not {given!r}")
    if not 0.0 <= given < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, not {given}")


def check_direction(kind: str, direction: str) -> None:
    """Refuse a direction where there is none.

    Raises:
        ValueError: The loss is the sigmoid one, and the direction is not `both`.
    """
    if kind == "sigmoid" and direction != "both":
        raise ValueError(
            f"the sigmoid loss has no direction, so direction={direction!r} would do nothing; "
            "leave it out"
        )
