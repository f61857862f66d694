"""One-hot rows, and reshapes fused with transposes. Source: op-plugin's pages of the operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel_kernels.vendor.npu.values import refuse


def npu_one_hot(
    input: Tensor,  # noqa: A002 - the schema's name
    num_classes: int = -1,
    depth: int = 1,
    on_value: float = 1,
    off_value: float = 0,
) -> Tensor:
    """`on_value` where the last, new axis equals the value of `input`, `off_value` elsewhere.

    Args:
        input: Classes of any shape.
        num_classes: The axis (so the operator calls it); only -1, the last.
        depth: Size of the new axis.
        on_value: At the class.
        off_value: Elsewhere, and everywhere for a class outside 0 to `depth` - 1.

    Returns:
        float32 `[*input.shape, depth]`.
    """
    name = "npu_one_hot"
    if num_classes != -1:
        why = "with another axis the operator's result has a shape that its page does not give"
        refuse(name, "num_classes", num_classes, why)
    if depth < 1:
        raise ValueError(f"{name}: depth={depth}; give at least 1")
    classes = torch.arange(depth, device=input.device)
    hit = input.to(torch.int64).unsqueeze(-1) == classes
    on, off = (torch.tensor(float(v), device=input.device) for v in (on_value, off_value))
    return torch.where(hit, on, off)


def npu_confusion_transpose(
    input: Tensor,  # noqa: A002 - the schema's name
    perm: Sequence[int],
    shape: Sequence[int],
    transpose_first: bool,
) -> Tensor:
    """`input.permute(perm).reshape(shape)`, or `input.reshape(shape).permute(perm)`."""
    if transpose_first:
        return input.permute(*perm).reshape(*shape).clone()
    return input.reshape(*shape).permute(*perm).contiguous().clone()


def npu_confusion_transpose_backward(
    grad: Tensor, perm: Sequence[int], shape: Sequence[int], transpose_first: bool
) -> Tensor:
    """The gradient, of shape `shape`, the input's.

    `transpose_first` is what autograd passes: the opposite of the forward's.
    """
    name = "npu_confusion_transpose_backward"
    if sorted(perm) != list(range(len(perm))):
        raise ValueError(f"{name}: perm={list(perm)}; give each axis once, from 0 on")
    inverse = [list(perm).index(axis) for axis in range(len(perm))]
    if transpose_first:
        return grad.permute(inverse).reshape(*shape).clone()
    if len(perm) != len(shape):
        raise ValueError(f"{name}: perm={list(perm)} and shape={list(shape)} differ in length")
    permuted = [shape[axis] for axis in perm]
    return grad.reshape(permuted).permute(inverse).contiguous().clone()
