"""Triton's language for the contrastive losses, with no function of a vendor's library."""

from __future__ import annotations

from accel_kernels.triton_language import INTERPRETING as INTERPRETING
from accel_kernels.triton_language import constexpr as constexpr
from accel_kernels.triton_language import jit_of
from accel_kernels.triton_language import tensor as tensor
from accel_kernels.triton_language import tl as tl

# Sizes of a batch and places in it.
jit = jit_of(
    ["items", "rows", "columns", "first_row", "first_column", "row_blocks", "column_blocks"]
)

# What pairs of one group are that are no partners; `Duplicates` by another name.
NEGATIVE, POSITIVE, IGNORED = 0, 1, 2
