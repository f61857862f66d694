"""What portable random numbers cost, against torch's own on the same device, in ns per number."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import environment
import torch
from torch import nn
from torch.nn import functional as F

import accel
from accel.numerics.portable_rng import PortableRng
from accel_kernels import philox

SIZES = (1 << 12, 1 << 16, 1 << 22)
REPEATS = 9
# A draw by us, the same by torch, and how many numbers it has.
Pair = tuple[Callable[[], object], Callable[[], object], int]


def nanoseconds(call: Callable[[], object], count: int) -> float:
    """The least of several times, per number."""
    device = accel.current_device()
    times = []
    for _ in range(REPEATS):
        device.synchronize()
        begun = time.perf_counter()
        call()
        device.synchronize()
        times.append(time.perf_counter() - begun)
    return 1e9 * min(times) / count


def pairs(rng: PortableRng, n: int, where: torch.device) -> dict[str, Pair]:
    """What is timed at one size, by name."""
    x, columns = torch.ones(n, device=where), (n // 64, 32)
    whole, offset = (n // 64, 64), (0, 32)
    return {
        "uniform": (
            lambda: rng.uniform("a", (n,), step=0, device=where),
            lambda: torch.rand(n, device=where),
            n,
        ),
        "uniform, half of the columns": (
            lambda: rng.uniform("a", columns, step=0, whole=whole, offset=offset, device=where),
            lambda: torch.rand(n // 2, device=where),
            n // 2,
        ),
        "normal": (
            lambda: rng.normal("a", (n,), step=0, device=where),
            lambda: torch.randn(n, device=where),
            n,
        ),
        "dropout": (
            lambda: rng.dropout(x, 0.1, "a", step=0),
            lambda: F.dropout(x, 0.1),
            n,
        ),
    }


def main() -> None:
    rng, where = PortableRng(1), accel.current_device().torch_device
    rows = []
    for n in SIZES:
        for name, (portable, own, count) in pairs(rng, n, where).items():
            row: dict[str, Any] = {
                "draw": name,
                "numbers": count,
                "portable_ns": nanoseconds(portable, count),
                "torch_ns": nanoseconds(own, count),
            }
            row["ratio"] = row["portable_ns"] / row["torch_ns"]
            rows.append(row)
            print(row, flush=True)
    layer = nn.TransformerEncoderLayer(512, 8, 2048)
    weights = sum(p.numel() for p in layer.parameters())
    initial = nanoseconds(lambda: rng.initialise(layer), weights)
    blocks = torch.arange(1 << 14, device=where)
    plain = nanoseconds(lambda: philox.philox((blocks, 0, 5, 6), (1, 2)), 4 * blocks.numel())
    result = {
        "draws": rows,
        "plain_torch_words_ns": plain,  # what a device without the C code pays
        "initialise_ns_per_weight": initial,
        "repeats": REPEATS,
    }
    print(f"written: {environment.write('portable_rng', result)}")


if __name__ == "__main__":
    main()
