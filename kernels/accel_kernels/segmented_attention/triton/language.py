"""Triton's language for our kernels, imported with the first of them and never before.

The kernels keep to what triton-ascend has too: no tuples or descriptors as arguments, no atomics,
loops from the program's number on, and integers of 32 and 64 bits with signs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias


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


def jit(function: Callable[..., Any]) -> Any:
    """Make a kernel, or a function that kernels call, of a Python function.

    Integers that differ from call to call, the seed above all, must not be compiled in.
    """
    return _triton.jit(do_not_specialize=_NEVER_COMPILED_IN)(function)


_NEVER_COMPILED_IN = ["seed_low", "seed_high", "position_first"]


def _interpreting() -> bool:
    def probe() -> None:
        pass

    return not isinstance(_triton.jit(probe), _triton.runtime.JITFunction)


INTERPRETING = _interpreting()
"""`TRITON_INTERPRET=1` was set at this import: kernels run as Python, on CPU tensors too."""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# The largest finite numbers of float32, bfloat16 and float16.
LARGEST = tl.constexpr((2.0 - 2.0**-23) * 2.0**127)
LARGEST_BFLOAT = tl.constexpr((2.0 - 2.0**-7) * 2.0**127)
LARGEST_HALF = tl.constexpr(65504.0)

# How a kernel learns what is visible; `Visibility` by another name.
EVERYTHING, CAUSAL, INTERVALS = 0, 1, 2
# Kinds of bias.
UNBIASED, DENSE, ALIBI, RELATIVE = 0, 1, 2, 3
