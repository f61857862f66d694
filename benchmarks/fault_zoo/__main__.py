"""Runs the zoo: `python benchmarks/fault_zoo`.

Every case is judged by every rule; results/fault_zoo.json has all of it, docs/fault-zoo.md the
tables. `--page` only puts the tables into the page. `--resume FILE` notes finished cases in a file
and takes from it what an earlier run had finished. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# Each process computes on one core; as torch asks, set before it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "kernels")]


def show(document: dict[str, Any]) -> None:
    """Print what each rule found."""
    from benchmarks.fault_zoo import summary

    for rule in summary.RULE_NAMES:
        for group in summary.GROUPS:
            print(f"{rule:32} {group:8} {summary.tally(document, rule, group)}")


def measure(kept: Path | None) -> None:
    """Run everything and write the results."""
    import environment

    from benchmarks.fault_zoo import running
    from benchmarks.fault_zoo.packing import packed

    begun, resumed = time.perf_counter(), len(running.finished(kept))
    result = packed(running.run(kept))
    result["processes"] = running.PROCESSES
    result["items_from_an_earlier_run"] = resumed
    result["seconds"] = round(time.perf_counter() - begun, 1)
    print(f"written: {environment.write('fault_zoo', result)}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="fault_zoo", description=__doc__)
    parser.add_argument("--page", action="store_true", help="only write the page's tables")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="where to note finished cases")
    given = parser.parse_args()
    if not given.page:
        measure(given.resume)

    from benchmarks.fault_zoo import page

    document = page.load()
    show(document)
    page.PAGE.write_text(page.written(page.PAGE.read_text(), document))
    print(f"written: {page.PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
