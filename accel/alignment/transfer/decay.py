"""How slowly a teacher follows its student, over the course of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Decay = float | Callable[[int], float]
"""The share of the average that is kept in an update, or that of the update of each number."""


@dataclass(frozen=True)
class CosineDecay:
    """From one decay to another along half a cosine (BYOL, arXiv 2006.07733).

    Attributes:
        start: At the first update.
        end: From update `steps` on.
        steps: How many updates the way takes.

    Raises:
        ValueError: A decay is not within 0 and 1, or `steps` is not positive.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_decay("start", self.start)
        check_decay("end", self.end)
        if self.steps < 1:
            raise ValueError(f"steps must be positive, not {self.steps}")

    def __call__(self, updates: int) -> float:
        """The decay after so many updates."""
        way = min(max(updates / self.steps, 0.0), 1.0)
        return self.end - (self.end - self.start) * (math.cos(math.pi * way) + 1.0) / 2.0


def check_decay(name: str, decay: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: It is not within 0 and 1.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"{name} must be within 0 and 1, not {decay}")


def decay_at(decay: Decay, warm_up: float, updates: int) -> float:
    """The decay of an update: no more than `(1 + t) / (warm_up + t)` after t updates.

    Raises:
        ValueError: The schedule gives what is no share.
    """
    planned = decay(updates) if callable(decay) else decay
    check_decay(f"the decay of update {updates}", planned)
    return min(planned, (1.0 + updates) / (warm_up + updates))
