"""`accel doctor`: what is on this machine, what is wrong, and the command that mends it."""

from __future__ import annotations

import argparse
import json
import os
import sys

from accel.doctor import DEFAULT_TIMEOUT, diagnose, render
from accel.doctor.autocast import render_autocast, survey_autocast


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to 86400")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `accel doctor`."""
    parser.description = (
        "What is on this machine, what is wrong, and the command that mends it. Exit status: 0 "
        "where everything that was found can be used, 1 otherwise, 2 for wrong usage."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument(
        "--autocast",
        action="store_true",
        help="instead, call every operator under this machine's own autocast, and list those that "
        "compute in another dtype than by Accel's table",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="time limit of each probe (default: %(default)g)",
    )


def _show_progress(probe: str) -> None:
    sys.stderr.write(f"\r\x1b[Kaccel doctor: {ascii(probe)[1:-1]} ...")
    sys.stderr.flush()


def _clear_progress() -> None:
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()


def _print(text: str) -> None:
    """Write to stdout, replacing what its encoding cannot express."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def run(arguments: argparse.Namespace) -> int:
    """Print the report.

    Args:
        arguments: Of `add_arguments`.

    Returns:
        0 where everything that was found can be used, else 1; 2 if the report cannot be written;
        130 if interrupted.
    """
    watched = sys.stderr.isatty()
    try:
        text, status = _answer(arguments, watched)
    except KeyboardInterrupt:
        print("\naccel doctor: interrupted", file=sys.stderr)
        return 130
    if watched:
        _clear_progress()
    try:
        _print(text)
    except OSError as error:
        print(f"accel doctor: cannot write the report: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 2
    return status


def _answer(arguments: argparse.Namespace, watched: bool) -> tuple[str, int]:
    """The text to print, and the exit status."""
    progress = _show_progress if watched else lambda name: None
    if arguments.autocast:
        progress("autocast")
        measured = survey_autocast(timeout=arguments.timeout)
        found, status = measured.to_json(), measured.status
        text = "" if arguments.json else render_autocast(measured)
    else:
        report = diagnose(timeout=arguments.timeout, progress=progress)
        found, status = report.to_json(), report.status
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        text = "" if arguments.json else render(report, colour)
    return json.dumps(found, indent=2) + "\n" if arguments.json else text, status
