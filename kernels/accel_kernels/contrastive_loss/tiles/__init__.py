"""The passes over tiles of the logits in PyTorch's own operators, on any device; linear memory.

`passes` puts them together for a device's sizes. Rows that are absent are taken out beforehand, so
that whatever they hold is never touched. The softmax loss takes four matrix products of the whole
size for a forward and a backward, of which one recomputes the logits; the sigmoid loss, whose
gradients come with its value, takes three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import (
    InputGradients,
    Passes,
    SoftmaxGradients,
    SoftmaxSums,
)
from accel_kernels.contrastive_loss.tiles import sigmoid as _sigmoid
from accel_kernels.contrastive_loss.tiles import softmax as _softmax
from accel_kernels.contrastive_loss.tiles import softmax_gradients as _gradients
from accel_kernels.contrastive_loss.tiles.settings import Settings as Settings


def passes(settings: Settings) -> Passes:
    """The three passes in tiles of that size."""

    @torch.no_grad()
    def softmax(
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        x_reference: Tensor,
        y_reference: Tensor,
        pairing: Pairing,
    ) -> SoftmaxSums:
        return _softmax.sums(settings, x, y, scale, x_reference, y_reference, pairing)

    @torch.no_grad()
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
        references, lses = (x_reference, y_reference), (x_lse, y_lse)
        return _gradients.gradients(settings, x, y, scale, references, pairing, lses, gradients)

    @torch.no_grad()
    def sigmoid(
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        bias: Tensor,
        pairing: Pairing,
        *,
        with_gradients: bool,
    ) -> tuple[Tensor, InputGradients | None]:
        return _sigmoid.total(settings, x, y, scale, bias, pairing, with_gradients=with_gradients)

    return Passes(softmax, softmax_backward, sigmoid)
