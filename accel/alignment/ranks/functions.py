"""The autograd functions of losses over the batch of all ranks: forward, and a second round."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from accel.alignment.ranks.columns import Columns
from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import InputGradients, SoftmaxGradients, SoftmaxSums


class Form(Protocol):
    """How rows meet the columns of all ranks: `Ring` or `Gathered`.

    `columns` are this rank's; results are of this rank's rows and columns, over all.
    """

    def softmax(
        self, x: Tensor, scale: Tensor, x_reference: Tensor, columns: Columns
    ) -> SoftmaxSums:
        """The sums."""

    def softmax_backward(
        self,
        x: Tensor,
        scale: Tensor,
        x_reference: Tensor,
        columns: Columns,
        lse: tuple[Tensor, Tensor],
        gradients: SoftmaxGradients,
    ) -> InputGradients:
        """The gradients, from the log-sum-exp of rows `[N]` and columns `[M]` over all ranks."""

    def sigmoid(self, x: Tensor, scale: Tensor, bias: Tensor, columns: Columns) -> Tensor:
        """The sum `[]` of the losses of this rank's rows with all columns."""

    def sigmoid_backward(
        self, x: Tensor, scale: Tensor, bias: Tensor, columns: Columns, gradient: Tensor
    ) -> InputGradients:
        """The gradients, by that of this rank's sum `[]`; other ranks may have another."""


_Versions = list[tuple[Tensor, int]]


def _versions(pairing: Pairing) -> _Versions:
    """The pairing's tensors as they are now.

    Autograd does not save them, since it refuses those of inference mode, as a guide's may be; it
    would notice a change. Those of inference mode count no changes.
    """
    held = [*pairing, *(pairing.guide or ())]
    return [(t, t._version) for t in held if isinstance(t, Tensor) and not t.is_inference()]


def _check_versions(versions: _Versions) -> None:
    if any(tensor._version != version for tensor, version in versions):
        raise RuntimeError(
            "contrastive_loss: a tensor of the pairing was changed in place between forward and "
            "backward, which would need it as it was; give a copy"
        )


class SoftmaxFunction(torch.autograd.Function):
    """`apply(form, pairing, x, y, scale, x_reference, y_reference)` gives `SoftmaxSums`."""

    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        pairing: Pairing,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        x_reference: Tensor,
        y_reference: Tensor,
    ) -> tuple[Tensor, ...]:
        """Go round once; keep what this rank has, and nothing of another's."""
        with torch.autocast(x.device.type, enabled=False):
            sums = form.softmax(x, scale, x_reference, Columns(y, y_reference, pairing))
        ctx.form, ctx.pairing, ctx.versions = form, pairing, _versions(pairing)
        ctx.save_for_backward(x, y, scale, x_reference, y_reference, sums.x_lse, sums.y_lse)
        ctx.mark_non_differentiable(sums.x_count, sums.y_count)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Go round again."""
        _refuse_second_derivative()
        _check_versions(ctx.versions)
        x, y, scale, x_reference, y_reference, x_lse, y_lse = ctx.saved_tensors
        columns = Columns(y, y_reference, ctx.pairing)
        with torch.autocast(x.device.type, enabled=False):
            found = ctx.form.softmax_backward(
                x, scale, x_reference, columns, (x_lse, y_lse), SoftmaxGradients(*gradients[:4])
            )
        return None, None, found.x.to(x.dtype), found.y.to(y.dtype), found.scale, None, None


class SigmoidFunction(torch.autograd.Function):
    """`apply(form, pairing, x, y, scale, bias)` gives the sum `[]`."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, pairing: Pairing, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor
    ) -> Tensor:
        """Go round once, without gradients: what they are multiplied by is not known yet."""
        with torch.autocast(x.device.type, enabled=False):
            total = form.sigmoid(x, scale, bias, Columns(y, None, pairing))
        ctx.form, ctx.pairing, ctx.versions = form, pairing, _versions(pairing)
        ctx.save_for_backward(x, y, scale, bias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Go round again."""
        _refuse_second_derivative()
        _check_versions(ctx.versions)
        x, y, scale, bias = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            found = ctx.form.sigmoid_backward(
                x, scale, bias, Columns(y, None, ctx.pairing), gradient
            )
        return None, None, found.x.to(x.dtype), found.y.to(y.dtype), found.scale, found.bias


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a loss over the batch of all ranks has no second derivative: call backward without "
            "create_graph=True"
        )
