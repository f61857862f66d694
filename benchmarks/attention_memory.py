"""Time and peak memory of causal attention, forward and backward, against torch's own forms.

One head of 64 in float32; each measurement in a fresh process, over inputs and gradients. The plain
formula stops where its score matrix no longer fits; its memory at 40,960 tokens is extrapolated
from its longest run by the square of the length, and marked so.
"""

import json
import subprocess
import sys
import time
from typing import Any

import environment
import torch
from torch import Tensor

import accel
from accel.testing.cases import attention_formula

LENGTHS = (4096, 8192, 16384, 40960)
FORMS = {
    "segmented": lambda q, k, v: accel.segmented_attention(q, k, v, is_causal=True),
    "sdpa": lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True
    ),
    "formula": lambda q, k, v: attention_formula(q, k, v, is_causal=True),
}
LONGEST_FORMULA = 16384


def run(form: str, length: int) -> tuple[int, float]:
    """Peak bytes over inputs and gradients, and seconds, of one forward and backward."""
    device = accel.current_device()
    where = device.torch_device
    leaves = [torch.randn(1, 1, length, 64, device=where, requires_grad=True) for _ in range(3)]
    grad: Tensor = torch.randn(1, 1, length, 64, device=where)
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    device.synchronize()
    device.reset_peak_memory()
    before, begun = device.memory().used, time.perf_counter()
    FORMS[form](*leaves).backward(grad)
    device.synchronize()
    return device.memory().peak - before, time.perf_counter() - begun


def measure(form: str, length: int) -> dict[str, float]:
    command = [sys.executable, __file__, form, str(length)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout))


def main() -> None:
    if len(sys.argv) > 1:
        form, length = sys.argv[1], int(sys.argv[2])
        run(form, 64)  # kernels and libraries load on first use
        extra, seconds = run(form, length)
        print(json.dumps({"extra_bytes": extra, "seconds": seconds}))
        return
    rows: list[dict[str, Any]] = []
    for length in LENGTHS:
        sdpa = measure("sdpa", length)
        for form in FORMS:
            if form == "formula" and length > LONGEST_FORMULA:
                longest = next(r for r in reversed(rows) if r["form"] == form)
                bytes_then = longest["extra_bytes"] * (length / longest["length"]) ** 2
                row = {"extra_bytes": bytes_then, "seconds": None, "extrapolated": True}
            else:
                row = sdpa if form == "sdpa" else measure(form, length)
            ratios = {
                f"{key}_over_sdpa": row[key] / sdpa[key] if row[key] is not None else None
                for key in ("extra_bytes", "seconds")
            }
            rows.append({"form": form, "length": length, **row, **ratios})
            print(rows[-1], flush=True)
    path = environment.write("attention_memory", {"rows": rows})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
