"""The fused AdamW step.

Source: the formula in the tests of op-plugin's `npu_apply_adam_w`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel_kernels.vendor.npu.values import refuse, require_floats, require_shape, wide_dtype


def npu_apply_adam_w(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: Tensor,
    max_grad_norm: Tensor | None,
    amsgrad: bool | None,
    maximize: bool | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Without `out` the operator has nothing to update, and torch_npu raises as this does."""
    raise NotImplementedError(
        "npu_apply_adam_w: without out= the operator is not implemented; give out=[var, m, v]"
    )


def npu_apply_adam_w_out(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: Tensor,
    max_grad_norm: Tensor | None,
    amsgrad: bool | None,
    maximize: bool | None,
    *,
    out: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW, written into `out`.

    Args:
        beta1_power: `beta1` to the number of steps already taken: 1 for the first step. The
            operator multiplies it by `beta1` itself.
        beta2_power: Likewise for `beta2`.
        lr: Learning rate.
        weight_decay: Decoupled: `var` shrinks by `lr * weight_decay` of itself.
        beta1: Of the first moment.
        beta2: Of the second moment.
        epsilon: Added to the root of the corrected second moment.
        grad: The gradient.
        max_grad_norm: With `amsgrad` only.
        amsgrad: Only False or None.
        maximize: Whether to climb.
        out: The parameter and its two moments, of the gradient's shape; changed in place.

    Returns:
        The three of `out`.
    """
    name = "npu_apply_adam_w"
    if amsgrad:
        if max_grad_norm is None:
            raise ValueError(f"{name}: amsgrad=True needs max_grad_norm")
        refuse(name, "amsgrad", amsgrad, "the operator itself supports only False")
    if len(out) != 3:
        raise ValueError(f"{name}: out has {len(out)} tensors; give var, m and v")
    var, m, v = out
    require_floats(name, grad=grad, var=var, m=m, v=v)
    for label, tensor in (("var", var), ("m", m), ("v", v)):
        require_shape(name, label, tensor, tuple(grad.shape))
    wide = wide_dtype(var, grad)
    step = -grad.to(wide) if maximize else grad.to(wide)
    shrunk = var.to(wide) * (1 - lr * weight_decay)
    first = m.to(wide) * beta1 + step * (1 - beta1)
    second = v.to(wide) * beta2 + step.square() * (1 - beta2)
    root = torch.sqrt(second / (1 - beta2_power * beta2)) + epsilon
    var.copy_(shrunk - lr * (first / (1 - beta1_power * beta1)) / root)
    m.copy_(first)
    v.copy_(second)
    return var, m, v
