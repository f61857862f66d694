"""`accel compare A B`: do two recordings agree, and if not, which module diverges first?"""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("reference", metavar="A", help="the recording that is believed")
    parser.add_argument("candidate", metavar="B", help="the recording that is checked")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--budget",
        metavar="RMS",
        type=float,
        help="largest relative rms distance of B from A, for recordings without float64 references",
    )
    parser.add_argument(
        "--worst", metavar="N", type=int, default=10, help="tensors to list (default 10)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare.

    Returns:
        0 they agree, 1 they do not, 2 a recording is unreadable or an output cannot be written.
    """
    from accel import report

    outputs = [path for path in (arguments.html, arguments.json) if path is not None]
    try:
        for path in outputs:
            report.check_writable(path)
        return _compared(arguments)
    except (ValueError, OSError) as error:
        print(f"accel compare: {error}", file=sys.stderr)
        return 2


def _compared(arguments: argparse.Namespace) -> int:
    from accel import numerics, report
    from accel_kernels.budgets import Budget

    # A tensor's largest error is allowed to be as far above its rms as in the derived budgets.
    budget = None if arguments.budget is None else Budget(arguments.budget, 4 * arguments.budget)
    found = numerics.compare(arguments.reference, arguments.candidate, budget=budget)
    print(found.to_text(worst=max(0, arguments.worst)))
    if arguments.json is not None:
        report.write_atomically(arguments.json, found.to_json())
    if arguments.html is not None:
        report.write_atomically(arguments.html, found.to_html())
        print(f"\nreport: {arguments.html}")
    return 0 if found.ok else 1
