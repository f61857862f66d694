"""What the simulated Ascend covers and costs: kernels by kind, and training steps against the CPU.

The peer in the same run is the same model on the CPU with the same number of threads: the ratio is
the simulator's overhead and says nothing of a chip's speed.
"""

from __future__ import annotations

import collections
import statistics
import time
from typing import Any

import accel.simulate

accel.simulate.activate()

import environment  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from accel.simulate.operators import registration  # noqa: E402

STEPS, WARM_UP = 30, 5


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return {
        "mlp": (
            nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 8)),
            torch.randn(32, 64),
        ),
        "cnn": (
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(1)),
            torch.randn(16, 3, 32, 32),
        ),
        "transformer": (encoder, torch.randn(8, 64, 128)),
    }


def milliseconds(model: nn.Module, x: torch.Tensor, device: str) -> float:
    """Median time of a training step with AdamW."""
    model, x = model.to(device), x.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    times = []
    for _ in range(STEPS + WARM_UP):
        begun = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times[WARM_UP:])


def per_operator() -> float:
    """Microseconds that an addition of 64 numbers takes."""
    x = torch.ones(64, device="npu")
    begun = time.perf_counter()
    for _ in range(5000):
        x + x
    return 1e6 * (time.perf_counter() - begun) / 5000


def main() -> None:
    kinds: dict[str, dict[str, int]] = collections.defaultdict(lambda: collections.defaultdict(int))
    for (name, key), kind in registration.kinds().items():
        kinds[f"{name.split('::')[0]}, {key}"][kind] += 1
    steps: dict[str, Any] = {}
    for name, (model, x) in models().items():
        cpu = milliseconds(model, x, "cpu")
        npu = milliseconds(model, x, "npu")
        steps[name] = {"cpu_ms": cpu, "simulated_ms": npu, "ratio": npu / cpu}
    result = {
        "kernels": {group: dict(counts) for group, counts in sorted(kinds.items())},
        "training_steps": steps,
        "microseconds_per_addition": per_operator(),
        "steps": STEPS,
    }
    print(result)
    print(f"written: {environment.write('simulated_ascend', result)}")


if __name__ == "__main__":
    main()
