"""The converter against people: commits that moved pytorch/examples from CUDA to any accelerator.

Each commit's parent is converted. Of the lines with a CUDA word that people took away or rewrote,
how many does the converter convert? And of those that are left in the commit's own result, on which
another accelerator takes the wrong branch, how many does it convert or flag?

A line is about names only if nothing of CUDA is left of it without the options, variables and
messages of the program's own (`--no-cuda`, `args.cuda`, `help=...`). People renamed these too; the
converter never does, since scripts, configurations and users know them. They are counted apart.

Needs a clone of github.com/pytorch/examples, as an argument; nothing of it is kept.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import environment

from accel.convert import tokens
from accel.convert.engine import convert_source
from accel.convert.finding import FileResult
from accel.convert.options import Options

OWN_NAMES = re.compile(
    r"""--(?:no[-_])?cuda | \bcuda_kwargs\b | \b\w*use_cuda\w*
    | \b(?:args|opt|self\.args|opts)\.(?:no_)?cuda\w*
    | \bhas_cuda\b | \bhelp\s*=.* | \b(?:print|logging\.\w+|parser\.error)\(.*""",
    re.VERBOSE,
)
# fmt: off
COMMITS = [
    "65722fe", "dcc2474", "e9a4e75", "65afde6", "cc8e404", "54e132e", "12dc18e", "2c435c7",
    "d47f0f3", "6bfe651", "f8c79f1", "997c123", "698a89e", "3302012", "5a4ca92",
]
# fmt: on


def git(clone: Path, *arguments: str) -> str:
    """What a git command prints."""
    run = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, check=True)
    return run.stdout.decode("utf-8")


def code_words(result: FileResult) -> dict[int, set[str]]:
    """The actions of a file's code tokens, by line."""
    found: dict[int, set[str]] = {}
    for entry in result.ledger:
        if entry.kind != "comment":
            found.setdefault(entry.line, set()).add(entry.action)
    return found


def touched(before: list[str], after: list[str]) -> list[int]:
    """Numbers of the lines that a commit took away or rewrote."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return [
        number + 1
        for tag, start, stop, _, _ in matcher.get_opcodes()
        if tag in ("replace", "delete")
        for number in range(start, stop)
    ]


def compared(clone: Path, commit: str, path: str) -> dict[str, Any]:
    """One file of one commit."""
    before = git(clone, "show", f"{commit}^:{path}")
    after = git(clone, "show", f"{commit}:{path}")
    result = convert_source(before.encode(), path, Options())
    actions, lines = code_words(result), before.splitlines()
    said = {f.line: f for f in result.findings if f.action == "convert"}
    changed = [n for n in touched(lines, after.splitlines()) if n in actions]
    names = [n for n in changed if not tokens.PATTERN.search(OWN_NAMES.sub("", lines[n - 1]))]
    changed = [n for n in changed if n not in names]
    done = [n for n in changed if "convert" in actions[n] or n in said]
    theirs = convert_source(after.encode(), path, Options())
    leftovers = {n: sorted(a) for n, a in code_words(theirs).items()}
    return {
        "file": path,
        "lines_people_changed": len(changed),
        "converted": len(done),
        "lines_about_names_only": len(names),
        "not_converted": [
            f"{n}: {lines[n - 1].strip()} ({'/'.join(sorted(actions[n]))})"
            for n in changed
            if n not in done
        ],
        "cuda_lines_people_left": len(leftovers),
        "of_them_converted": sum("convert" in a for a in leftovers.values()),
        "of_them_flagged": sum("flag" in a and "convert" not in a for a in leftovers.values()),
        "of_them_kept": [
            f"{n}: {text}"
            for n, text in enumerate((line.strip() for line in after.splitlines()), 1)
            if leftovers.get(n) == ["keep"]
        ],
        "missing": sum(e.action == "missing" for e in (*result.ledger, *theirs.ledger)),
    }


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path, help="a clone of pytorch/examples, bare or not")
    clone = parser.parse_args().clone
    files = []
    for commit in COMMITS:
        listed = git(clone, "show", "--format=", "--name-only", "--diff-filter=M", commit)
        for path in listed.split():
            if path.endswith(".py"):
                found = {"commit": commit, **compared(clone, commit, path)}
                if found["lines_people_changed"] or found["cuda_lines_people_left"]:
                    files.append(found)
    changed = sum(f["lines_people_changed"] for f in files)
    done = sum(f["converted"] for f in files)
    for found in files:
        share = f"{found['converted']}/{found['lines_people_changed']}"
        print(f"{found['commit']} {found['file']}: {share}")
        for line in found["not_converted"]:
            print(f"    {line}")
    print(f"{done} of {changed} lines, {done / changed:.1%}")
    result = {
        "commits": len(COMMITS),
        "lines_people_changed": changed,
        "converted": done,
        "lines_about_names_only": sum(f["lines_about_names_only"] for f in files),
        "cuda_lines_people_left": sum(f["cuda_lines_people_left"] for f in files),
        "of_them_converted": sum(f["of_them_converted"] for f in files),
        "of_them_flagged": sum(f["of_them_flagged"] for f in files),
        "missing": sum(f["missing"] for f in files),
        "pattern": tokens.PATTERN.pattern,
        "files": files,
    }
    print(environment.write("convert_people", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
