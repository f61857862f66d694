"""Softmax under a mask, and the cross entropy of log-probabilities.

Source: op-plugin's pages of the operators; the value of a masked score in the operator's tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.vendor.npu.values import (
    refuse,
    require_choice,
    require_floats,
    require_shape,
    wide_dtype,
)

MASKED = -10000.0


def _check_softmax(name: str, x: Tensor, mask: Tensor, fixed_triu_mask: bool) -> None:
    if fixed_triu_mask:
        refuse(name, "fixed_triu_mask", True, "the operator supports only False")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: mask is {mask.dtype}; give bool")
    if not 2 <= x.ndim <= 4 or any(not 32 <= side <= 4096 or side % 32 for side in x.shape[-2:]):
        raise ValueError(
            f"{name}: x has shape {list(x.shape)}; give at most 4 dimensions, the last two "
            f"multiples of 32 from 32 to 4096"
        )
    pairs = zip(reversed(mask.shape), reversed(x.shape), strict=False)
    if mask.ndim > x.ndim or any(side not in (1, whole) for side, whole in pairs):
        raise ValueError(f"{name}: mask {list(mask.shape)} does not broadcast to {list(x.shape)}")


def npu_scaled_masked_softmax(
    x: Tensor, mask: Tensor, scale: float = 1, fixed_triu_mask: bool = False
) -> Tensor:
    """Softmax over the last axis of `scale * x`, with -10000 where `mask` is True.

    Args:
        x: Up to 4 dimensions, the last two multiples of 32 from 32 to 4096.
        mask: bool, broadcast to `x`.
        scale: Of `x`.
        fixed_triu_mask: Only False.
    """
    name = "npu_scaled_masked_softmax"
    require_floats(name, x=x)
    _check_softmax(name, x, mask, fixed_triu_mask)
    scores = (x.to(wide_dtype(x)) * scale).masked_fill(mask, MASKED)
    return torch.softmax(scores, -1).to(x.dtype)


def npu_scaled_masked_softmax_backward(
    y_grad: Tensor, y: Tensor, mask: Tensor, scale: float, fixed_triu_mask: bool
) -> Tensor:
    """The gradient of `x` from that of the result `y`; 0 where masked."""
    name = "npu_scaled_masked_softmax_backward"
    require_floats(name, y_grad=y_grad, y=y)
    require_shape(name, "y_grad", y_grad, tuple(y.shape))
    _check_softmax(name, y, mask, fixed_triu_mask)
    wide = wide_dtype(y_grad)
    grad, out = y_grad.to(wide), y.to(wide)
    d_scores = out * (grad - (grad * out).sum(-1, keepdim=True))
    return (d_scores.masked_fill(mask, 0.0) * scale).to(y_grad.dtype)


def _check_loss(
    name: str,
    table: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    lse_square_scale_for_zloss: float,
) -> None:
    require_choice(name, "reduction", reduction, ("mean", "sum", "none"))
    if lse_square_scale_for_zloss:
        why = "the operator does not support it yet"
        refuse(name, "lse_square_scale_for_zloss", lse_square_scale_for_zloss, why)
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"{name}: label_smoothing={label_smoothing}; give a value in [0, 1)")
    if table.ndim != 2 or not table.numel():
        raise ValueError(f"{name}: {list(table.shape)}; give [N, C], neither 0")
    require_shape(name, "target", target, (table.shape[0],))
    if target.dtype != torch.int64:
        raise TypeError(f"{name}: target is {target.dtype}; give int64")
    if int(target.min()) < 0 or int(target.max()) >= table.shape[1]:
        raise ValueError(f"{name}: target holds values outside 0 to {table.shape[1] - 1}")
    if weight is not None:
        require_shape(name, "weight", weight, (table.shape[1],))


def _row_weights(target: Tensor, weight: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Per row 1 or 0 for ignored, and the weight of its class, 0 for ignored."""
    counted = torch.ones_like(target, dtype=weight.dtype)
    if ignore_index >= 0:
        counted = (target != ignore_index).to(weight.dtype)
    return counted, weight[target] * counted


def npu_cross_entropy_loss(
    input: Tensor,  # noqa: A002 - the schema's name
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
    return_zloss: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross entropy with its log-probabilities.

    Args:
        input: Scores `[N, C]`.
        target: Classes `[N]`, int64, from 0 to C - 1.
        weight: Of the classes, `[C]`; ones if None.
        reduction: "mean" (by the weights of the rows), "sum" or "none".
        ignore_index: Rows of this class do not count; below 0 there is none.
        label_smoothing: Share of the loss that is the mean over all classes.
        lse_square_scale_for_zloss: Only 0.
        return_zloss: Only False.

    Returns:
        The loss, `[1]` or for "none" `[N]`; log-probabilities `[N, C]`; two empty tensors. All in
        the input's dtype.
    """
    name = "npu_cross_entropy_loss"
    require_floats(name, input=input, weight=weight)
    _check_loss(name, input, target, weight, reduction, label_smoothing, lse_square_scale_for_zloss)
    if return_zloss:
        refuse(name, "return_zloss", True, "the operator does not support it yet")
    wide = wide_dtype(input)
    log_prob = torch.log_softmax(input.to(wide), -1)
    classes = log_prob.new_ones(input.shape[1]) if weight is None else weight.to(wide)
    counted, rows = _row_weights(target, classes, ignore_index)
    of_target = -log_prob.gather(1, target.unsqueeze(1)).squeeze(1) * rows
    of_all = -(log_prob * classes).sum(-1) * counted
    loss = (1 - label_smoothing) * of_target + label_smoothing / input.shape[1] * of_all
    if reduction == "mean":
        loss = (loss.sum() / rows.sum()).reshape(1)
    elif reduction == "sum":
        loss = loss.sum().reshape(1)
    empty = input.new_empty(0)
    return loss.to(input.dtype), log_prob.to(input.dtype), empty, empty.clone()


def npu_cross_entropy_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    grad_zloss: Tensor | None = None,
    lse_for_zloss: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
) -> Tensor:
    """The gradient of the scores, `[N, C]`, in the dtype of `grad_loss`.

    `grad_zloss` and `lse_for_zloss` are not looked at: only a loss without them exists.
    """
    name = "npu_cross_entropy_loss_backward"
    require_floats(name, grad_loss=grad_loss, log_prob=log_prob, weight=weight)
    _check_loss(
        name, log_prob, target, weight, reduction, label_smoothing, lse_square_scale_for_zloss
    )
    count, width = log_prob.shape
    require_shape(name, "grad_loss", grad_loss, (count,) if reduction == "none" else (1,))
    wide = wide_dtype(log_prob)
    classes = log_prob.new_ones(width, dtype=wide) if weight is None else weight.to(wide)
    counted, rows = _row_weights(target, classes, ignore_index)
    probability = log_prob.to(wide).exp()
    hit = torch.zeros_like(probability).scatter_(1, target.unsqueeze(1), 1.0)
    grad = (1 - label_smoothing) * rows.unsqueeze(1) * (probability - hit)
    smooth = classes.sum() * probability - classes
    grad = grad + label_smoothing / width * counted.unsqueeze(1) * smooth
    outer = grad_loss.to(wide)
    if reduction == "mean":
        outer = outer / rows.sum()
    return (grad * outer.unsqueeze(-1)).to(grad_loss.dtype)
