"""One tensor of a linear layer on its way into the products that it takes part in."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.precision.controller.statistics import cast_statistics, quantized_statistics
from accel.precision.fp8.products import plain_dtype
from accel.precision.fp8.quantizing import quantized
from accel.precision.fp8.state import LinearState
from accel.precision.operand import Gemm, OperandFormat, Role, Slot
from accel_kernels.fp8 import E4M3, Quantized, Scaling, block_amax

_WHOLE = Scaling(E4M3, "tensor")
# Granularities whose blocks are as many rows as columns: the transpose of the quantized matrix is
# the quantized transpose.
_SYMMETRIC = frozenset({"tensor", "128x128"})


class Operand:
    """A matrix `[M, K]` of a layer, in each format that its products ask for.

    Each product sums along one of the two dimensions, and blocks lie along it: what is quantized
    for one product is quantized anew, from the matrix itself, for the other.

    Args:
        values: `[M, K]`.
        role: What it is to the layer.
        state: The layer's.
        amax: float32 `[]`, its largest finite magnitude, if that is known.
    """

    def __init__(
        self, values: Tensor, role: Role, state: LinearState, amax: Tensor | None = None
    ) -> None:
        self.values = values
        self.role = role
        self.state = state
        self.amax = amax
        self._made: dict[OperandFormat, Quantized] = {}

    def observe(self) -> None:
        """Remember the largest magnitude, if it is asked for; measure, if the layer collects."""
        state, role = self.state, self.role
        # Weights change slowly, and need no guard.
        if state.history[role].shape[0] or (state.guarded and role != "weight"):
            pending = state.pending[role]
            pending.copy_(torch.maximum(pending, self._largest()))
        if state.collect and state.probes[role]:
            found = torch.stack([self._measured(form) for form in state.probes[role]])
            kept = state.statistics[role]
            kept.copy_(torch.maximum(kept, found))

    def of(self, gemm: Gemm, *, transposed: bool = False) -> Quantized | Tensor:
        """The matrix, or its transpose, as an operand of a product: `[rows, what is summed]`."""
        formats = self.state.formats
        dtype = plain_dtype(formats, gemm)
        if dtype is not None:
            return (self.values.t() if transposed else self.values).to(dtype)
        return self._quantized(formats[Slot(gemm, self.role)], transposed)

    def _quantized(self, form: OperandFormat, transposed: bool) -> Quantized:
        scaling = form.scaling
        assert scaling is not None, "only formats of eight bits come here"  # noqa: S101
        if transposed and scaling.granularity not in _SYMMETRIC:
            return quantized(self.values.t(), scaling)
        made = self._made.get(form)
        if made is None:
            made = self._made[form] = quantized(self.values, scaling, self._supposed(form))
        return Quantized(made.codes.t(), made.scales.t(), scaling) if transposed else made

    def _measured(self, form: OperandFormat) -> Tensor:
        if form.scaling is None:
            assert form.dtype is not None, "a format has one of both"  # noqa: S101
            return cast_statistics(self.values, form.dtype)
        made = self._quantized(form, transposed=False)
        return quantized_statistics(self.values, made, is_delayed=form.history > 0)

    def _largest(self) -> Tensor:
        if self.amax is None:
            # Its single block; of an empty matrix there is none.
            self.amax = block_amax(self.values, _WHOLE).sum()
        return self.amax

    def _supposed(self, form: OperandFormat) -> Tensor | None:
        """What the largest magnitude is supposed to be; None for scales of each block.

        In delayed scaling that of the steps before; before there are any, the tensor's own.
        """
        if form.scaling is None or form.scaling.granularity != "tensor":
            return None
        if not form.history:
            return self._largest()
        if not self.state.history[self.role].shape[0]:
            raise ValueError(
                f"the {self.role} of {self.state.plan.name!r} was given delayed scaling, but its "
                "policy has none for it, so no history is kept: give it current scaling"
            )
        known = self.state.supposed[self.role]
        return torch.where(known > 0.0, known, self._largest())
