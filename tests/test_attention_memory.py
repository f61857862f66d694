"""Memory of long attention, each measured in a fresh process by the kernel's high-water mark."""

import subprocess
import sys

import pytest

MEASURE = """
import sys
import torch
import accel

length, backend = int(sys.argv[1]), sys.argv[2]

def run(length):
    leaves = [torch.randn(1, 1, length, 64, requires_grad=True) for _ in range(3)]
    grad = torch.randn(1, 1, length, 64)
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    device = accel.current_device()
    device.reset_peak_memory()
    before = device.memory().used
    out = accel.segmented_attention(*leaves, is_causal=True, backend=backend)
    out.backward(grad)
    return device.memory().peak - before, leaves

run(64)  # libraries load their kernels on first use
extra, leaves = run(length)
assert all(bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)
print(extra)
"""


def extra_bytes(length: int, backend: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(length), backend],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


def test_forty_thousand_tokens_fit_in_128_mb() -> None:
    """Causal, one head of 64, float32, forward and backward, over inputs and gradients.

    Three matrices of scores alone would take 19 GB; benchmarks/attention_memory.py measures them.
    """
    assert extra_bytes(40_000, "cpu") < 128e6


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_memory_grows_linearly(backend) -> None:
    short, long = (extra_bytes(length, backend) for length in (4_000, 16_000))
    assert long < 4.5 * short + 20e6
    assert long < 128e6
