"""In which format one operand of a matrix product is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from accel_kernels.fp8.formats import Scaling

Role = Literal["input", "weight", "gradient"]
Gemm = Literal["forward", "data_gradient", "weight_gradient"]
ROLES: tuple[Role, ...] = ("input", "weight", "gradient")
GEMMS: tuple[Gemm, ...] = ("forward", "data_gradient", "weight_gradient")
# Both operands of each product of a linear layer: `x @ w.T`, `g @ w` and `g.T @ x`.
OPERANDS: dict[Gemm, tuple[Role, Role]] = {
    "forward": ("input", "weight"),
    "data_gradient": ("gradient", "weight"),
    "weight_gradient": ("gradient", "input"),
}


@dataclass(frozen=True)
class OperandFormat:
    """A dtype, or eight bits with scales.

    Attributes:
        dtype: float32, bfloat16 or float16; None if `scaling` is given.
        scaling: The eight-bit format and its blocks; None if `dtype` is given.
        history: Delayed scaling: the scale comes from the largest magnitude of this many steps
            before; 0: of the tensor itself (current scaling). Only with tensorwise scales.
    """

    dtype: torch.dtype | None = None
    scaling: Scaling | None = None
    history: int = 0

    @property
    def is_fp8(self) -> bool:
        """Whether it has eight bits."""
        return self.scaling is not None


class Slot(NamedTuple):
    """One operand of one product of a module: what a rule speaks of."""

    gemm: Gemm
    role: Role


SLOTS: tuple[Slot, ...] = tuple(Slot(gemm, role) for gemm in GEMMS for role in OPERANDS[gemm])


@dataclass(frozen=True)
class ModulePlan:
    """What a policy gives to one module.

    Attributes:
        name: Qualified, as in `named_modules`.
        kind: Its class's name.
        compute: The dtype of what it computes, where it is not in eight bits.
        slots: Format of each operand; empty for a module that is no linear layer.
        rules: Which rule each came from, in words: keys are the slots and `"compute"`.
    """

    name: str
    kind: str
    compute: torch.dtype
    slots: dict[Slot, OperandFormat]
    rules: dict[Slot | str, str]
