"""The converter over whole source trees: is every token accounted for, and how fast is it?

Without arguments the tree is the installed torch package, 1.2 million lines, of which half a
thousand files speak of CUDA: a stress test, since nobody would convert it. Checkouts of programs
that are bound to CUDA are given as arguments; nothing of them is kept but the counts.

A mechanical site is counted by patterns of its own, which know nothing of the rules: a line of code
(no comment, no docstring) that calls `.cuda()`, a function of `torch.cuda` that every device has,
`.to('cuda')`, `torch.device('cuda')` and so on. Its share that is converted is a lower bound, since
the patterns also match what must be kept.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import environment
import torch

from accel.convert.engine import convert_source
from accel.convert.finding import FileResult
from accel.convert.options import Options
from accel.convert.project import index

# Catalogue patterns that a machine can do, as text.
MECHANICAL = re.compile(
    r"""\.cuda\(\s*(?:\)|non_blocking|device|\w+\s*[,)])
    | torch\.cuda\.(?:is_available|device_count|synchronize|empty_cache|set_device|manual_seed
        | manual_seed_all|current_device|max_memory_allocated|memory_allocated|memory_reserved
        | max_memory_reserved|reset_peak_memory_stats|get_device_name|is_bf16_supported
        | get_rng_state|get_rng_state_all|set_rng_state|set_rng_state_all|current_stream|Stream
        | Event|stream|amp\.autocast|amp\.GradScaler)\b
    | \.to\(\s*(?:device\s*=\s*)?['"]cuda(?::\d+)?['"]
    | torch\.device\(\s*f?['"]cuda
    | (?<!\w)device\s*=\s*['"]cuda(?::\d+)?['"]
    | map_location\s*=\s*['"]cuda
    | ['"]cuda(?::0)?['"]\s+if\s+torch\.cuda\.is_available
    | (?:backend\s*=\s*|init_process_group\(\s*)['"]nccl['"]
    | \.is_cuda\b
    """,
    re.VERBOSE,
)


def files_of(root: Path) -> dict[str, bytes]:
    """The Python files of a tree, by path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*.py"))
        if path.is_file()
    }


def code_lines(data: bytes) -> list[str]:
    """Lines with comments and docstrings blanked; empty for what is no Python 3."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[number - 1] = ""
    return [line.split("#")[0] for line in lines]


def mechanical(data: bytes, result: FileResult) -> tuple[int, int, list[int]]:
    """Mechanical lines, how many of them are converted, and the line numbers of the others."""
    converted = {e.line for e in result.ledger if e.action == "convert"}
    converted |= {f.line for f in result.findings if f.action == "convert"}
    found = [n for n, line in enumerate(code_lines(data), 1) if MECHANICAL.search(line)]
    return len(found), sum(n in converted for n in found), [n for n in found if n not in converted]


def measured(root: Path) -> dict[str, Any]:
    """Counts and speed of one tree."""
    files = files_of(root)
    start = time.process_time()
    project = index(files)
    indexed = time.process_time() - start
    actions: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    broken, left, sites, done, unstable = [], [], 0, 0, []
    start = time.process_time()
    results = {path: convert_source(data, path, Options(), project) for path, data in files.items()}
    seconds = time.process_time() - start
    for path, result in results.items():
        if result.error:
            broken.append(f"{path}: {result.error}")
        actions.update(entry.action for entry in result.ledger if entry.kind != "comment")
        rules.update(f"{e.rule} {e.action}" for e in result.ledger if e.kind != "comment")
        total, converted, others = mechanical(files[path], result)
        sites, done = sites + total, done + converted
        left += [f"{path}:{number}" for number in others]
        if result.is_changed:
            again = convert_source(result.after, path, Options(), project)
            if again.after != result.after:
                unstable.append(path)
    lines = sum(result.lines for result in results.values())
    return {
        "files": len(files),
        "lines": lines,
        "changed_files": sum(result.is_changed for result in results.values()),
        "code_tokens": sum(actions.values()),
        "actions": dict(actions),
        "missing": actions["missing"],
        "unparsable": broken,
        "changed_again_by_a_second_run": unstable,
        "mechanical_lines": sites,
        "mechanical_lines_converted": done,
        "mechanical_lines_left": left if root.name != "torch" else len(left),
        "lines_per_cpu_second": round(lines / seconds),
        "lines_per_cpu_second_with_index": round(lines / (seconds + indexed)),
        "rules": dict(rules.most_common()),
    }


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, help="trees; the torch package if none")
    parser.add_argument("--name", default="convert_corpus", help="of the result file")
    arguments = parser.parse_args()
    roots = arguments.checkouts or [Path(torch.__file__).parent]
    trees = {}
    for root in roots:
        trees[root.name] = found = measured(root)
        share = found["mechanical_lines_converted"] / max(1, found["mechanical_lines"])
        print(
            f"{root.name}: {found['files']} files, {found['lines']} lines, {found['actions']}, "
            f"mechanical {share:.1%} of {found['mechanical_lines']}, "
            f"{found['lines_per_cpu_second']} lines/s",
            flush=True,
        )
    total = sum(t["mechanical_lines"] for t in trees.values())
    converted = sum(t["mechanical_lines_converted"] for t in trees.values())
    result = {
        "mechanical_lines": total,
        "mechanical_lines_converted": converted,
        "trees": trees,
    }
    print(environment.write(arguments.name, result))
    return int(any(t["missing"] or t["changed_again_by_a_second_run"] for t in trees.values()))


if __name__ == "__main__":
    sys.exit(main())
