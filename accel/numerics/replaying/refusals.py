"""Why an operator cannot be replayed."""

from __future__ import annotations


class CannotReplayError(Exception):
    """An operator has no float64 replay here; the message says why, in a phrase."""
