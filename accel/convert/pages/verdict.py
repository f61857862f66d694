"""Whether a program can be moved, and why, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from accel.convert.pages.words import count, percent

if TYPE_CHECKING:
    from accel.convert.pages.summary import Summary

Verdict = Literal["go", "go with work", "no-go"]
_NAMED = 4  # blockers, or places, that the verdict names


def decide(summary: Summary) -> tuple[Verdict, str]:
    """The verdict of a run and its sentence."""
    if summary.blockers or summary.conflicts:
        return "no-go", f"until {', and '.join(_hindrances(summary))}"
    work = list(_open_work(summary))
    if work:
        return "go with work", "; ".join(work)
    converted = summary.actions["convert"]
    if not converted:
        return "go", "nothing here is bound to a device"
    whole = count(converted, "site")
    said = f"the tool converts {'the' if converted == 1 else 'all'} {whole}"
    return "go", "; ".join([said, *_to_review(summary)])


def _hindrances(summary: Summary) -> Iterator[str]:
    blockers, conflicts = summary.blockers, summary.conflicts
    if blockers:
        named = [f"{one.subject} ({count(len(one.places), 'place')})" for one in blockers[:_NAMED]]
        more = len(blockers) - len(named)
        said = ", ".join(named) + (f" and {more} more" if more > 0 else "")
        verb = "is" if len(blockers) == 1 else "are"
        yield f"{count(len(blockers), 'blocker')} {verb} resolved: {said}"
    if conflicts:
        one, many = "conflict with this library's name", "conflicts with this library's name"
        verb = "is" if len(conflicts) == 1 else "are"
        yield f"{count(len(conflicts), one, many)} {verb} resolved"


def _open_work(summary: Summary) -> Iterator[str]:
    if summary.vendors:
        *others, last = summary.vendors
        named = f"{', '.join(others)} and {last}" if others else last
        option = " or ".join(f"--from {one}" for one in summary.vendors)
        yield f"there is code that is bound to {named}: run again with {option}"
    converted, flagged, off = (
        summary.actions["convert"], summary.actions["flag"], summary.switched_off,
    )  # fmt: skip
    if flagged or off:
        parts = [
            f"{converted:,} of {count(summary.sites, 'site')} "
            f"({percent(converted, summary.sites)}) convert by themselves"
        ]
        if off:
            parts.append(f"{off:,} {_be(off)} switched off in this run")
        if flagged:
            parts.append(f"{flagged:,} {_be(flagged)} for a human")
        yield ", ".join(parts)
    if summary.unread:
        yield f"{count(len(summary.unread), 'file')} could not be read or parsed"
    if summary.missing:
        missing = count(len(summary.missing), "token")
        yield f"{missing} nobody accounted for, so this report is incomplete"


def _to_review(summary: Summary) -> Iterator[str]:
    """What is converted and yet needs a look, such as a call that raises on a CPU."""
    lines = list(dict.fromkeys(f"{path}:{one.line}" for path, one in summary.reviews))
    if lines:
        more = len(lines) - _NAMED
        said = ", ".join(lines[:_NAMED]) + (f" and {more:,} more lines" if more > 0 else "")
        number = len(summary.reviews)
        verb = "needs" if number == 1 else "need"
        yield f"{number:,} of them {verb} a look (class review): {said}"


def _be(number: int) -> str:
    return "is" if number == 1 else "are"
