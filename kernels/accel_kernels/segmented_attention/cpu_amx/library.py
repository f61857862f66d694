"""The compiled library of each dtype, and why there may be none."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from accel_kernels.avx512 import BF16_FLAGS, FLAGS, TRANSPOSE_HEADER, why_unfit
from accel_kernels.compiled import CompileError, compiled_library
from accel_kernels.openmp import TEAM_HEADER, use_torch_threads
from accel_kernels.segmented_attention.cpu_amx.layout import Memory

_WHAT = "attention"
_FLAGS = {torch.bfloat16: BF16_FLAGS, torch.float32: (*FLAGS, "-DACCEL_FLOAT32")}


@functools.cache
def why_absent(dtype: torch.dtype) -> str | None:
    """Why this machine cannot run it; None if it can. Compiles it, the first time.

    Args:
        dtype: Of the tensors, bfloat16 or float32.
    """
    if (reason := why_unfit(bf16=dtype == torch.bfloat16)) is not None:
        return reason
    try:
        library(dtype)
    except CompileError as error:
        return str(error)
    except OSError as error:
        return f"what was compiled cannot be loaded: {error}"
    return None


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """`accel_attention_forward` and `accel_attention_backward` for a dtype; both return 0 or -1.

    Raises:
        RuntimeError: The processor cannot run it.
        accel_kernels.compiled.CompileError: It cannot be compiled.
        OSError: What was compiled cannot be loaded.
    """
    # An exported program names its kernel, and asks nobody whether another machine can run it.
    if (reason := why_unfit(bf16=dtype == torch.bfloat16)) is not None:
        raise RuntimeError(
            f"segmented_attention's backend cpu_amx {reason}; for other machines export a program "
            "with backend='cpu'"
        )
    source = Path(__file__).parent / "native" / "attention.c"
    flags = (*_FLAGS[dtype], "-mbmi2", "-lm")
    loaded = ctypes.CDLL(
        str(compiled_library(source, _WHAT, flags, [TEAM_HEADER, TRANSPOSE_HEADER]))
    )
    use_torch_threads(loaded)
    for function in (loaded.accel_attention_forward, loaded.accel_attention_backward):
        function.argtypes = (ctypes.POINTER(Memory),)
        function.restype = ctypes.c_int
    return loaded
