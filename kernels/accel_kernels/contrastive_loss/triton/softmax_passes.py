"""The softmax passes: which kernels run, in which order, and how their parts are merged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing
from accel_kernels.contrastive_loss.passes import InputGradients, SoftmaxGradients, SoftmaxSums
from accel_kernels.contrastive_loss.triton.blocks import STEPS, STRIPE
from accel_kernels.contrastive_loss.triton.forward import sums_kernel
from accel_kernels.contrastive_loss.triton.launch import Launch
from accel_kernels.contrastive_loss.triton.regions import gradients_by_region
from accel_kernels.contrastive_loss.triton.weights import softmax_weights_kernel


class _Sums(NamedTuple):
    """Parts of sums, `[parts, n]`, or sums, `[n]`: `total * exp(top)` is the sum of exponentials.

    `top` is the greatest exponent; where it is infinite, `total` is taken from 0 instead.
    """

    top: Tensor
    total: Tensor
    positive: Tensor
    matches: Tensor

    def merged(self) -> _Sums:
        """The sums of the parts, added in their order."""
        top = self.top.amax(0)
        shrink = torch.exp(self.top - _base(top))
        return _Sums(
            top, (self.total * shrink).sum(0), self.positive.sum(0), self.matches.sum(0)
        )  # fmt: skip

    def with_more(self, more: _Sums) -> _Sums:
        """These and more."""
        return _Sums(*(torch.stack(pair) for pair in zip(self, more, strict=True))).merged()

    def lse(self) -> Tensor:
        """-inf where nothing counts."""
        return _base(self.top) + torch.log(self.total)


def softmax(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_reference: Tensor,
    y_reference: Tensor,
    pairing: Pairing,
) -> SoftmaxSums:
    """See `SoftmaxPass`. Memory: `16 * STRIPE` bytes for each column, in float32."""
    launch = Launch(
        x, y, pairing, scale=scale, x_reference=x_reference, y_reference=y_reference
    )  # fmt: skip
    of_y = _nothing(launch, launch.columns)
    found = [_nothing(launch, 0)]
    if launch.columns:
        height = STRIPE * launch.blocks.rows
        for first in range(0, launch.rows, height):
            of_stripe, more = _stripe(launch, first, min(height, launch.rows - first))
            found.append(of_stripe)
            of_y = of_y.with_more(more)
    else:
        found.append(_nothing(launch, launch.rows))
    of_x = _Sums(*(torch.cat(field) for field in zip(*found, strict=True)))
    return SoftmaxSums(
        of_x.lse(), of_y.lse(), of_x.positive, of_y.positive, of_x.matches, of_y.matches
    )  # fmt: skip


def softmax_backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_reference: Tensor,
    y_reference: Tensor,
    pairing: Pairing,
    x_lse: Tensor,
    y_lse: Tensor,
    gradients: SoftmaxGradients,
) -> InputGradients:
    """See `SoftmaxBackwardPass`. Memory: weights of one region beside the gradients."""
    launch = Launch(
        x,
        y,
        _without_dead_rows(pairing, x_lse, y_lse, gradients),
        scale=scale,
        x_reference=x_reference,
        y_reference=y_reference,
        x_lse=x_lse,
        y_lse=y_lse,
        x_lse_gradient=gradients.x_lse,
        y_lse_gradient=gradients.y_lse,
        x_positive_gradient=gradients.x_positive,
        y_positive_gradient=gradients.y_positive,
    )
    of_inputs, (of_scale,) = gradients_by_region(launch, softmax_weights_kernel, parts=1)
    return InputGradients(*of_inputs, of_scale, torch.zeros_like(of_scale))


def _stripe(launch: Launch, first: int, count: int) -> tuple[_Sums, _Sums]:
    """Sums of the rows of a stripe, and what they add to the sums of the columns."""
    blocks = launch.blocks
    row_blocks = -(-count // blocks.rows)
    column_blocks = -(-launch.columns // blocks.columns)
    groups = -(-column_blocks // STEPS)
    of_rows = launch.empty(groups, 4, row_blocks * blocks.rows)
    of_columns = launch.empty(row_blocks, 4, launch.columns)
    launch.start(
        sums_kernel,
        row_blocks * groups,
        row_parts=of_rows,
        column_parts=of_columns,
        first_row=first,
        row_blocks=row_blocks,
        column_blocks=column_blocks,
        STEPS=STEPS,
    )
    return (
        _Sums(*of_rows[..., :count].unbind(1)).merged(),
        _Sums(*of_columns.unbind(1)).merged(),
    )


def _without_dead_rows(
    pairing: Pairing, x_lse: Tensor, y_lse: Tensor, gradients: SoftmaxGradients
) -> Pairing:
    """The pairing without the rows none of whose pairs gets a gradient: `0 * NaN` is NaN."""
    x_alive = _alive(pairing.x_sample, x_lse, gradients.x_lse, gradients.x_positive)
    y_alive = _alive(pairing.y_sample, y_lse, gradients.y_lse, gradients.y_positive)
    return pairing._replace(
        x_sample=torch.where(x_alive | y_alive.any(), pairing.x_sample, ABSENT),
        y_sample=torch.where(y_alive | x_alive.any(), pairing.y_sample, ABSENT),
    )


def _alive(sample: Tensor, lse: Tensor, of_lse: Tensor, of_positive: Tensor) -> Tensor:
    """Whether a row, as an anchor, gives its pairs a gradient."""
    given = ((of_lse != 0) & (lse != -torch.inf)) | (of_positive != 0)
    return given & (sample != ABSENT)


def _base(top: Tensor) -> Tensor:
    return torch.where(top.isinf(), torch.zeros_like(top), top)


def _nothing(launch: Launch, size: int) -> _Sums:
    zeros = launch.zeros(size)
    return _Sums(torch.full_like(zeros, -torch.inf), zeros, zeros, zeros)
