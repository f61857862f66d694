"""What is said of one word that no other rule spoke of."""

from __future__ import annotations

from typing import NamedTuple

OWN_NAME = "ACC141"
OWN_ATTRIBUTE = "ACC142"
OPTION = "ACC143"
DOCSTRING = "ACC144"
TEXT = "ACC145"
KEY = "ACC146"
PATH = "ACC147"
MODULE = "ACC148"
UNKNOWN = "ACC149"


class Verdict(NamedTuple):
    """A rule, and why; with advice it is for a human."""

    rule: str
    message: str
    advice: str = ""


def unknown(message: str, advice: str) -> Verdict:
    """What nothing proves."""
    return Verdict(UNKNOWN, message, advice)
