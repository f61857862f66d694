"""Parts of sentences that messages of several rules have."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int, what: str = "") -> str:
    """The first of some names, and how many more of what there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more{what}" if more > 0 else "")
