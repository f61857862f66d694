"""`accel replay RUN`: is every operator of one recording what float64 makes of its inputs?"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from accel.cli.compare import count, say

if TYPE_CHECKING:
    from accel.numerics import Replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = (
        "Exit status: 0 every operator that was checked is right; 1 one is not; 2 an unreadable "
        "recording, wrong usage or an unwritable output; 3 nothing could be checked: record at "
        "level full or check."
    )
    parser.add_argument("recording", metavar="RUN", help="a recording at level full or check")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--worst", metavar="N", type=count, default=10, help="operators to list (default 10)"
    )
    parser.add_argument("--step", metavar="N", type=count, help="replay only this step")
    parser.add_argument(
        "--chained", action="store_true", help="also compute the whole step in float64"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay.

    Returns:
        0 all right, 1 an operator is not, 2 unreadable or unwritable, 3 nothing was checked.
    """
    from accel import report

    outputs = [path for path in (arguments.html, arguments.json) if path is not None]
    try:
        for path in outputs:
            report.check_writable(path)
        found = _replayed(arguments)
    except (ValueError, OSError) as error:
        print(f"accel replay: {error}", file=sys.stderr)
        return 2
    said = as_text(found, arguments.worst)
    if arguments.html is not None:
        said += f"\n\nreport: {arguments.html}"
    say(said)
    if found.out:
        return 1
    return 0 if found.ok else 3


def _replayed(arguments: argparse.Namespace) -> Replay:
    import json

    from accel import numerics, report

    found = numerics.replay(
        arguments.recording,
        steps=None if arguments.step is None else [arguments.step],
        chained=arguments.chained,
        progress=True,
    )
    if arguments.json is not None:
        report.write_atomically(arguments.json, json.dumps(found.to_dict(), indent=1) + "\n")
    if arguments.html is not None:
        from accel.numerics.pages.replayed import replay_to_html

        report.write_atomically(arguments.html, replay_to_html(found))
    return found


def as_text(found: Replay, worst: int) -> str:
    """A replay for a terminal.

    Args:
        found: What the replay found.
        worst: How many of the operators nearest to their limits or beyond them to list.
    """
    from accel.report import text

    order = {"out": 0, "known": 1, "within": 2, "exact": 3, "unchecked": 4}
    ranked = sorted(found.operators, key=lambda o: (order[o.judged.verdict], -o.judged.M))
    rows = [
        (o.judged.verdict, str(o.key), o.judged.dtype, o.judged.R, o.judged.M, o.judged.reason)
        for o in ranked[:worst]
        if o.judged.verdict not in ("exact", "unchecked")
    ]
    lines = [found.sentence]
    if rows:
        lines += ["", text.table(("verdict", "operator", "dtype", "R", "M", "why"), rows)]
    kinds = [
        (kind, sum(counts.values()) - counts["unchecked"], counts["unchecked"], counts["out"])
        for kind, counts in sorted(found.counts_by_kind.items())
    ]
    if kinds:
        lines += ["", text.table(("kind", "checked", "not checked", "out"), kinds)]
    return "\n".join(lines)
