"""Whether every precision preset trains as well as float32: the long form of the example.

    python benchmarks/precision_convergence.py [--steps 300] [--seeds 5] [--processes 2]

Trains examples/precision_convergence.py's model under each policy, once per seed, each run in one
thread, and judges the gaps. Writes results/precision_convergence.json, a page beside it, and the
plot of docs/precision.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import environment
import torch

import accel
from accel.report import Markup, html, svg

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]  # the example imports train_lm by name
from examples import precision_convergence as example  # noqa: E402
from examples.train_lm import read_text  # noqa: E402

# Percent: the mean over seeds, the worst seed. The bound of DeepSeek-V3 (arXiv 2412.19437) is 0.25.
BOUNDS = {"bf16": (0.05, 0.4)}
EIGHT_BITS = (0.25, 0.4)
CONTROL = "unscaled"


def one(name: str, policy: str, nudge: float, seed: int, steps: int) -> tuple[str, int, float]:
    """One run, in a process of its own kind."""
    torch.set_num_threads(1)
    text = read_text()[0]
    return name, seed, example.train(policy, seed, steps, text, nudge)


def judge(name: str, gaps: list[float]) -> dict[str, Any]:
    """What is asked of a policy, and what came of it, in percent of float32's cross-entropy."""
    mean, half = example.summary(gaps)
    row: dict[str, Any] = {
        "policy": name, "gaps": gaps, "mean": mean, "low": mean - half, "high": mean + half,
        "worst": max(gaps, key=abs),
    }  # fmt: skip
    if name == "nudged":
        return row
    at_mean, at_worst = BOUNDS.get(name, EIGHT_BITS)
    within = abs(mean) <= at_mean and abs(row["worst"]) <= at_worst
    return {**row, "most": at_mean, "met": within != (name == CONTROL)}


def plot(rows: list[dict[str, Any]]) -> Markup:
    """Size of the gap of every seed, by policy."""
    seeds = len(rows[0]["gaps"])
    points = [
        svg.Series(f"seed {n}", [abs(row["gaps"][n]) for row in rows], kind="points")
        for n in range(seeds)
    ]
    means = svg.Series("mean", [abs(row["mean"]) for row in rows], kind="steps", tone="muted")
    most = svg.Series("allowed mean", [row.get("most") for row in rows], kind="steps", tone="limit")
    return svg.error_plot(
        [*points, means, most],
        x_labels=[row["policy"] for row in rows],
        y_title="gap to float32, %",
        description="relative gap of the validation cross-entropy by policy and seed",
    )


def page(result: dict[str, Any], made: dict[str, Any]) -> str:
    """The page beside the result."""
    cells = [
        [r["policy"], r["mean"], r["low"], r["high"], r["worst"], r.get("most"),
         {True: "yes", False: "no", None: ""}[r.get("met")]]
        for r in result["policies"]
    ]  # fmt: skip
    return html.page(
        "Convergence by precision policy",
        [
            html.section("What was measured", html.definitions({
                "machine": made["host"], "torch": made["torch"], "commit": made["commit"],
                "command": made["command"], "steps": result["steps"], "seeds": result["seeds"],
                "float32, nats": result["float32_mean"],
                "spread of float32 over seeds, %": result["float32_spread"],
            })),
            html.section("Gap to float32, percent of its cross-entropy", html.table(
                ["policy", "mean", "95 % from", "to", "worst seed", "allowed mean", "as asked"],
                cells, bad=lambda row: row[-1] == "no",
                caption="Gaps by policy; the control must exceed what the others may",
            ), plot(result["policies"])),
        ],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    runs = {"float32": ("compute=float32", 0.0), "nudged": ("compute=float32", 1e-6)}
    runs |= {name: (policy, 0.0) for name, policy in example.POLICIES.items()}
    found: dict[str, list[float]] = {name: [0.0] * options.seeds for name in runs}
    with (
        ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool,
        accel.report.Progress(len(runs) * options.seeds, "train", unit="run") as bar,
    ):
        waiting = [
            pool.submit(one, name, *settings, seed, options.steps)
            for seed in range(options.seeds)
            for name, settings in runs.items()
        ]
        for future in as_completed(waiting):
            name, seed, loss = future.result()
            found[name][seed] = loss
            bar.advance(1, f"seed {seed}  {name} {loss:.4f}")
    base = found["float32"]
    rows = [
        judge(name, [100 * (x - y) / y for x, y in zip(found[name], base, strict=True)])
        for name in runs
        if name != "float32"
    ]
    result = {
        "steps": options.steps,
        "seeds": options.seeds,
        "float32_mean": statistics.mean(base),
        "float32_spread": 100 * (max(base) - min(base)) / statistics.mean(base),
        "cross_entropy": found,
        "policies": rows,
    }
    path = environment.write("precision_convergence", result)
    made = environment.describe()
    accel.report.write_atomically(path.with_suffix(".html"), page(result, made))
    drawing = str(plot(rows))
    drawing = drawing[drawing.index("<svg") : drawing.rindex("</svg>") + len("</svg>")]
    accel.report.write_atomically(ROOT / "docs/img/precision-convergence.svg", drawing + "\n")
    for row in rows:
        print(
            f"{row['policy']:<16}{row['mean']:+.3f} %  worst {row['worst']:+.3f}  {row.get('met')}"
        )
    print(f"written: {path}")
    if not all(row.get("met", True) for row in rows):
        raise SystemExit("a policy is not as close to float32 as asked")


if __name__ == "__main__":
    main()
