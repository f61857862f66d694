"""The sigmoid pass: losses and gradients from one computation of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import InputGradients
from accel_kernels.contrastive_loss.triton.launch import Launch
from accel_kernels.contrastive_loss.triton.regions import gradients_by_region
from accel_kernels.contrastive_loss.triton.weights import sigmoid_kernel

# Of the series for a logarithm, whose error after n terms is below 9**-n / (2 n + 1).
_TERMS = {torch.float32: 8, torch.float64: 17}


def sigmoid(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    *,
    with_gradients: bool,
) -> tuple[Tensor, InputGradients | None]:
    """See `SigmoidPass`. Memory: weights of one region beside the gradients."""
    launch = Launch(x, y, pairing, scale=scale, bias=bias)
    terms = _TERMS[launch.dtype]
    if with_gradients:
        of_inputs, (loss, of_scale, of_bias) = gradients_by_region(
            launch, sigmoid_kernel, parts=3, GRADIENTS=True, TERMS=terms
        )
        return loss, InputGradients(*of_inputs, of_scale, of_bias)
    total = launch.zeros()
    for region in launch.regions():
        sums = launch.empty(launch.tiles(region))
        launch.start(
            sigmoid_kernel, len(sums), parts=sums, weights=sums, **launch.of_region(region),
            GRADIENTS=False, TERMS=terms,
        )  # fmt: skip
        total = total + sums.sum()
    return total, None
