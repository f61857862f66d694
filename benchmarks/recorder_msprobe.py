"""This recorder beside msprobe: time and bytes per recorded step, and whether gradients change.

msprobe runs in an interpreter of its own, which has torch and `mindstudio-probe`:

    python -m venv probe && probe/bin/pip install torch==2.13.0 mindstudio-probe==26.2.0
    python benchmarks/recorder_msprobe.py --msprobe-python probe/bin/python

Each configuration runs in fresh processes and is compared with the plain step of the same process;
of the repetitions the median counts. What refuses to run is listed with its error.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import environment

import accel

MODELS = ("gpt", "branches")
CONFIGURATIONS = (
    ("accel", "", "sketch"),
    ("accel", "", "full"),
    *(
        ("msprobe", task, level)
        for task in ("statistics", "tensor")
        for level in ("L0", "L1", "mix")
    ),
)


def run(python: str, tool: str, task: str, level: str, model: str) -> dict[str, Any]:
    """One process; its result, or the last line of its error."""
    script = Path(__file__).with_name("recorder_steps.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(script), "--tool", tool, "--level", level, "--model", model]
        command += ["--folder", folder, *(["--task", task] if task else [])]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def combined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions; the first error if one failed."""
    for one in runs:
        if "error" in one:
            return one
    return {
        "ratio": statistics.median(one["ratio"]["wall"] for one in runs),
        "ratio_cpu": statistics.median(one["ratio"]["cpu"] for one in runs),
        "plain_seconds": statistics.median(one["plain_seconds"]["wall"] for one in runs),
        "recorded_seconds": statistics.median(one["recorded_seconds"]["wall"] for one in runs),
        "bytes_per_step": statistics.median(one["bytes_per_step"] for one in runs),
        "gradients": runs[0]["gradients"],
        "gradients_changed": max(one["gradients_changed"] for one in runs),
    }


def versions(python: str) -> dict[str, str]:
    code = (
        "import json; from importlib.metadata import version as v; "
        "print(json.dumps({n: v(n) for n in ('torch', 'mindstudio-probe')}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        raise SystemExit(f"{python} has no msprobe ({last}): see the head of this file")
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--msprobe-python", required=True, metavar="PATH")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    found = versions(options.msprobe_python)
    pairs = [(model, one) for model in MODELS for one in CONFIGURATIONS]
    runs: dict[Any, list[dict[str, Any]]] = {pair: [] for pair in pairs}
    with accel.report.Progress(
        len(pairs) * options.repetitions, "recorders", unit="process"
    ) as progress:
        for _ in range(options.repetitions):
            for model, (tool, task, level) in pairs:
                python = sys.executable if tool == "accel" else options.msprobe_python
                runs[model, (tool, task, level)].append(run(python, tool, task, level, model))
                progress.advance(text=f"{model} {tool} {task} {level}")
    rows = [
        {"model": model, "tool": tool, "task": task, "level": level, **combined(results)}
        for (model, (tool, task, level)), results in runs.items()
    ]
    print(accel.report.text.table(_HEADERS, [_row(row) for row in rows]))
    sys.argv[1:] = ["--msprobe-python", "PATH"]  # the result names no path of this machine
    path = environment.write(
        "recorder_msprobe",
        {"msprobe": found, "threads": 1, "repetitions": options.repetitions, "rows": rows},
    )
    print(path.name)


_HEADERS = ("model", "tool", "task", "level", "times plain", "MB per step", "gradients changed")


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    head = (row["model"], row["tool"], row["task"], row["level"])
    if "error" in row:
        return (*head, "-", "-", row["error"])
    changed = f"{row['gradients_changed']} of {row['gradients']}"
    return (*head, f"{row['ratio']:.1f}", f"{row['bytes_per_step'] / 1e6:.2f}", changed)


if __name__ == "__main__":
    main()
