"""ONNX Runtime beside torch: the error against float64 of every operator of a small GPT's forward.

The same forward is recorded from both; each value's accumulated error comes from the replay of its
own recording, in units of float32's roundoff.
"""

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import environment
import recorder_models
import torch

import accel
from accel.numerics.onnx_runs import OPTIMIZATIONS, export_forward, record_onnxruntime

UNIT = 2.0**-24
LOGITS = ("forward:head/addmm#0", 0)


def read(path: Path) -> dict[str, Any]:
    """Verdicts, and errors by operator and result."""
    replay = accel.numerics.replay(path, chained=True)
    (step,) = accel.numerics.load_recording(path).ranks[0].steps.values()
    errors = {
        (str(operator.key), index): replay.steps[0].errors[value] / UNIT
        for operator in step.operators
        for index, value in enumerate(operator.outputs)
        # The error of a single number is chance.
        if value in replay.steps[0].errors and math.prod(step.values[value].shape) > 1
    }
    checked = [one.judged for one in replay.operators if one.judged.verdict == "within"]
    return {
        "verdicts": dict(replay.counts),
        "worst_R": max(one.R for one in checked),
        "worst_M": max(one.M for one in checked),
        "said": [skipped.reason for skipped in step.skipped],
        "errors": errors,
    }


def row(path: Path, torch_run: dict[str, Any], torch_path: Path) -> dict[str, Any]:
    run = read(path)
    ours, theirs = torch_run["errors"], run.pop("errors")
    both = [key for key in ours if key in theirs and ours[key] > 0]
    ratios = [theirs[key] / ours[key] for key in both]
    return {
        **run,
        "values_compared": len(both),
        "error_ratio": {
            "least": min(ratios),
            "median": statistics.median(ratios),
            "most": max(ratios),
        },
        "logits_units": {"onnxruntime": theirs.get(LOGITS), "torch": ours[LOGITS]},
        "verdict": accel.numerics.compare(torch_path, path).verdict.kind,
    }


def main() -> None:
    torch.set_num_threads(1)
    model, text = recorder_models.make("gpt")
    model.eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with torch.no_grad(), accel.numerics.record(model, folder / "torch", level="full"):
            model(text)
        torch_run = read(folder / "torch")
        exported = export_forward(model, (text,))
        rows = []
        for optimization in OPTIMIZATIONS:
            for watch in ("operators", "modules"):
                path = folder / f"{optimization}-{watch}"
                record_onnxruntime(exported, path=path, optimization=optimization, watch=watch)
                result = row(path, torch_run, folder / "torch")
                rows.append({"optimization": optimization, "watch": watch, **result})
                print(rows[-1])
    torch_run.pop("errors")
    print(environment.write("onnx_engine", {"torch_run": torch_run, "rows": rows}).name)


if __name__ == "__main__":
    main()
