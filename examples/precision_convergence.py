"""Does a precision policy train as well as float32? Paired seeds, a confidence interval, a verdict.

Every policy trains the same small character model on Python's manual, from the same weights and on
the same excerpts as float32 does, once per seed. What counts is the relative gap of the validation
cross-entropy, seed by seed: what seeds differ in among themselves cancels.

    python examples/precision_convergence.py --seeds 5 --steps 300
    python examples/precision_convergence.py --policies bf16 fp8_rowwise --json gaps.json
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from torch import Tensor
from train_lm import LanguageModel, batch, read_text

import accel

# `emulate` lets a chip without FP8 do the same arithmetic.
PRESETS = ("fp8_tensorwise", "fp8_delayed", "fp8_rowwise", "fp8_block", "mxfp8", "hif8")
POLICIES = {"bf16": "bf16", **{name: f"{name},emulate" for name in PRESETS}}
# The control, what scales are for: with an epsilon of the format's largest value they are all 1.
POLICIES["unscaled"] = (
    "compute=bfloat16,emulate; head=bfloat16; <linear>/gradient=float8_e5m2:epsilon=57344; "
    "<linear>=float8_e4m3fn:epsilon=448"
)
CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 128, 8, 128, 4, 2
VALIDATION = 32  # batches
# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the normal one.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]


def train(policy: str, seed: int, steps: int, text: Tensor, nudge: float = 0.0) -> float:
    """Validation cross-entropy in nats after training by a policy."""
    device = accel.current_device()
    training, validation = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    torch.manual_seed(seed)  # weights are drawn on the CPU, the same for every device
    model = LanguageModel(int(text.max()) + 1, CONTEXT, WIDTH, HEADS, LAYERS)
    with torch.no_grad():
        for weight in model.parameters():
            weight += nudge * torch.randn_like(weight)
    model = model.to(device.torch_device)
    precision = accel.precision.Precision(model, policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1 - step / (steps + 1))
    )
    for step in range(steps):
        drawn = batch(training, BATCH, CONTEXT, seed=seed * 1_000_003 + step)
        with precision.autocast():
            loss = model(*device.move(drawn))
        precision.backward(loss)
        precision.step(optimizer, max_norm=1.0)
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad(), precision.autocast():
        held_out = [batch(validation, BATCH, CONTEXT, seed=-1 - n) for n in range(VALIDATION)]
        losses: list[float] = [model(*device.move(drawn)).item() for drawn in held_out]
    return statistics.mean(losses)


def summary(gaps: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval, Student's; infinite for one value."""
    if len(gaps) < 2:
        return gaps[0], math.inf
    t = STUDENT[len(gaps) - 2] if len(gaps) - 2 < len(STUDENT) else 1.96
    return statistics.mean(gaps), t * statistics.stdev(gaps) / math.sqrt(len(gaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--json", type=Path, help="write every cross-entropy here")
    options = parser.parse_args()
    if min(options.steps, options.seeds) < 1:
        parser.error("--steps and --seeds must be at least 1")
    if options.json:
        accel.report.check_writable(options.json)

    text, _, entropy = read_text()
    device = accel.current_device()
    print(f"device {device}: {device.name}; {options.steps} steps, {options.seeds} seeds")
    runs = {"float32": ("compute=float32", 0.0), "nudged": ("compute=float32", 1e-6)}
    runs |= {name: (POLICIES[name], 0.0) for name in options.policies}
    found: dict[str, list[float]] = {name: [] for name in runs}
    with accel.report.Progress(len(runs) * options.seeds, "train", unit="run") as bar:
        for seed in range(options.seeds):
            for name, (policy, nudge) in runs.items():
                found[name].append(train(policy, seed, options.steps, text, nudge))
                bar.advance(1, f"seed {seed}  {name} {found[name][-1]:.4f}")

    base = found["float32"]
    spread = 100 * (max(base) - min(base)) / statistics.mean(base)
    print(
        f"float32: {statistics.mean(base):.4f} nats (unigram {entropy:.4f}); seeds {spread:.2f} %"
    )
    print(f"{'policy':<16}{'mean gap %':>12}{'95 % interval':>20}{'worst seed %':>14}")
    for name in runs:
        if name != "float32":
            gaps = [100 * (x - y) / y for x, y in zip(found[name], base, strict=True)]
            mean, half = summary(gaps)
            label = f"{name} (noise)" if name == "nudged" else name
            interval = f"{mean - half:+.3f} .. {mean + half:+.3f}"
            print(f"{label:<16}{mean:>+12.3f}{interval:>20}{max(gaps, key=abs):>+14.3f}")
    if options.json:
        measured = {"steps": options.steps, "cross_entropy": found}
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
