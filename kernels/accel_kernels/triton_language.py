"""Triton's language for our kernels, imported with the first of them and never before.

The kernels keep to what triton-ascend has too: no tuples or descriptors as arguments, no atomics,
loops from the program's number on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor


def _imported() -> tuple[Any, Any]:
    import triton
    import triton.language

    return triton, triton.language


_triton, tl = _imported()

if TYPE_CHECKING:
    # In a kernel's signature: what is there when it runs, and what is compiled in.
    tensor: TypeAlias = Any
    constexpr: TypeAlias = Any
else:
    tensor, constexpr = tl.tensor, tl.constexpr


def jit_of(never_compiled_in: Sequence[str]) -> Callable[[Callable[..., Any]], Any]:
    """What makes a kernel, or a function that kernels call, of a Python function.

    Args:
        never_compiled_in: Integer arguments that differ from call to call.
    """

    def jit(function: Callable[..., Any]) -> Any:
        return _triton.jit(do_not_specialize=list(never_compiled_in))(function)

    return jit


def _interpreting() -> bool:
    def probe() -> None:
        pass

    return not isinstance(_triton.jit(probe), _triton.runtime.JITFunction)


INTERPRETING = _interpreting()
"""`TRITON_INTERPRET=1` was set at this import: kernels run as Python, on CPU tensors too."""


def float32_precision(x: Tensor) -> str:
    """float32 as exact as torch's own matmul: in TF32 only where the program allows that."""
    # Not `allow_tf32`, which refuses to be read once a program has used the newer switch.
    allowed = x.device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"
