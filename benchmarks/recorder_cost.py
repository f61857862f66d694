"""What recording costs: time per step, bytes per operator, and what naming alone costs.

The model of examples/train_lm.py at its own sizes, and one of 100 million parameters; a step is
forward, backward, clipping and AdamW, as the example does it. Each form is measured in pairs of a
plain block of steps and one of that form, whose order is swapped each time; of the ratios within
the pairs the median and the quartiles count.

What recording one step in 200 costs is said three times: composed of the recorded and the idle
step's ratio; composed of the recorded step's ratio and the time of the idle step's hooks, which is
measured by itself and far below what a ratio of whole steps resolves; and measured in one run of
200 steps.
"""

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import environment
import torch
from recorder_steps import timed
from torch import nn

import accel
from accel.numerics.capture.arguments import named
from accel.numerics.capture.mode import CaptureMode
from accel.numerics.capture.naming import Names
from accel.numerics.capture.operators import Operators
from accel.numerics.capture.places import current_place
from accel.numerics.capture.schemas import schema_of
from accel.numerics.storage.entries import Operator, Ref
from accel.numerics.storage.reader import load_recording

ROOT = Path(__file__).parents[1]
CLOCKS = ("wall", "cpu")
NEVER = 2**31  # a step that no run here reaches
HOOK_STEPS = 2000
Figures = dict[str, Any]
T = TypeVar("T")


class Plan(NamedTuple):
    """A model and how often its steps are measured.

    Attributes:
        sizes: Characters, context, width, heads, layers.
        batch: Sequences.
        pairs: Of a plain step and one that is named, or recorded.
        idle_pairs: Of a block of plain steps and one of idle ones.
        block: Steps of such a block.
        run: Steps of the run of which the first is recorded; none if 0.
        hook_blocks: Pairs of blocks of empty steps.
    """

    sizes: tuple[int, int, int, int, int]
    batch: int
    pairs: int
    idle_pairs: int
    block: int
    run: int
    hook_blocks: int


PLANS = {
    "example": Plan((97, 128, 128, 4, 4), 16, 15, 50, 4, 200, 20),
    "100 million parameters": Plan((8192, 256, 768, 12, 13), 4, 3, 2, 1, 0, 20),
}
BRIEF = PLANS["example"]._replace(pairs=2, idle_pairs=4, block=2, run=10, hook_blocks=4)


class NamingOnly:
    """Names every operator and records nothing."""

    def __init__(self, names: Names) -> None:
        self.names = names

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator."""
        schema = schema_of(func)
        if schema.is_ignored:
            return func(*args, **kwargs)
        named(schema, args, kwargs)
        key, origin = self.names.key(schema.short, is_collective=schema.is_collective)
        place = current_place() if origin is None else origin.place
        result = func(*args, **kwargs)
        self.names.made(key, origin, place)
        return result


@contextmanager
def naming(model: nn.Module) -> Iterator[None]:
    names, mode, handles = Names({}), CaptureMode(), []
    for path, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, path=path: void(names.enter(path))),
            module.register_forward_hook(lambda *_: void(names.leave())),
        ]
    mode.begin(cast("Operators", NamingOnly(names)))  # the mode calls nothing but `run`
    try:
        yield
    finally:
        mode.end()
        for handle in handles:
            handle.remove()


def void(_: object) -> None:
    """A hook's result would replace the module's."""


def language_model(sizes: tuple[int, int, int, int, int]) -> nn.Module:
    spec = importlib.util.spec_from_file_location("train_lm", ROOT / "examples" / "train_lm.py")
    if spec is None or spec.loader is None:
        raise ImportError("examples/train_lm.py cannot be loaded")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    characters, context, width, heads, layers = sizes
    model: nn.Module = example.LanguageModel(
        characters, context, width=width, heads=heads, layers=layers
    )
    return model


def stepper(model: nn.Module, characters: int, context: int, batch: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    text = torch.randint(characters, (batch, context + 1))

    def step() -> None:
        loss = model(text[:, :-1], text[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def recorded(model: nn.Module, step: Callable[[], None], folder: str) -> dict[str, float]:
    """One recorded step, from its first line (the parameters') to its last on the disk."""
    with accel.numerics.record(model, folder, steps=[1]) as recorder:
        step()

        def one() -> None:
            recorder.step()
            step()
            recorder.step()

        return timed(one, 1)


def idle(model: nn.Module, step: Callable[[], None], folder: str, steps: int) -> dict[str, float]:
    """Steps in a recording that wants none of them."""
    with accel.numerics.record(model, folder, steps=[NEVER]):
        return timed(step, steps)


def run_of_200(model: nn.Module, step: Callable[[], None], folder: str, steps: int) -> Figures:
    """Steps of which the first is recorded, between two halves of as many plain ones.

    A machine that becomes faster or slower evenly does so for both. `plain_halves_ratio`, the
    second half over the first, says how even it was.
    """
    half = steps // 2
    before = timed(step, half)
    with accel.numerics.record(model, folder, every=steps):
        between = timed(step, 2 * half)
    after = timed(step, half)
    return {
        clock: {
            "steps": 2 * half,
            "ratio": 2 * between[clock] / (before[clock] + after[clock]),
            "plain_halves_ratio": after[clock] / before[clock],
        }
        for clock in CLOCKS
    }


def hooks(model: nn.Module, folder: str, blocks: int) -> dict[str, float]:
    """Processor microseconds that an idle step's hooks take, with torch's own cost of calling them.

    The model's forward and the optimizer's work are taken away, so that nothing else is left to
    vary: a call that returns at once, and a step of AdamW without gradients.
    """
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = None
    model.forward = void

    def empty() -> None:
        model(None)
        optimizer.step()

    try:
        apart = []
        for number in range(blocks):
            forms = (
                lambda: timed(empty, HOOK_STEPS),
                lambda number=number: idle(model, empty, f"{folder}/hooks-{number}", HOOK_STEPS),
            )
            plain, with_hooks = in_turn(forms, number)
            apart.append(1e6 * (with_hooks["cpu"] - plain["cpu"]))
    finally:
        del model.forward
    return spread(apart)


def in_turn(forms: Sequence[Callable[[], T]], number: int) -> list[T]:
    """The results of two forms, in their order; the second goes first every other time."""
    order = (0, 1) if number % 2 == 0 else (1, 0)
    found = {which: forms[which]() for which in order}
    return [found[0], found[1]]


def spread(values: list[float]) -> dict[str, float]:
    """The median and the quartiles; these are the median where there is one value."""
    low, middle, high = statistics.quantiles(
        values * 2 if len(values) == 1 else values, n=4, method="inclusive"
    )
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def volume(folder: str) -> dict[str, float]:
    """Operators and bytes of a recorded step; a list of tensors counts once per tensor."""
    (step,) = load_recording(folder).ranks[0].steps.values()
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    counted = sum(_tensors(operator) for operator in step.operators)
    return {
        "operators": len(step.operators),
        "operators_with_lists_per_tensor": counted,
        "bytes": size,
        "bytes_per_operator": size / counted,
    }


def _tensors(operator: Operator) -> int:
    lists = [value for value in operator.arguments.values() if isinstance(value, list)]
    return max([1, *(sum(isinstance(v, Ref) for v in items) for items in lists)])


def measure(name: str, plan: Plan, progress: accel.report.Progress) -> Figures:
    """All figures of one model."""
    model = language_model(plan.sizes)
    step = stepper(model, plan.sizes[0], plan.sizes[1], plan.batch)
    forms: dict[str, tuple[int, int, Callable[[str], dict[str, float]]]] = {
        "naming": (plan.pairs, 1, lambda _: _under_naming(model, step)),
        "recorded": (plan.pairs, 1, lambda folder: recorded(model, step, folder)),
        "idle": (
            plan.idle_pairs, plan.block, lambda folder: idle(model, step, folder, plan.block)
        ),
    }  # fmt: skip
    timed(step, 2)
    result: Figures = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_step": plan.batch * plan.sizes[1],
        "repetitions": plan.pairs,
        "idle_steps": plan.idle_pairs * plan.block,
    }
    pairs: dict[str, list[list[dict[str, float]]]] = {form: [] for form in forms}
    with tempfile.TemporaryDirectory() as folder:
        for form, (count, steps, run) in forms.items():
            for number in range(count):
                both = (
                    lambda steps=steps: timed(step, steps),
                    lambda run=run, path=f"{folder}/{form}-{number}": run(path),
                )
                pairs[form].append(in_turn(both, number))
                progress.advance(text=f"{name}: {form}")
        result.update(volume(f"{folder}/recorded-0"))
        if plan.run:
            result["run_of_200"] = run_of_200(model, step, f"{folder}/run", plan.run)
        result["hooks_microseconds"] = hooks(model, folder, plan.hook_blocks)
        progress.advance(text=f"{name}: hooks")
    for clock in CLOCKS:
        result[clock] = _ratios(pairs, clock, result["hooks_microseconds"]["median"])
    return result


def _ratios(
    pairs: dict[str, list[list[dict[str, float]]]], clock: str, hooks_microseconds: float
) -> Figures:
    """Per form the median of the ratios within the pairs; what one step in 200 costs by these."""
    plain = statistics.median(one[clock] for both in pairs.values() for one, _ in both)
    found: Figures = {"plain_seconds": plain}
    for form, both in pairs.items():
        ratios = spread([with_it[clock] / without[clock] for without, with_it in both])
        found[f"{form}_ratio"] = ratios.pop("median")
        found[f"{form}_quartiles"] = list(ratios.values())
    whole = found["recorded_ratio"]
    found["one_step_in_200_ratio"] = (whole + 199 * found["idle_ratio"]) / 200
    by_hooks = 1 + hooks_microseconds * 1e-6 / plain
    found["one_step_in_200_ratio_by_hooks"] = (whole + 199 * by_hooks) / 200
    return found


def _under_naming(model: nn.Module, step: Callable[[], None]) -> dict[str, float]:
    with naming(model):
        return timed(step, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--brief",
        action="store_true",
        help="the example only, few repetitions; to see that it works, writes no result",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plans = {"example": BRIEF} if options.brief else PLANS
    total = sum(2 * plan.pairs + plan.idle_pairs + 1 for plan in plans.values())
    with accel.report.Progress(total, "recorder", unit="pair") as progress:
        rows = [measure(name, plan, progress) for name, plan in plans.items()]
    for row in rows:
        print(row)
    if not options.brief:
        print(environment.write("recorder_cost", {"rows": rows}).name)


if __name__ == "__main__":
    main()
