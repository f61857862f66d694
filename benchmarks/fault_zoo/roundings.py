"""Rounding to few bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Round = Callable[[Tensor], Tensor]


def to_bits(bits: int) -> Round:
    """Rounding to so many explicit bits of the significand: 10 is TF32, 7 bfloat16.

    The range stays that of the operand's dtype. Nearest, ties to even.
    """

    def rounded(x: Tensor) -> Tensor:
        fraction, exponent = torch.frexp(x.double())
        scaled = torch.ldexp(fraction, torch.tensor(bits + 1)).round()
        return torch.ldexp(scaled, exponent - bits - 1).to(x.dtype)

    return rounded


BF16 = to_bits(7)


def exact(x: Tensor) -> Tensor:
    """No rounding at all."""
    return x
