"""The sums of contrastive losses, differentiable once in embeddings, scale and bias."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.contrastive_loss import operators
from accel_kernels.contrastive_loss.arguments import accumulation_dtype
from accel_kernels.contrastive_loss.forward_mode import refuse_tangents
from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import Passes, SoftmaxSums


def softmax_sums(
    backend: str | Passes,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_reference: Tensor,
    y_reference: Tensor,
    pairing: Pairing,
) -> SoftmaxSums:
    """What a softmax loss needs of every row and column.

    The first four sums have gradients; the log-sum-exp of a row that nothing counts for is -inf,
    which a loss must leave out by `torch.where`, not by multiplying it with 0.

    Args:
        backend: A kernel's name, or what its spec's loader returned.
        x: `[N, D]`, float64, float32, bfloat16 or float16.
        y: `[M, D]`, the same dtype.
        scale: `[]`.
        x_reference: `[N]`, subtracted from the logits of the rows' direction; a constant.
        y_reference: `[M]`, the same for columns.
        pairing: Who belongs to whom.

    Returns:
        Sums in float32, or float64 for float64. In traced code give the kernel's name.

    Raises:
        ValueError: There is no such kernel.
        RuntimeError: A second derivative is asked for, or one by forward-mode AD.
    """
    refuse_tangents(x, y, scale)
    wide = accumulation_dtype(x.dtype)
    references = (vector.detach().to(wide) for vector in (x_reference, y_reference))
    found = operators.softmax(
        x, y, scale.to(wide), *references, *operators.encoded(pairing), _name(backend)
    )
    return SoftmaxSums(*found)


def sigmoid_sum(
    backend: str | Passes,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
) -> Tensor:
    """The sum of all pairwise losses; its gradients are computed with it if one is wanted.

    Args:
        backend: A kernel's name, or what its spec's loader returned.
        x: `[N, D]`, float64, float32, bfloat16 or float16.
        y: `[M, D]`, the same dtype.
        scale: `[]`.
        bias: `[]`.
        pairing: Who belongs to whom.

    Returns:
        `[]` in float32, or float64 for float64.

    Raises:
        ValueError: There is no such kernel.
        RuntimeError: A second derivative is asked for, or one by forward-mode AD.
    """
    refuse_tangents(x, y, scale, bias)
    wide = accumulation_dtype(x.dtype)
    leaves = x, y, scale.to(wide), bias.to(wide)
    wanted = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    total, *_ = operators.sigmoid(*leaves, *operators.encoded(pairing), _name(backend), wanted)
    result: Tensor = total
    return result


def _name(backend: str | Passes) -> str:
    return backend if isinstance(backend, str) else operators.name_of(backend)
