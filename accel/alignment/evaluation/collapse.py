"""When a reading of embeddings counts as collapse: rules, limits and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel.alignment.evaluation.health import ModalityHealth

_ADVICE = {
    "spread": "the loss needs negatives (accel.alignment.contrastive_loss), or less weight on the "
    "term that pulls everything together",
    "rank": "add negatives or a larger batch, lower the learning rate, and check that the "
    "encoder's inputs differ",
    "stuck": "raise the learning rate, check the temperature, or start from weights that are not "
    "collapsed",
    "finite": "look for the first step whose loss or gradients are not finite, and for inputs that "
    "are all zero",
}
_LEAST_RANK = 4  # possible effective rank from which a low one says something


class CollapseError(RuntimeError):
    """Embeddings have collapsed, and the monitor was asked to stop the run."""


@dataclass(frozen=True)
class CollapseLimits:
    """When a reading counts as collapse; docs/alignment-evaluation.md gives the reasons.

    Attributes:
        spread: Largest spread (1 - mean cosine) that can be a collapse.
        rank: Largest effective rank that can be one; 0 turns this rule off, as for two classes
            whose members are all positives of one another.
        fall: Below what share of its peak the spread, or the rank, must have fallen as well.
        apart: Two modalities are one place if 1 minus the cosine of their mean directions is below
            this times the larger one's spread.
        stuck_spread: Spread below which a model has not left the cone that it started in.
        stuck_steps: After how many steps it should have; 0 turns this rule off.
        patience: How many readings in a row must agree.

    Raises:
        ValueError: A limit is negative, `fall` is not below 1, or `patience` below 1.
    """

    spread: float = 0.05
    rank: float = 2.0
    fall: float = 0.25
    apart: float = 0.5
    stuck_spread: float = 1e-3
    stuck_steps: int = 1000
    patience: int = 3

    def __post_init__(self) -> None:
        """Check them."""
        limits = (
            self.spread, self.rank, self.fall, self.apart, self.stuck_spread, self.stuck_steps
        )  # fmt: skip
        if not all(limit >= 0 for limit in limits) or not self.fall < 1 or self.patience < 1:
            raise ValueError(
                f"limits must be at least 0, fall below 1 and patience at least 1, got {self}"
            )


@dataclass(frozen=True)
class Collapse:
    """One finding; its text is the warning.

    Attributes:
        step: When it was found.
        modality: Whose embeddings.
        rule: `spread`, `rank`, `stuck` or `finite`.
        value: What was measured: spread, effective rank, spread, or rows without a direction.
        limit: What it is below; for `finite`, above.
        peak: The largest value before; NaN where it plays no part.
    """

    step: int
    modality: str
    rule: str
    value: float
    limit: float
    peak: float

    def __str__(self) -> str:
        """The warning: modality, measure, value, limit, what to do."""
        if self.rule == "finite":
            said = f"have {self.value:.0f} rows without a direction (zero, NaN or infinite)"
        elif self.rule == "rank":
            said = (
                f"are collapsing onto a line: effective rank {self.value:.2f}, below the limit "
                f"{self.limit:.2f}, at its highest {self.peak:.1f}"
            )
        else:
            said = (
                f"{'are still' if self.rule == 'stuck' else 'are collapsing to'} one point, "
                f"whatever the loss says: mean cosine {1 - self.value:.4f}, spread "
                f"{self.value:.1e}, below the limit {self.limit:.1e}"
            )
            if self.rule == "spread":
                said += f", at its widest {self.peak:.1e}"
        return f"step {self.step}: embeddings of {self.modality!r} {said}; {_ADVICE[self.rule]}"


class CollapseRules:
    """Judges readings one after another, each against the best that its modality has been.

    Args:
        limits: When a reading counts as collapse.
    """

    def __init__(self, limits: CollapseLimits) -> None:
        self.limits = limits
        self._peaks: dict[str, dict[str, float]] = {}
        self._agreeing: dict[str, dict[str, int]] = {}

    def judge(
        self,
        step: int,
        modality: str,
        health: ModalityHealth,
        *,
        depth: int,
        invalid: int,
        apart: float,
    ) -> Collapse | None:
        """Judge one reading.

        Args:
            step: When it was taken.
            modality: Whose it is.
            health: Of the rows that have a direction.
            depth: Of the embeddings.
            invalid: How many rows have no direction.
            apart: How far the nearest other modality is, in its spread (`CollapseLimits.apart`);
                NaN if there is no other.

        Returns:
            What holds from this reading on; None if nothing does, or did before.
        """
        limits, peaks = self.limits, self._peaks.setdefault(modality, {})
        spread, rank = 1.0 - health.mean_cosine, health.effective_rank
        for name, value in (("spread", spread), ("rank", rank)):
            if not math.isnan(value):
                peaks[name] = max(value, peaks.get(name, 0.0))
        wide, high = peaks.get("spread", 0.0), peaks.get("rank", 0.0)
        can_rank = min(health.rows - 1, depth) >= _LEAST_RANK
        # Modalities that keep apart obey a loss that compares: see docs/alignment-evaluation.md.
        is_apart = apart >= limits.apart
        candidates = [
            ("finite", float(invalid), 0.0, math.nan, invalid > 0),
            self._fallen("spread", spread, 0.0 if is_apart else limits.spread, wide),
            ("stuck", spread, limits.stuck_spread, math.nan,
             0 < limits.stuck_steps <= step and spread < limits.stuck_spread),
            self._fallen("rank", rank, limits.rank if can_rank else 0.0, high),
        ]  # fmt: skip
        return self._first(step, modality, candidates)

    def state_dict(self) -> dict[str, Any]:
        """Peaks and counts, as plain values."""
        return {
            "peaks": {name: dict(of) for name, of in self._peaks.items()},
            "agreeing": {name: dict(of) for name, of in self._agreeing.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._peaks = {str(name): dict(of) for name, of in state["peaks"].items()}
        self._agreeing = {str(name): dict(of) for name, of in state["agreeing"].items()}

    def _fallen(
        self, rule: str, value: float, limit: float, peak: float
    ) -> tuple[str, float, float, float, bool]:
        limit = min(limit, self.limits.fall * peak)
        return rule, value, limit, peak, value < limit

    def _first(
        self, step: int, modality: str, candidates: list[tuple[str, float, float, float, bool]]
    ) -> Collapse | None:
        """The first rule that now holds; while one does, those after it say nothing."""
        counts = self._agreeing.setdefault(modality, {})
        found: Collapse | None = None
        is_said = False
        for rule, value, limit, peak, agrees in candidates:
            counts[rule] = counts.get(rule, 0) + 1 if agrees else 0
            needed = 1 if rule == "finite" else self.limits.patience
            if not is_said and counts[rule] == needed:
                found = Collapse(step, modality, rule, value, limit, peak)
            is_said = is_said or counts[rule] >= needed
        return found
