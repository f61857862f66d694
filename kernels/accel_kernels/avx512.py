"""What compiled kernels for CPUs with AVX512-BF16 share: flags, a header, who cannot run them."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import torch

FLAGS = (
    "-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma",
    "-ffp-contract=off", "-pthread",
)  # fmt: skip
TRANSPOSE_HEADER = Path(__file__).parent / "native" / "transpose.h"


def why_unfit() -> str | None:
    """Why no compiler makes this machine run them; None if one can."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        return f"needs an x86-64 CPU, not {machine}"
    if sys.platform != "linux":
        return f"is built on Linux only, not on {sys.platform}"
    if not (torch.cpu._is_avx512_supported() and torch.cpu._is_avx512_bf16_supported()):
        return "needs a CPU with AVX512-BF16 (Intel from Cooper Lake, AMD from Zen 4 on)"
    return None
