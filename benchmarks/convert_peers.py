"""The converter beside GPU2Ascend (msfmktransplt of Ascend-mstt), on the same files.

The peer runs as its users run it, on a copy of each checkout. Both outputs are compared with the
input line by line: how many CUDA words of code are gone. Against the converter's ledger a word that
is gone from the peer's output is

- converted, where ours converts too;
- wrong, where ours keeps the word with a reason: an option's name, a path, a choice of a kernel.
  The result lists these lines, so that a reader can judge;
- converted without need of a human, where ours flags.

A word that ours converts and that is still there is missed. Whether output runs on CUDA and CPUs
afterwards is not counted: the peer's imports torch_npu, so it does not.

The peer's own output depends on nothing of ours: with `--work DIR` it is kept there, with the time
it took, and used again.

Needs a checkout of Ascend-mstt and an interpreter with libcst, jedi, pandas and prettytable:
    convert_peers.py --tool msfmktransplt/src/ms_fmk_transplt --python PATH CHECKOUT...
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import environment

from accel.convert import tokens
from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.project import Project, index
from accel.convert.source import Source

RELEASE = "2.8.0"  # the newest torch that the tool knows


def run_peer(tool: Path, python: Path, checkout: Path, work: Path) -> tuple[Path, float]:
    """The peer's output directory and its seconds of wall time."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", checkout.name)
    made, clock = work / "out" / f"{name}_msft", work / f"{name}.seconds"
    if clock.exists():
        return made, float(clock.read_text())
    copy = work / name
    shutil.copytree(checkout, copy)
    made.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    command = [python, "ms_fmk_transplt.py", "-i", copy, "-o", made.parent, "-v", RELEASE]
    run = subprocess.run(
        [str(part) for part in command], cwd=tool, input="y\n" * 9, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if run.returncode or not made.is_dir():
        raise SystemExit(
            f"the peer failed on {checkout}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        )
    clock.write_text(f"{seconds:.2f}")
    return made, seconds


def words_of(data: bytes) -> Counter[int]:
    """How many CUDA words of code each line has, from 1."""
    return Counter(t.line for t in tokens.find(Source(data)) if t.kind != "comment")


def words_left(before: bytes, after: bytes) -> dict[int, int]:
    """For each line of the input from 1, how many CUDA words its counterpart still has."""
    left, words = {}, words_of(after)
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    for _, start, stop, other, end in matcher.get_opcodes():
        for offset in range(stop - start):
            line = other + offset
            left[start + offset + 1] = words[line + 1] if line < end else 0
    return left


def judged(
    path: str, before: bytes, theirs: bytes, project: Project
) -> tuple[Counter[str], list[str]]:
    """What the peer did with the words of one file, and the lines where it is wrong."""
    ours = convert_source(before, path, Options(), project)
    lines = before.decode("utf-8", "replace").splitlines()
    left = words_left(before, theirs)
    by_line: dict[int, Counter[str]] = {}
    for entry in ours.ledger:
        if entry.kind != "comment":
            by_line.setdefault(entry.line, Counter())[entry.action] += 1
    count: Counter[str] = Counter()
    wrong = []
    for number, actions in by_line.items():
        gone = max(0, sum(actions.values()) - left.get(number, 0))
        for action, name in (
            ("convert", "converted"),
            ("flag", "flagged_by_ours"),
            ("keep", "wrong"),
        ):
            taken = min(gone, actions[action])
            gone -= taken
            count[name] += taken
            if action == "convert":
                count["missed"] += actions[action] - taken
            if action == "keep" and taken:
                wrong.append(f"{path}:{number}: {lines[number - 1].strip()}")
        count["words"] += sum(actions.values())
        count["ours_converted"] += actions["convert"]
        count["ours_flagged"] += actions["flag"]
        count["ours_kept"] += actions["keep"]
        count["ours_missing"] += actions["missing"]
    return count, wrong


def beside(tool: Path, python: Path, checkout: Path, work: Path) -> dict[str, Any]:
    """One checkout."""
    files = {
        path.relative_to(checkout).as_posix(): path.read_bytes()
        for path in sorted(checkout.rglob("*.py"))
    }
    project = index(files)
    start = time.perf_counter()
    for path, data in files.items():
        convert_source(data, path, Options(), project)
    seconds = time.perf_counter() - start
    made, peer_seconds = run_peer(tool, python, checkout, work)
    total: Counter[str] = Counter()
    wrong: list[str] = []
    for path, data in files.items():
        other = made / path
        count, lines = judged(path, data, other.read_bytes() if other.exists() else data, project)
        total += count
        wrong += lines
    return {
        **total,
        "lines_where_the_peer_is_wrong": wrong,
        "seconds": round(seconds, 2),
        "peer_seconds": round(peer_seconds, 2),
        "peer_over_ours": round(peer_seconds / seconds, 1),
    }


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", type=Path, required=True, help="msfmktransplt's source directory")
    parser.add_argument("--python", type=Path, required=True, help="an interpreter for it")
    parser.add_argument("--work", type=Path, help="keep the peer's output here")
    parser.add_argument("checkouts", nargs="+", type=Path)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    work.mkdir(exist_ok=True)
    trees = {}
    for checkout in arguments.checkouts:
        trees[checkout.name] = found = beside(
            arguments.tool.resolve(), arguments.python.absolute(), checkout, work.resolve()
        )
        print(
            checkout.name, {k: v for k, v in found.items() if not isinstance(v, list)}, flush=True
        )
    print(environment.write("convert_peers", {"peer": f"GPU2Ascend, {RELEASE}", "trees": trees}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
