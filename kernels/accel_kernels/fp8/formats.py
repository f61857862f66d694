"""Eight-bit floating-point formats, and how blocks of a tensor are scaled into them.

E4M3 and E5M2: Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433, section 3.
HiFloat8: Luo et al., Ascend HiFloat8 Format for Deep Learning, arXiv 2409.16626, section 3.
MX: OCP Microscaling Formats (MX) Specification 1.0, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A floating-point format of eight bits.

    Attributes:
        name: torch's name where torch has it, else the field's.
        dtype: torch's dtype; None where torch has none and codes are bytes.
        largest: Largest finite value.
        smallest: Smallest positive value.
        infinities: Whether it has them.
    """

    name: str
    dtype: torch.dtype | None
    largest: float
    smallest: float
    infinities: bool

    def __str__(self) -> str:
        return self.name


E4M3 = Format("float8_e4m3fn", torch.float8_e4m3fn, 448.0, 2.0**-9, infinities=False)
E5M2 = Format("float8_e5m2", torch.float8_e5m2, 57344.0, 2.0**-16, infinities=True)
HIF8 = Format("hifloat8", None, 2.0**15, 2.0**-22, infinities=True)
FORMATS = {item.name: item for item in (E4M3, E5M2, HIF8)}

Granularity = Literal["tensor", "row", "1x128", "128x128", "1x32"]
ScaleKind = Literal["float32", "power_of_two"]
# Rows and columns that share a scale; None: all there are.
BLOCKS: dict[str, tuple[int | None, int | None]] = {
    "tensor": (None, None),
    "row": (1, None),
    "1x128": (1, 128),
    "128x128": (128, 128),
    "1x32": (1, 32),
}


@dataclass(frozen=True)
class Scaling:
    """How a matrix `[M, K]` is brought into a format: which values share a scale, and which scale.

    Attributes:
        format: What its values become.
        granularity: Which of them share a scale.
        scales: `power_of_two` rounds the factor that is applied down to a power of two, so that
            nothing grows beyond the target (an E8M0 scale, as MX has it, is always one).
        target: What the largest magnitude of a block is mapped to; 0 means the format's largest.
            HiFloat8 must stay far below its largest, where it has a single mantissa bit.
        epsilon: Least magnitude that a block is taken to have, so that the scale of a block of
            zeros is finite.

    Raises:
        ValueError: A value is not one of these, or the target is beyond the format.
    """

    format: Format
    granularity: Granularity = "tensor"
    scales: ScaleKind = "float32"
    target: float = 0.0
    epsilon: float = 1e-12

    def __post_init__(self) -> None:
        if self.granularity not in BLOCKS or self.scales not in ("float32", "power_of_two"):
            raise ValueError(
                f"a scaling has a granularity of {', '.join(BLOCKS)} and scales float32 or "
                f"power_of_two, not {self.granularity!r} and {self.scales!r}"
            )
        if not 0.0 <= self.target <= self.format.largest or not self.epsilon > 0.0:
            raise ValueError(
                f"the target must be from 0 to {self.format}'s largest, {self.format.largest:g}, "
                f"and epsilon above 0, not {self.target} and {self.epsilon}"
            )

    @property
    def reach(self) -> float:
        """What the largest magnitude of a block is mapped to."""
        return self.target or self.format.largest

    def block(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that share a scale, of a matrix of that size; at least 1 each."""
        high, wide = BLOCKS[self.granularity]
        return max(rows if high is None else high, 1), max(columns if wide is None else wide, 1)


class Quantized(NamedTuple):
    """A matrix `[M, K]` in eight bits: each value is its code's times the scale of its block.

    Attributes:
        codes: uint8 `[M, K]`, bits of `scaling.format`.
        scales: float32 `[ceil(M / rows), ceil(K / columns)]`, positive and finite; what a decoded
            value is multiplied by (TransformerEngine's `scale_inv`, MindSpeed's `scale`).
        scaling: How it was made.
    """

    codes: Tensor
    scales: Tensor
    scaling: Scaling
