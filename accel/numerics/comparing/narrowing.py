"""Whether an operator that is wrong in float32 is right if its inputs are narrowed first.

Matrix units compute float32 products from rounded inputs where a switch lets them: TF32 keeps 10
bits of the mantissa, HF32 (Ascend) 11, oneDNN's and XLA's fast modes 7 (bfloat16). Products and
sums are then in float32, so the operator is right, to within float32, for the rounded inputs.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from accel.numerics.comparing.replayer import Replayer
from accel.numerics.replaying.operators import kind_of
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Operator

_KINDS = frozenset({"matmul", "convolution", "recurrent"})


class Narrowing(NamedTuple):
    """A format narrower than float32.

    Attributes:
        name: What it is called.
        bits: Of its mantissa.
        nearest: Whether inputs are rounded to nearest (ties to even) or cut off.
    """

    name: str
    bits: int
    nearest: bool


_WITH_ADDEND = ("addmm", "addmv", "baddbmm", "addbmm", "addr", "_addmm_activation")
NARROWINGS = (
    Narrowing("HF32", 11, True),
    Narrowing("TF32", 10, True),
    Narrowing("bfloat16", 7, True),
    Narrowing("HF32, cut off", 11, False),
    Narrowing("TF32, cut off", 10, False),
    Narrowing("bfloat16, cut off", 7, False),
)


def explanation(replayer: Replayer, operator: Operator) -> str | None:
    """Which narrowing makes a faulty operator right, in words; None if none does."""
    if kind_of(operator.name, operator.overload) not in _KINDS:
        return None
    for narrowing, but in itertools.product(NARROWINGS, (_addends(operator), ())):
        try:
            change = functools.partial(narrowed, to=narrowing)
            judged = replayer.judged_with(operator, change, but)
        except CannotReplayError:
            return None
        if judged.verdict == "within":
            return (
                f"computes in {narrowing.name}: from its inputs rounded to {narrowing.bits} bits "
                f"of mantissa it is right (R {judged.R:.3g}, M {judged.M:.3g})"
            )
    return None


def _addends(operator: Operator) -> tuple[str, ...]:
    """What is added to a product, which is wide already; some kernels narrow it all the same."""
    op = operator.name.rpartition("::")[2].rstrip("_")
    return ("self", "bias") if op in _WITH_ADDEND else ("bias",)


def narrowed(tensor: Tensor, to: Narrowing) -> Tensor:
    """A float32 tensor with fewer bits of mantissa; anything else as it is."""
    if tensor.dtype != torch.float32:
        return tensor
    dropped = 23 - to.bits
    bits = tensor.contiguous().view(torch.int32)
    if to.nearest:
        bits = bits + ((1 << (dropped - 1)) - 1) + ((bits >> dropped) & 1)
    cut = (bits & -(1 << dropped)).view(torch.float32)
    return torch.where(tensor.isfinite(), cut, tensor)
