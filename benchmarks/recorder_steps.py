"""Steps without and with one recorder, in a fresh process; prints one JSON object.

Runs under an interpreter that has torch and the recorder and nothing else of this repository:
`recorder_msprobe.py` starts it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import recorder_models
import torch
from torch import Tensor, nn

Step = Callable[[], list[Tensor]]


def timed(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Seconds per step, by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return {
        "wall": (time.perf_counter() - wall) / steps,
        "cpu": (time.process_time() - cpu) / steps,
    }


@contextmanager
def accel_recording(
    model: nn.Module, step: Step, folder: Path, level: Literal["sketch", "full"]
) -> Iterator[Step]:
    """Steps recorded by this library, all of them."""
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "kernels")]
    import accel

    with accel.numerics.record(model, folder / "run", level=level, every=1) as recorder:

        def recorded() -> list[Tensor]:
            gradients = step()
            recorder.step()
            return gradients

        yield recorded


@contextmanager
def msprobe_recording(
    model: nn.Module, step: Step, folder: Path, task: str, level: str
) -> Iterator[Step]:
    """Steps dumped by msprobe's PrecisionDebugger, as its guide says."""
    config: dict[str, Any] = {
        "task": task,
        "dump_path": str(folder / "dump"),
        "rank": [],
        "step": [],
        "level": level,
        task: {"scope": [], "list": [], "data_mode": ["all"]},
    }
    if task == "statistics":
        config[task]["summary_mode"] = "statistics"
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    from msprobe.pytorch import PrecisionDebugger

    debugger = PrecisionDebugger(config_path=str(path))

    def recorded() -> list[Tensor]:
        debugger.start(model=model)
        gradients = step()
        debugger.stop()
        debugger.step()
        return gradients

    yield recorded


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def first_gradients(name: str) -> list[Tensor]:
    """Gradients of the first step from the seeded parameters."""
    step, _ = recorder_models.stepper(*recorder_models.make(name))
    return [gradient.clone() for gradient in step()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", choices=("accel", "msprobe"), required=True)
    parser.add_argument("--task", default="statistics", help="of msprobe: statistics or tensor")
    parser.add_argument("--level", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)

    plain_gradients = first_gradients(options.model)
    model, batch = recorder_models.make(options.model)
    step, _ = recorder_models.stepper(model, batch)
    timed(step, 2)  # kernels and libraries load on first use
    plain = timed(step, 4 * options.steps)

    if options.tool == "accel":
        context = accel_recording(model, step, options.folder, options.level)
    else:
        context = msprobe_recording(model, step, options.folder, options.task, options.level)
    # The state of the first step again, so that its gradients can be compared bit by bit.
    fresh, _ = recorder_models.make(options.model)
    model.load_state_dict(fresh.state_dict())
    with context as recorded:
        gradients = [gradient.clone() for gradient in recorded()]
        before = size_of(options.folder)
        with_recorder = timed(recorded, options.steps)
    size = size_of(options.folder)
    changed = sum(not torch.equal(a, b) for a, b in zip(plain_gradients, gradients, strict=True))
    result = {
        "plain_seconds": plain,
        "recorded_seconds": with_recorder,
        "ratio": {kind: with_recorder[kind] / plain[kind] for kind in plain},
        "bytes_per_step": (size - before) / options.steps,
        "gradients": len(gradients),
        "gradients_changed": changed,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
