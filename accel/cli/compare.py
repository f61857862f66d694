"""`accel compare A B`: do two recordings agree, and if not, which operator is at fault?"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel.numerics import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = (
        "Exit status: 0 the same, or rounding only; 1 a difference; 2 an unreadable recording, "
        "wrong usage or an unwritable output; 3 it cannot be decided, and the output says what to "
        "record."
    )
    parser.add_argument("reference", metavar="A", help="the recording that is believed")
    parser.add_argument("candidate", metavar="B", help="the recording that is checked")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--worst", metavar="N", type=count, default=10, help="values to list (default 10)"
    )
    parser.add_argument(
        "--step", metavar="N", type=count, help="compare only this step (default: all in common)"
    )
    parser.add_argument(
        "--scale",
        metavar="X",
        type=float,
        default=1.0,
        help="the candidate's gradients are X times the reference's: another loss scale",
    )
    parser.add_argument(
        "--no-replay", action="store_true", help="do not replay operators in float64"
    )


def count(text: str) -> int:
    """A number from 0, as an argument."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number from 0")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Compare.

    Returns:
        0 they agree, 1 they do not, 2 a recording is unreadable or an output cannot be written,
        3 it cannot be decided.
    """
    from accel import report

    outputs = [path for path in (arguments.html, arguments.json) if path is not None]
    try:
        for path in outputs:
            report.check_writable(path)
        found = _compared(arguments)
    except (ValueError, OSError) as error:
        print(f"accel compare: {error}", file=sys.stderr)
        return 2
    said = found.to_text(worst=arguments.worst)
    if arguments.html is not None:
        said += f"\n\nreport: {arguments.html}"
    say(said)
    return found.exit_status


def _compared(arguments: argparse.Namespace) -> Comparison:
    from accel import numerics, report

    found = numerics.compare(
        arguments.reference,
        arguments.candidate,
        scale=arguments.scale,
        replay=not arguments.no_replay,
        step=arguments.step,
    )
    if arguments.json is not None:
        report.write_atomically(arguments.json, found.to_json())
    if arguments.html is not None:
        report.write_atomically(arguments.html, found.to_html())
    return found


def say(text: str) -> None:
    """Print a text to a reader that may have left: `accel compare A B | head` is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left in the buffer must not be tried again as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
