"""What the sketch of a tensor costs, and how well it tells how far apart two tensors are."""

from __future__ import annotations

import math
import time

import environment
import torch
from torch import Tensor

from accel_kernels.sketch import BYTES, sketch, sketch_into
from accel_kernels.sketch import reference as plain
from accel_kernels.sketch.native import native

DTYPES = ("float32", "float64", "bfloat16", "float16", "float8_e4m3fn", "int64", "bool")
LARGE, IN_CACHE = 1 << 24, 1 << 16
REPEATS = 9
DRAWS = 2000


def seconds(tensor: Tensor, calls: int) -> float:
    """The least of several times of one call."""
    buffer, times = bytearray(BYTES), []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(calls):
            sketch_into(tensor, buffer)
        times.append((time.perf_counter() - begun) / calls)
    return min(times)


def costs() -> list[dict[str, float | str]]:
    """Nanoseconds per element."""
    base = torch.randn(4096, 4096)
    cases = {
        f"contiguous {name}, {n} elements": base.view(-1)[:n].abs().to(getattr(torch, name))
        for n in (IN_CACHE, LARGE)
        for name in DTYPES
    }
    cases["transposed float32"] = base.t()
    cases["columns of float32"] = base[:, 100:3000]
    cases["heads moved, float32"] = base.view(32, 512, 16, 64).transpose(1, 2)
    cases["rows of 3, float32"] = base.view(-1)[: 3 << 20].view(-1, 4)[:, :3]
    cases["half of it infinite, float32"] = torch.where(base > 0, base, -torch.inf)
    rows: list[dict[str, float | str]] = []
    for name, tensor in cases.items():
        calls = max((1 << 20) // tensor.numel(), 1)
        per = 1e9 * seconds(tensor, calls) / tensor.numel()
        rows.append({"tensor": name, "ns_per_element": per})
        print(rows[-1], flush=True)
    x = torch.randn(1 << 20)
    begun = time.perf_counter()
    plain.sketch_numbers(x, x.shape, (0,))
    per = 1e9 * (time.perf_counter() - begun) / x.numel()
    rows.append({"tensor": "float32, plain torch", "ns_per_element": per})
    return rows


def estimates() -> dict[str, dict[str, float]]:
    """Quantiles of the estimated over the true distance, and the mean of its square."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for kind in ("dense", "one in a thousand", "fifth powers"):
        ratios: list[float] = []
        while len(ratios) < DRAWS:
            n = int(torch.randint(5000, 20000, (), generator=generator))
            x, noise = torch.randn(2, n, generator=generator, dtype=torch.float64)
            if kind == "one in a thousand":
                noise[torch.rand(n, generator=generator) < 0.999] = 0
            elif kind == "fifth powers":
                noise = noise**5
            y = x + 1e-6 * noise
            if true := float((x - y).norm()):
                ratios.append(sketch(x).distance(sketch(y)) / true)
        ratios.sort()
        found[kind] = {
            **{f"p{q}": ratios[math.ceil(q / 100 * DRAWS) - 1] for q in (1, 50, 99)},
            "mean_of_square": sum(ratio**2 for ratio in ratios) / DRAWS,
        }
        print(kind, found[kind], flush=True)
    return found


def main() -> None:
    if native() is None:
        raise SystemExit("this measures the C code, which needs a C compiler")
    torch.set_num_threads(1)
    tiny = {
        "contiguous": 1e6 * seconds(torch.ones(4), 5000),
        "strided": 1e6 * seconds(torch.ones(2, 2).t(), 5000),
    }
    print(tiny)
    result = {"elements": costs(), "microseconds_per_tiny_call": tiny, "estimates": estimates(),
              "draws": DRAWS, "repeats": REPEATS}  # fmt: skip
    print(f"written: {environment.write('sketch_cost', result)}")


if __name__ == "__main__":
    main()
