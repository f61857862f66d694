"""What compiled kernels for CPUs with AVX-512 share: flags, a header, who cannot run them."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import torch

FLAGS = (
    "-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-ffp-contract=off",
    "-pthread",
)  # fmt: skip
BF16_FLAGS = (*FLAGS, "-mavx512bf16")
TRANSPOSE_HEADER = Path(__file__).parent / "native" / "transpose.h"


def why_unfit(bf16: bool = False) -> str | None:
    """Why no compiler makes this machine run them; None if one can.

    Args:
        bf16: Whether they multiply bfloat16, as what is compiled with `BF16_FLAGS` does.
    """
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        return f"needs an x86-64 CPU, not {machine}"
    if sys.platform != "linux":
        return f"is built on Linux only, not on {sys.platform}"
    if not torch.cpu._is_avx512_supported():
        return "needs a CPU with AVX-512 (Intel servers from Skylake, AMD from Zen 4 on)"
    if bf16 and not torch.cpu._is_avx512_bf16_supported():
        return "needs a CPU with AVX512-BF16 (Intel from Cooper Lake, AMD from Zen 4 on)"
    return None
