"""What recording costs: time per step, bytes per operator, and what naming alone costs.

The model of examples/train_lm.py at its own sizes, and one of 100 million parameters; a step is
forward, backward, clipping and AdamW, as the example does it. Repetitions of all forms are
interleaved in one process, and medians compared.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import environment
import torch
from torch import nn

import accel
from accel.numerics.capture.arguments import named
from accel.numerics.capture.mode import CaptureMode
from accel.numerics.capture.naming import Names
from accel.numerics.capture.places import current_place
from accel.numerics.capture.schemas import schema_of
from accel.numerics.storage.entries import Operator, Ref
from accel.numerics.storage.reader import load_recording

ROOT = Path(__file__).parents[1]
# Characters, context, width, heads, layers; batch, repetitions, idle steps per repetition.
SIZES: dict[str, tuple[tuple[int, int, int, int, int], int, int, int]] = {
    "example": ((97, 128, 128, 4, 4), 16, 15, 4),
    "100 million parameters": ((8192, 256, 768, 12, 13), 4, 3, 1),
}


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
    mode.begin(NamingOnly(names))  # type: ignore[arg-type]
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
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    characters, context, width, heads, layers = sizes
    return example.LanguageModel(characters, context, width=width, heads=heads, layers=layers)


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


def seconds(step: Callable[[], None], steps: int = 1) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return {
        "wall": (time.perf_counter() - wall) / steps,
        "cpu": (time.process_time() - cpu) / steps,
    }


def recorded(model: nn.Module, step: Callable[[], None], folder: str) -> dict[str, float]:
    """One recorded step, from its first line (the parameters') to its last on the disk."""
    with accel.numerics.record(model, folder, steps=[1]) as recorder:
        step()

        def one() -> None:
            recorder.step()
            step()
            recorder.step()

        return seconds(one)


def idle(model: nn.Module, step: Callable[[], None], folder: str, steps: int) -> dict[str, float]:
    """Steps in a recording that does not want them."""
    with accel.numerics.record(model, folder, steps=[0]) as recorder:
        step()
        recorder.step()
        return seconds(step, steps)


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


def measure(name: str, progress: Any) -> dict[str, Any]:
    sizes, batch, repetitions, idle_steps = SIZES[name]
    model = language_model(sizes)
    step = stepper(model, sizes[0], sizes[1], batch)
    forms: dict[str, Callable[[str], dict[str, float]]] = {
        "plain": lambda _: seconds(step),
        "naming": lambda _: _under_naming(model, step),
        "recorded": lambda folder: recorded(model, step, folder),
        "idle": lambda folder: idle(model, step, folder, idle_steps),
    }
    times: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    seconds(step, 2)
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(repetitions):
            for form, run in forms.items():
                times[form].append(run(f"{folder}/{form}-{repetition}"))
                progress.advance(text=f"{name}: {form}")
        size = volume(f"{folder}/recorded-0")
    result: dict[str, Any] = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_step": batch * sizes[1],
        "repetitions": repetitions,
        **size,
    }
    for clock in ("wall", "cpu"):
        middle = {f: statistics.median(t[clock] for t in times[f]) for f in forms}
        average = (middle["recorded"] + 199 * middle["idle"]) / 200
        result[clock] = {
            "plain_seconds": middle["plain"],
            **{
                f"{form}_ratio": middle[form] / middle["plain"] for form in forms if form != "plain"
            },
            "one_step_in_200_ratio": average / middle["plain"],
        }
    return result


def _under_naming(model: nn.Module, step: Callable[[], None]) -> dict[str, float]:
    with naming(model):
        return seconds(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    total = sum(4 * repetitions for _, _, repetitions, _ in SIZES.values())
    with accel.report.Progress(total, "recorder", unit="form") as progress:
        rows = [measure(name, progress) for name in SIZES]
    for row in rows:
        print(row)
    print(environment.write("recorder_cost", {"rows": rows}).name)


if __name__ == "__main__":
    sys.exit(main())
