"""The formats that a tensor may be in, cheapest first: what a promotion climbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from accel.precision.operand import OPERANDS, Gemm, OperandFormat, Role, Slot
from accel.precision.policy.formats import format_text
from accel_kernels.fp8.formats import E4M3, E5M2, HIF8, Granularity

# Bits of the fraction where the values of a tensor usually lie. HiFloat8 has three only from 2^-3
# to 2^3, two around them, and one beyond (arXiv 2409.16626, section 3).
_FRACTION = {
    "float8_e4m3fn": 3,
    "float8_e5m2": 2,
    "hifloat8": 2,
    "float16": 10,
    "bfloat16": 7,
    "float32": 23,
}
# Relative rms error over 2 ** -bits: half a unit's uniform error, 1 / sqrt(12), over the rms of a
# significand of a normal distribution, 1.37; 2.6 % for E4M3, 5.3 % for E5M2, 0.16 % for bfloat16.
_ROUNDING = 0.211
_FINER: dict[Role, Granularity] = {"input": "1x128", "weight": "128x128", "gradient": "1x128"}
_COARSE = ("tensor", "row")


class Rung(NamedTuple):
    """One step of a ladder, without torch: what decisions and logs speak of.

    Attributes:
        name: The format's, in the notation of a policy.
        floor: The relative error that it has on any well-scaled tensor.
        is_fp8: Whether it has eight bits.
    """

    name: str
    floor: float
    is_fp8: bool


class Ladder(NamedTuple):
    """The formats of one operand of one module.

    Attributes:
        rungs: What they are; the first is the policy's.
        formats: What each gives to the operand's slots, one mapping a rung.
    """

    rungs: tuple[Rung, ...]
    formats: tuple[Mapping[Slot, OperandFormat], ...]

    def probes(self, rung: int) -> tuple[OperandFormat, ...]:
        """The distinct formats to measure for a rung."""
        return tuple(dict.fromkeys(self.formats[rung].values()))


def fp8_products(slots: Mapping[Slot, OperandFormat]) -> tuple[Gemm, ...]:
    """The products of a module that run in FP8 by its policy: those with two such operands."""
    return tuple(
        gemm
        for gemm, roles in OPERANDS.items()
        if all((slot := Slot(gemm, role)) in slots and slots[slot].is_fp8 for role in roles)
    )


def ladder_of(
    role: Role, slots: Mapping[Slot, OperandFormat], compute: torch.dtype
) -> Ladder | None:
    """The ladder of one operand.

    From the policy's format: current instead of delayed scaling; blocks of 128, or rows of
    HiFloat8 (an outlier then spoils its own block only); of a gradient E5M2 in those blocks (two
    bits of fraction instead of three, but a range of 2^32 instead of 2^18 within a block; inputs
    and weights, whose rounding goes into the loss itself, would be twice as far off in it as in
    what they came from: arXiv 2209.05433, section 3, recommends E5M2 for gradients); the dtype that
    the module computes in; float32.

    Args:
        role: Which operand.
        slots: The policy's formats of the module.
        compute: What the module computes in where it is not in eight bits.

    Returns:
        None if no product with this operand runs in FP8.
    """
    products = fp8_products(slots)
    first = {slot: slots[slot] for slot in slots if slot.role == role and slot.gemm in products}
    if not first:
        return None
    steps: list[dict[Slot, OperandFormat]] = [first]
    for change in (_current, _finer, _wider):
        step = {slot: change(item, role) for slot, item in steps[-1].items()}
        if step != steps[-1]:
            steps.append(step)
    for dtype in dict.fromkeys((compute, torch.float32)):
        steps.append(dict.fromkeys(first, OperandFormat(dtype=dtype)))
    return Ladder(tuple(map(_rung, steps)), tuple(steps))


def _current(item: OperandFormat, _: Role) -> OperandFormat:
    return replace(item, history=0)


def _finer(item: OperandFormat, role: Role) -> OperandFormat:
    scaling = item.scaling
    if scaling is None or scaling.granularity not in _COARSE:
        return item
    # No chip has finer blocks of HiFloat8, and no policy knows them.
    blocks: Granularity = "row" if scaling.format == HIF8 else _FINER[role]
    return replace(item, scaling=replace(scaling, granularity=blocks))


def _wider(item: OperandFormat, role: Role) -> OperandFormat:
    scaling = item.scaling
    if role != "gradient" or scaling is None or scaling.format != E4M3:
        return item
    return replace(item, scaling=replace(scaling, format=E5M2, target=0.0))


def _rung(step: Mapping[Slot, OperandFormat]) -> Rung:
    names = tuple(dict.fromkeys(map(format_text, step.values())))
    floor = max(map(floor_of, step.values()))
    return Rung(" / ".join(names), floor, all(item.is_fp8 for item in step.values()))


def floor_of(item: OperandFormat) -> float:
    """The relative rms error of a format on any well-scaled tensor."""
    name = str(item.scaling.format) if item.scaling else str(item.dtype).removeprefix("torch.")
    return float(_ROUNDING * 2.0 ** -_FRACTION[name])
