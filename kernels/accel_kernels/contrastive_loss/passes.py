"""The contract of a kernel: three passes over the tiles of `x @ y.T`, none of which is stored.

A pass knows nothing of reductions, weights or ranks: it takes a block of rows and a block of
columns, of one process or of a ring, and what it returns adds up over blocks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from accel_kernels.contrastive_loss.pairing import Pairing


class SoftmaxSums(NamedTuple):
    """What a softmax loss needs of every row and column; float32, or float64 for float64.

    With `r_ij = scale * (x_i . y_j) - x_reference[i]` in the rows' direction, and
    `c_ij = scale * (x_i . y_j) - y_reference[j]` in the columns' (negatives plus their hardness):

    Attributes:
        x_lse: `[N]`, log of the sum of `exp(r_ij)` over the pairs that count for row i; -inf where
            there are none, and for absent rows.
        y_lse: `[M]`, the same of `exp(c_ij)` for column j.
        x_positive: `[N]`, the sum of `r_ij` over row i's positives.
        y_positive: `[M]`, the sum of `c_ij` over column j's positives.
        x_count: `[N]`, how many positives row i has.
        y_count: `[M]`, how many column j has.
    """

    x_lse: Tensor
    y_lse: Tensor
    x_positive: Tensor
    y_positive: Tensor
    x_count: Tensor
    y_count: Tensor


class SoftmaxGradients(NamedTuple):
    """Gradients of the sums, in; the last two fields of `SoftmaxSums` have none."""

    x_lse: Tensor
    y_lse: Tensor
    x_positive: Tensor
    y_positive: Tensor


class InputGradients(NamedTuple):
    """Gradients of the inputs, out.

    Attributes:
        x: `[N, D]`, of the accumulation dtype: float32, float64 for float64.
        y: `[M, D]`, the same.
        scale: `[]`, the same.
        bias: `[]`, the same; zero where there is no bias.
    """

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor


class SoftmaxPass(Protocol):
    """Sums of a block.

    Args:
        x: `[N, D]`, float64, float32, bfloat16 or float16; `N` may be 0.
        y: `[M, D]`, of the same dtype; `M` may be 0.
        scale: `[]`, of the accumulation dtype.
        x_reference: `[N]`, of the accumulation dtype: subtracted from the logits of the rows'
            direction. No loss depends on it; with the logit of the partner there, a loss near 0
            keeps its precision.
        y_reference: `[M]`, the same for columns.
    """

    def __call__(  # noqa: D102 - the class says it
        self,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        x_reference: Tensor,
        y_reference: Tensor,
        pairing: Pairing,
    ) -> SoftmaxSums: ...


class SoftmaxBackwardPass(Protocol):
    """Gradients of a block's inputs from those of its sums; recomputes the logits once.

    `x_lse` and `y_lse` may be those of more blocks than this one: probabilities are
    `exp(r_ij - x_lse[i])` and `exp(c_ij - y_lse[j])`. The references need not be the forward's:
    where a log-sum-exp is large, a reference near it keeps the digits of what is left. A row whose
    `x_lse` is -inf, and a gradient of 0, contribute nothing, whatever else is in the row.
    """

    def __call__(  # noqa: D102 - the class says it
        self,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        x_reference: Tensor,
        y_reference: Tensor,
        pairing: Pairing,
        x_lse: Tensor,
        y_lse: Tensor,
        gradients: SoftmaxGradients,
    ) -> InputGradients: ...


class SigmoidPass(Protocol):
    """The sum of a block's pairwise losses, and its gradients in the same pass.

    The sum is over the pairs that count of `softplus(-z_ij (scale * (x_i . y_j) + bias))`, `z` 1
    for positives and -1 for negatives (SigLIP, arXiv 2303.15343, section 3.2; there divided by the
    number of rows). The guide leaves a pair out if it does for either anchor.

    Returns:
        The sum `[]` and its gradients, None unless `with_gradients`.
    """

    def __call__(  # noqa: D102 - the class says it
        self,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        bias: Tensor,
        pairing: Pairing,
        *,
        with_gradients: bool,
    ) -> tuple[Tensor, InputGradients | None]: ...


class Passes(NamedTuple):
    """A kernel: what a spec's loader returns.

    Attributes:
        softmax: Sums of a block.
        softmax_backward: Gradients of its inputs.
        sigmoid: The other loss, with its gradients.
        reads_values: The host waits for the device in these passes, so that it may look at their
            results besides. False: they only start work, and so can be recorded in a graph.
    """

    softmax: SoftmaxPass
    softmax_backward: SoftmaxBackwardPass
    sigmoid: SigmoidPass
    reads_values: bool = True
