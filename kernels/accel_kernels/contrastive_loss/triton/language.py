"""Triton's language for our kernels, imported with the first of them and never before.

The kernels keep to what triton-ascend has too: no tuples or descriptors as arguments, no atomics,
loops from the program's number on, no function of a vendor's mathematical library.
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

    Sizes of a batch and places in it differ from call to call: none is compiled in.
    """
    return _triton.jit(do_not_specialize=_NEVER_COMPILED_IN)(function)


_NEVER_COMPILED_IN = [
    "items", "rows", "columns", "first_row", "first_column", "row_blocks", "column_blocks",
]  # fmt: skip


def _interpreting() -> bool:
    def probe() -> None:
        pass

    return not isinstance(_triton.jit(probe), _triton.runtime.JITFunction)


INTERPRETING = _interpreting()
"""`TRITON_INTERPRET=1` was set at this import: kernels run as Python, on CPU tensors too."""

# What pairs of one group are that are no partners; `Duplicates` by another name.
NEGATIVE, POSITIVE, IGNORED = 0, 1, 2
