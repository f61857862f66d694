"""A replay as one self-contained HTML page."""

from __future__ import annotations

from accel.numerics.pages import replay_sections as sections
from accel.numerics.pages.page import assembled
from accel.numerics.pages.replay_entries import entries_of
from accel.numerics.replaying.walk import Replay
from accel.report import html


def replay_to_html(replay: Replay) -> str:
    """The page: the outcome, errors against depth, every operator, and what was not checked.

    Source lines, arguments and the elements of operators out of their limits are read from the
    recording that was replayed; where it is no longer there the page says so.

    Args:
        replay: What `replay` found.

    Returns:
        The HTML document, which loads nothing.
    """
    entries, notes = entries_of(replay)
    top = [sections.headline(replay, entries), sections.figures(replay)]
    parts = [
        *sections.flagged(entries),
        sections.depth(entries),
        sections.strip(entries),
        sections.operators(entries),
        sections.coverage(replay),
        *([html.section("Notes", html.listing(notes), anchor="notes")] if notes else []),
    ]
    where = sorted({(step.rank, step.index) for step in replay.steps})
    said = ", ".join(f"rank {rank} step {step}" for rank, step in where[:8])
    more = f" and {len(where) - 8} more" if len(where) > 8 else ""
    return assembled("Replay of a recording", f"{replay.path}, {said}{more}", top, parts)
