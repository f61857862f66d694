"""Time and memory of attention against torch's own forms, in the same run, as ratios.

    python benchmarks/attention.py [--longest 8192] [--seconds 2] [--only REGEX]

Every form of a case (ours automatic and by each backend, SDPA, the plain formula, on CUDA compiled
FlexAttention and, where installed, FlashAttention) is timed in turn, round after round, in a new
order each, so that what else the machine does meets all of them; medians, and the ratio of SDPA's
to each. Forward and backward are timed apart. Memory is the peak over inputs and gradients, in a
fresh process each. Writes results/attention_MACHINE.json and a page beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from typing import Any

import attention_page
import environment
import torch
from attention_cases import Case, Form, cases, forms
from torch import Tensor

import accel
from accel import dispatch
from accel.attention import choice

LEAST_ROUNDS, MOST_ROUNDS = 5, 200
MEMORY_LENGTHS = (8192, 16384, 32768, 65536)
MEMORY_FORMS = ("accel", "sdpa")


def timed(device: Any, function: Callable[[], Any]) -> tuple[float, Any]:
    device.synchronize()
    begun = time.perf_counter()
    result = function()
    device.synchronize()
    return time.perf_counter() - begun, result


def one_round(
    device: Any, form: Form, case: Case, given: list[Tensor], grad: Tensor
) -> list[float]:
    """Seconds of a forward and, if asked, of its backward."""
    forward, out = timed(device, lambda: form(*given))
    if not case.backward:
        return [forward]
    return [forward, timed(device, lambda: torch.autograd.grad(out, given, grad))[0]]


def measure(case: Case, seconds: float) -> list[dict[str, Any]]:
    """One row per form: medians, and how many times as fast as SDPA it is."""
    device = accel.current_device()
    given = [tensor.requires_grad_(case.backward) for tensor in case.tensors(device.torch_device)]
    grad = torch.randn_like(given[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads or threads)
    every = forms(case, device.torch_device)
    found: dict[str, list[list[float]]] = {name: [] for name in every}
    order, names = random.Random(0), list(every)
    try:
        for form in every.values():
            one_round(device, form, case, given, grad)  # libraries load, code is compiled
        begun = time.perf_counter()
        while len(found["sdpa"]) < LEAST_ROUNDS or (
            time.perf_counter() - begun < seconds and len(found["sdpa"]) < MOST_ROUNDS
        ):
            order.shuffle(names)  # what went before warms or cools caches and threads
            for name in names:
                found[name].append(one_round(device, every[name], case, given, grad))
    finally:
        torch.set_num_threads(threads)
    return rows_of(case, found)


def rows_of(case: Case, found: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)]
        for name, rounds in found.items()
    }
    work = [2 * 2 * case.pairs() * case.head_size, 5 * 2 * case.pairs() * case.head_size]
    rows = []
    for name, times in medians.items():
        row: dict[str, Any] = {"case": case.name, "form": name, "rounds": len(found[name])}
        parts = ("forward", "backward")[: len(times)]
        for part, took, sdpa, flops in zip(parts, times, medians["sdpa"], work, strict=False):
            row |= {f"{part}_seconds": took, f"{part}_sdpa_over_this": sdpa / took}
            row[f"{part}_gflops"] = flops / took / 1e9
        if len(times) == 2:
            row["both_sdpa_over_this"] = sum(medians["sdpa"]) / sum(times)
        rows.append(row)
    return rows


def dispatch_cost(calls: int = 2000) -> dict[str, float]:
    """Microseconds of a call beyond its kernel, at one token: the least of some repeats."""
    where = accel.current_device().torch_device
    query = torch.randn(1, 1, 1, 64, device=where)
    spec = next(s for s in accel.backends("segmented_attention") if s.name == "reference")

    def nothing(query: Tensor, *_: Tensor, **__: Any) -> tuple[Tensor, None]:
        return query, None

    def each(function: Callable[[], Any]) -> float:
        return min(timeit.repeat(function, number=calls, repeat=7)) / calls * 1e6

    dispatch._memo.clear()
    accel.segmented_attention(query, query, query, backend=spec.name)
    for place, answer in dispatch._memo.items():
        if isinstance(answer, choice.Chosen):
            dispatch._memo[place] = answer._replace(kernel=nothing)
    whole = each(lambda: accel.segmented_attention(query, query, query, backend=spec.name))
    bare = each(lambda: nothing(query, query, query, mask=None, scale=None))
    dispatch._memo.clear()
    return {"call_us": whole, "kernel_us": bare, "dispatch_us": whole - bare}


TARGETS = (
    # What is asked, of which cases and form, by which figure, at least how many times SDPA.
    ("from 512 tokens on, float32", r"^(512|\d{4}) .*float32, (full|causal)$", "accel",
     ("forward", "backward"), 0.9),
    ("from 512 tokens on, bfloat16", r"^(512|\d{4}) .*bfloat16, (full|causal)$", "accel",
     ("forward", "backward"), 0.9),
    ("one head, backward", r"^4096 keys, 1 heads .*float32", "accel", ("backward",), 1.35),
    ("window of 512 at 8k, float32", r"float32, window of 512$", "accel cpu", ("both",), 4.5),
    ("16 documents, float32", r"float32, documents of 512$", "accel cpu", ("forward",), 15.0),
    ("8:1 grouped decode", r"8:1 heads", "accel", ("forward",), 3.0),
    ("bfloat16 at 8k, compiled", r"^8192 .*4 heads of 64, bfloat16, (full|causal)$",
     "accel cpu_amx", ("both",), 1.8),
)  # fmt: skip


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the CPU is asked for, and the worst that was measured of it."""
    found = []
    for asked, pattern, form, parts, least in TARGETS:
        measured = [
            (row[f"{part}_sdpa_over_this"], f"{row['case']}: {part}")
            for row in rows
            for part in parts
            if row["form"] == form and re.search(pattern, row["case"])
        ]
        if measured:
            worst, where = min(measured)
            found.append(
                {"asked": asked, "form": form, "least": least, "worst": worst, "of": where}
            )
    return found


SHORT, MOST_MORE_US = 512, 40.0


def short_calls(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The most microseconds that a pass of a short call takes more than SDPA's."""
    least = {row["case"]: row for row in rows if row["form"] == "sdpa"}
    more = [
        (1e6 * (row[f"{part}_seconds"] - least[row["case"]][f"{part}_seconds"]), row["case"], part)
        for row in rows
        for part in ("forward", "backward")
        if row["form"] == "accel" and int(row["case"].split(" keys")[0].split()[-1]) < SHORT
    ]
    if not more:
        return None
    worst, case, part = max(more)
    return {
        "below_keys": SHORT,
        "most_us": MOST_MORE_US,
        "worst_us": worst,
        "of": f"{case}: {part}",
    }


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """GFLOP/s of a square product, the best of some."""
    device = accel.current_device()
    a = torch.randn(size, size, device=device.torch_device).to(dtype)
    a @ a
    return 2 * size**3 / min(timed(device, lambda: a @ a)[0] for _ in range(5)) / 1e9


def memory(form: str, length: int) -> int:
    """Peak bytes over inputs and gradients of a causal head of 64, in a process of its own."""
    command = [sys.executable, __file__, "--memory", form, str(length)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(form: str, length: int) -> int:
    device = accel.current_device()

    def run(case: Case) -> int:
        given = [tensor.requires_grad_() for tensor in case.tensors(device.torch_device)]
        grad = torch.randn_like(given[0])
        for tensor in given:
            tensor.grad = torch.zeros_like(tensor)
        device.synchronize()
        device.reset_peak_memory()
        before = device.memory().used
        forms(case, device.torch_device)[form](*given).backward(grad)
        device.synchronize()
        return int(device.memory().peak - before)

    run(Case(64, heads=1))  # libraries load on first use
    return run(Case(length, heads=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--longest", type=int, default=40960, help="keys of the longest case")
    parser.add_argument("--seconds", type=float, default=3.0, help="per case, at least")
    parser.add_argument("--only", default="", help="a pattern that the case's name must contain")
    parser.add_argument("--memory", nargs=2, metavar=("FORM", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(measure_memory(options.memory[0], int(options.memory[1])))
        return
    chosen = [c for c in cases(options.longest) if re.search(options.only, c.name)]
    rows: list[dict[str, Any]] = []
    with accel.report.Progress(len(chosen), "attention", unit="case") as bar:
        for case in chosen:
            rows += measure(case, options.seconds)
            bar.advance(1, case.name)
    rates = {
        str(dtype).removeprefix("torch."): matmul_rate(dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    peaks = [
        {"form": form, "length": length, "extra_bytes": memory(form, length)}
        for length in MEMORY_LENGTHS
        for form in MEMORY_FORMS
        if not options.only
    ]
    machine = re.sub(r"\W+", "-", accel.current_device().name).strip("-").lower()
    result = {
        "rows": rows,
        "targets": targets(rows) if accel.current_device().family == "cpu" else [],
        "short": short_calls(rows) if accel.current_device().family == "cpu" else None,
        "dispatch": dispatch_cost(),
        "matmul_gflops": rates,
        "memory": peaks,
    }
    path = environment.write(f"attention_{machine}", result)
    page = path.with_suffix(".html")
    accel.report.write_atomically(page, attention_page.page(json.loads(path.read_text())))
    print(f"written: {path} and {page}")


if __name__ == "__main__":
    main()
