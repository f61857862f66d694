"""What differs between devices: the size of a tile, and who computes on its elements."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Elementwise(Protocol):
    """What is done to each element of a tile of logits `[R, C]`, which is overwritten."""

    def exp_sums(self, logits: Tensor, shift: float, row_sums: Tensor, column_sums: Tensor) -> None:
        """Add the sums of `exp(logits - shift)` to `row_sums [R]` and `column_sums [C]`."""

    def weigh(
        self, logits: Tensor, shift: float, rows: Tensor, columns: Tensor, scratch: Tensor
    ) -> None:
        """Replace logits by `exp(logits - shift) * (rows[:, None] + columns)`."""

    def softplus_sum(self, logits: Tensor, scratch: Tensor) -> Tensor:
        """Replace logits by their sigmoid, and return the sum `[]` of their softplus."""


class TorchElementwise:
    """In PyTorch's operators, in place."""

    def exp_sums(self, logits: Tensor, shift: float, row_sums: Tensor, column_sums: Tensor) -> None:
        """See `Elementwise`."""
        powers = (logits.sub_(shift) if shift else logits).exp_()
        row_sums.add_(powers.sum(1))
        column_sums.add_(powers.sum(0))

    def weigh(
        self, logits: Tensor, shift: float, rows: Tensor, columns: Tensor, scratch: Tensor
    ) -> None:
        """See `Elementwise`."""
        (logits.sub_(shift) if shift else logits).exp_()
        torch.add(rows[:, None], columns, out=scratch)
        logits.mul_(scratch)

    def softplus_sum(self, logits: Tensor, scratch: Tensor) -> Tensor:
        """See `Elementwise`."""
        # Where softplus is its argument to the last bit: torch's default is for float32 only.
        threshold = 60.0
        torch.ops.aten.softplus.out(logits, 1.0, threshold, out=scratch)
        logits.sigmoid_()
        return scratch.sum()


class Settings(NamedTuple):
    """How the passes run on a device.

    Attributes:
        rows: Of a tile, at most.
        columns: Of a tile, at most.
        elementwise: Computes on the elements of a tile.
        has_float64: Log-sum-exps are put together in float64 on the device; False: on the CPU.
    """

    rows: int
    columns: int
    elementwise: Elementwise = TorchElementwise()
    has_float64: bool = True

    def wide(self, vector: Tensor) -> Tensor:
        """A vector in float64."""
        return (vector if self.has_float64 else vector.cpu()).to(torch.float64)
