"""What a product of eight-bit matrices and their quantization cost, beside float32 and torch.

The forms are timed in turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import environment
import torch
from torch import Tensor

from accel_kernels.fp8 import (
    E4M3,
    HIF8,
    Quantized,
    Scaling,
    block_amax,
    dequantize,
    quantize,
)
from accel_kernels.scaled_matmul import SPECS

THREADS, ROUNDS, SEED = (1, 2), 15, 0
RECIPES = {
    "tensor": (Scaling(E4M3), Scaling(E4M3)),
    "row": (Scaling(E4M3, "row"), Scaling(E4M3, "row")),
    "1x128 by 128x128": (Scaling(E4M3, "1x128"), Scaling(E4M3, "128x128")),
    "mx": (Scaling(E4M3, "1x32", "power_of_two"), Scaling(E4M3, "1x32", "power_of_two")),
    "hifloat8": (Scaling(HIF8, target=15.0), Scaling(HIF8, target=15.0)),
}
Forms = dict[str, Callable[[], Any]]


def measured(forms: Forms, rounds: int) -> dict[str, float]:
    """Median milliseconds of each form; each round calls all of them once."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for call in forms.values():
        call()
    for _ in range(rounds):
        for name, call in forms.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def kernels() -> dict[str, Callable[..., Tensor]]:
    """Those for CPUs that run here."""
    here = [spec for spec in SPECS if "cpu" in spec.devices]
    return {
        spec.name: spec.load()
        for spec in here
        if spec.absent is None or not spec.absent(torch.float32)
    }


def distance(found: Tensor, a: Quantized, b: Quantized) -> float:
    """Root mean square of the error over that of the product in float64."""
    truth = dequantize(a, torch.float64) @ dequantize(b, torch.float64).T
    return float((found.double() - truth).norm() / truth.norm())


def products(size: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Of square matrices: times, their share of the float32 product's, and errors."""
    torch.set_num_threads(threads)
    left, right = torch.randn(2, size, size)
    rows = []
    for recipe, (one, two) in RECIPES.items():
        a, b = quantize(left, one), quantize(right, two)
        forms: Forms = {"float32": lambda: left @ right.T}
        for name, compute in kernels().items():
            forms[name] = partial(compute, a, b)
        found = measured(forms, rounds)
        plain = distance(dequantize(a) @ dequantize(b).T, a, b)
        for name, compute in kernels().items():
            rows.append({
                "size": size, "threads": threads, "recipe": recipe, "kernel": name,
                "milliseconds": found[name], "float32_milliseconds": found["float32"],
                "share_of_float32": found[name] / found["float32"],
                "error": distance(compute(a, b), a, b), "float32_error": plain,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def quantizers(values: Tensor) -> Forms:
    """What is timed on one matrix."""
    forms: Forms = {
        "torch's cast": lambda: values.to(torch.float8_e4m3fn),
        "torch's amax": lambda: values.abs().amax(),
        "amax": lambda: block_amax(values, Scaling(E4M3)),
    }
    for recipe, (scaling, _) in RECIPES.items():
        forms[recipe] = partial(quantize, values, scaling)
    forms["row, transposed"] = lambda: quantize(values.t(), RECIPES["row"][0])
    return forms


def quantizations(size: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Of a square matrix: each against torch's cast to E4M3 and the largest magnitude by torch."""
    torch.set_num_threads(threads)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.randn(size, size).to(dtype)
        found = measured(quantizers(values), rounds)
        rows.append({"size": size, "threads": threads, "dtype": str(dtype), "milliseconds": found})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    result: dict[str, Any] = {"rounds": options.rounds, "products": [], "quantizations": []}
    for size in options.sizes:
        for threads in THREADS:
            result["products"] += products(size, threads, options.rounds)
            result["quantizations"] += quantizations(size, threads, options.rounds)
    print(f"written: {environment.write('scaled_matmul', result)}")


if __name__ == "__main__":
    main()
