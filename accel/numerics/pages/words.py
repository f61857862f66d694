"""Words, colours and anchors that all parts of the page share."""

from __future__ import annotations

import math

from accel.numerics.comparing.comparison import Accuracy, Row, Status
from accel.report.html import Tone
from accel.report.markup import number

VALUES = "value"  # the table's id; its rows are `value-<position>`
MOST_ROWS = 20_000  # of the table

_WORDS: dict[Status, str] = {
    "equal": "values equal",
    "rounding": "differ by rounding",
    "carried": "differ as their inputs do",
    "diverges": "differ by more than that",
    "unknown": "unknown",
}
_TONES: dict[Status, Tone] = {
    "equal": "good",
    "rounding": "good",
    "carried": "neutral",
    "diverges": "bad",
    "unknown": "neutral",
}


def words_of_status(status: Status) -> str:
    """What the page calls a status."""
    return _WORDS[status]


def tone_of_status(status: Status) -> Tone:
    """The colour of a status."""
    return _TONES[status]


def link_to(position: int) -> str | None:
    """The link to a row of the table; None for those that it leaves out."""
    return f"#{VALUES}-{position}" if position < MOST_ROWS else None


def worse(row: Row) -> Accuracy | None:
    """The less accurate of the two runs at a row: a faulty one, else the one with the larger M."""
    known = [one for one in (row.candidate, row.reference) if one is not None]
    return max(known, key=_badness, default=None)


def _badness(one: Accuracy) -> tuple[int, float]:
    size = -1.0 if one.worst is None else one.worst
    return one.verdict == "faulty", math.inf if math.isnan(size) else size


def is_faulty(row: Row) -> bool:
    """Whether an operator of either run replays as faulty."""
    found = worse(row)
    return found is not None and found.verdict == "faulty"


def percent(share: float | None) -> str | None:
    """A share in percent, with three digits."""
    return None if share is None else f"{number(100.0 * share)} %"
