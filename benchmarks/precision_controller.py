"""The precision controller against faults that break static FP8, and what its statistics cost.

    python benchmarks/precision_controller.py [--steps 300] [--seeds 5] [--processes 2]

Trains examples/precision_convergence.py's model in bfloat16, in tensorwise FP8 without faults, and
with an outlier channel in one layer's input and a huge row in another's gradient: static, and with
the controller as it comes. The faults change nothing in bfloat16. They act until two thirds of the
run, either from its start, or from a third of it on. A batch whose step the controller withheld is
trained on again, as a training loop would. The cost is measured on a wider model: of a step that
reads every operand against one that does not, and of one that does not against one without a
controller, interleaved. Writes results/precision_controller.json, and the page of
seed 0's log beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import environment
import torch
from torch import Tensor, nn

import accel
from accel.precision.controller import ControllerConfig, replay
from accel.precision.controller.page import write_page

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]  # the example imports train_lm by name
from examples import precision_convergence as example  # noqa: E402
from examples.train_lm import LanguageModel, batch, read_text  # noqa: E402
from tests.precision_controller_faults import Outlier, Underflow  # noqa: E402

FP8 = "fp8_tensorwise,emulate"
# The budget: an input of a layer and a gradient of another, each in 2 of 3 products; a layer is an
# eighth of the work: a sixth in all.
CONFIG = ControllerConfig(budget=0.2)
START, LATE = 0.0, 1 / 3  # shares of the run at which the faults begin
END = 2 / 3
# Name: policy, when the faults begin (None: never), whether it is controlled.
FORMS: dict[str, tuple[str, float | None, bool]] = {
    "bf16": ("bf16", START, False),
    "fp8 without faults": (FP8, None, False),
    "fp8 static": (FP8, START, False),
    "fp8 controlled": (FP8, START, True),
    "fp8 static, late": (FP8, LATE, False),
    "fp8 controlled, late": (FP8, LATE, True),
}
BOUND = 0.25  # percent of bfloat16's cross-entropy: DeepSeek-V3's, arXiv 2412.19437
SPOILT = {"blocks.0.qkv/input", "blocks.1.qkv/gradient"}
COST_WIDTH, COST_CONTEXT, COST_PAIRS = 512, 128, 15


def spoilt_model(text: Tensor, seed: int) -> tuple[nn.Module, list[Any]]:
    """The example's model with both faults in it, not yet active."""
    torch.manual_seed(seed)
    characters = int(text.max()) + 1
    model = LanguageModel(characters, example.CONTEXT, example.WIDTH, example.HEADS, example.LAYERS)
    # Attention, without which the model knows nothing of the context; the other layers would make
    # up for a lost feed-forward layer.
    first, last = (cast("nn.Linear", model.get_submodule(f"blocks.{n}.qkv")) for n in (0, 1))
    last.register_parameter("bias", None)  # it would get the huge row's gradient
    return model, [Outlier(first), Underflow(last)]


def train(form: str, seed: int, steps: int, log: str) -> dict[str, Any]:
    """Validation cross-entropy of one run, and what was decided in it."""
    torch.set_num_threads(1)
    policy, begin, controlled = FORMS[form]
    first, last = begun_at(begin, steps), round(steps * END)
    text = read_text()[0]
    training, validation = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    model, faults = spoilt_model(text, seed)
    precision = accel.precision.Precision(
        model,
        policy,
        controller=CONFIG if controlled else None,
        log=log if controlled else None,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1 - step / (steps + 1))
    )
    withheld = []
    for step in range(steps):
        for fault in faults:
            fault.active = first is not None and first <= step < last
        drawn = batch(training, example.BATCH, example.CONTEXT, seed=seed * 1_000_003 + step)
        while not trained(model, precision, optimizer, drawn):
            withheld.append(str(precision.last_skipped))
        schedule.step()
    for fault in faults:
        fault.active = False
    with torch.no_grad(), precision.autocast():
        held_out = [
            batch(validation, example.BATCH, example.CONTEXT, seed=-1 - n)
            for n in range(example.VALIDATION)
        ]
        losses = [model(*drawn).item() for drawn in held_out]
    if precision.controller is not None:
        precision.controller.close()
    decided = [one.to_dict() for one in replay(log).decisions] if controlled else []
    return {
        "form": form,
        "seed": seed,
        "loss": statistics.mean(losses),
        "decisions": decided,
        "withheld": withheld,
    }


def trained(
    model: nn.Module,
    precision: accel.precision.Precision,
    optimizer: torch.optim.Optimizer,
    drawn: tuple[Tensor, Tensor],
) -> bool:
    """One step; False if the controller withheld it."""
    with precision.autocast():
        loss = model(*drawn)
    precision.backward(loss)
    taken = bool(precision.step(optimizer, max_norm=1.0))
    optimizer.zero_grad()
    skipped = precision.last_skipped
    if not taken and not (skipped and skipped.is_withheld):
        raise RuntimeError(f"the run cannot be judged: {skipped}")
    return taken


def begun_at(begin: float | None, steps: int) -> int | None:
    """The step from which faults act."""
    return None if begin is None else round(steps * begin)


def judge(runs: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Gaps to bfloat16 in percent, by seed, and whether the decisions are the right ones."""
    losses = {(run["form"], run["seed"]): run["loss"] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    gaps: dict[str, dict[str, Any]] = {}
    for form in FORMS:
        own = [100 * (losses[form, n] / losses["bf16", n] - 1) for n in seeds]
        mean, half = example.summary(own)
        gaps[form] = {"gaps": own, "mean": mean, "low": mean - half, "high": mean + half}
    decided = {
        form: decisions_of([run["decisions"] for run in runs if run["form"] == form], form, steps)
        for form, (_, _, controlled) in FORMS.items()
        if controlled
    }
    met = {
        "controlled within the bound": abs(gaps["fp8 controlled"]["mean"]) <= BOUND,
        "static outside": abs(gaps["fp8 static"]["mean"]) > BOUND,
        "exactly the spoilt operands": all(one["exactly_the_spoilt"] for one in decided.values()),
        "within 50 steps": all(
            one["steps_to_promote"] is not None and one["steps_to_promote"] <= 50
            for one in decided.values()
        ),
        "all back": all(one["all_back"] for one in decided.values()),
    }
    return {"gaps": gaps, "decided": decided, "met": met}


def decisions_of(runs: list[list[dict[str, Any]]], form: str, steps: int) -> dict[str, Any]:
    """What was decided in the runs of a form, and how long after its causes came and went."""
    first, last = begun_at(FORMS[form][1], steps) or 0, round(steps * END)
    ups = [one for run in runs for one in run if one["after"] > one["before"]]
    downs = [one for run in runs for one in run if one["after"] < one["before"]]
    names = [{f"{one['module']}/{one['role']}" for one in run} for run in runs]
    return {
        "exactly_the_spoilt": all(found == SPOILT for found in names),
        "steps_to_promote": max((one["step"] - first for one in ups), default=None),
        "steps_to_demote": max((one["step"] - last for one in downs), default=None),
        "all_back": all(run and run[-1]["share"] == 0.0 for run in runs),
    }


def cost(policy: str) -> dict[str, float]:
    """Share of a step that the controller takes, in percent: readings and what every step has."""
    text = torch.randint(103, (8, COST_CONTEXT + 1))
    config = ControllerConfig()
    forms = {}
    for name, controller in (("without", None), ("between", config), ("reading", config)):
        torch.manual_seed(0)
        model = LanguageModel(103, COST_CONTEXT, COST_WIDTH, 8, 2)
        precision = accel.precision.Precision(model, policy, controller=controller)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        forms[name] = (model, precision, optimizer)

    def step(name: str) -> float:
        controller = forms[name][1].controller
        if controller is not None:
            controller.steps = 0 if name == "reading" else 1  # of the interval
            controller._watch()
        begun = time.process_time()
        trained(*forms[name], (text[:, :-1], text[:, 1:]))
        return time.process_time() - begun

    rounds = [{name: step(name) for name in forms} for _ in range(COST_PAIRS + 2)][2:]
    reading = statistics.median(one["reading"] / one["between"] for one in rounds)
    between = statistics.median(one["between"] / one["without"] for one in rounds)
    return {
        "step_ms": 1e3 * statistics.median(one["without"] for one in rounds),
        "reading_step": reading,
        "between_step": between,
        "percent": 100 * (between - 1) + 100 * (reading - 1) / config.interval,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", default="precision_controller", help="name in results/")
    options = parser.parse_args()
    if options.steps < 1 or options.seeds < 2:
        parser.error("--steps must be at least 1, and --seeds 2, for an interval")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            (form, seed, options.steps, f"{folder}/{form} {seed}.jsonl")
            for seed in range(options.seeds)
            for form in FORMS
        ]
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            futures = [pool.submit(train, *job) for job in jobs]
            runs = []
            for future in futures:
                runs.append(future.result())
                run = runs[-1]
                print(f"seed {run['seed']}  {run['form']:<20}{run['loss']:.5f}", flush=True)
        write_page(f"{folder}/fp8 controlled 0.jsonl", environment.RESULTS / f"{options.out}.html")
    result = judge(runs, options.steps)
    torch.set_num_threads(1)
    result["cost"] = {name: cost(f"{name},emulate") for name in ("fp8_tensorwise", "fp8_block")}
    for form, found in result["gaps"].items():
        print(f"{form:<20}{found['mean']:+9.3f} %  {found['low']:+.3f} .. {found['high']:+.3f}")
    for name in ("decided", "met", "cost"):
        print(name, result[name])
    settings = {"steps": options.steps, "seeds": options.seeds, "config": CONFIG.to_dict()}
    print(environment.write(options.out, {**settings, **result, "runs": runs}))


if __name__ == "__main__":
    main()
