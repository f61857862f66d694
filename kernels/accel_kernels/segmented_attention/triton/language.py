"""Triton's language for attention, with integers of 32 and 64 bits that have signs."""

from __future__ import annotations

from accel_kernels.triton_language import INTERPRETING as INTERPRETING
from accel_kernels.triton_language import constexpr as constexpr
from accel_kernels.triton_language import jit_of
from accel_kernels.triton_language import tensor as tensor
from accel_kernels.triton_language import tl as tl

jit = jit_of(["seed_low", "seed_high", "position_first"])

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
