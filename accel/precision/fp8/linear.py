"""The linear layer in eight bits: `nn.Linear` with another forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from accel.precision.fp8.function import LinearFunction, forward_product
from accel.precision.fp8.operands import Operand
from accel.precision.fp8.products import exactly
from accel.precision.fp8.state import LinearState
from accel.precision.modules import ModuleMixin

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Fp8Linear(ModuleMixin):
    """A mixin for `nn.Linear`, or a subclass that leaves its forward as it is.

    Parameters stay what they are, in their own dtype: the master weights of the optimizer. The
    state dict is that of the plain layer.

    Attributes:
        fp8: Its state.
    """

    swapped_state: ClassVar[tuple[str, ...]] = ("fp8",)

    fp8: LinearState
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        """See `fp8_linear`."""
        return fp8_linear(input, self.weight, self.bias, self.fp8)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moving the layer moves its state; no cast of the layer casts it."""
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        self.fp8.to(self.weight.device)
        return result


def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None, state: LinearState) -> Tensor:
    """`x @ weight.T + bias`, its products in the formats of `state`, and so the gradients.

    What is not finite is never hidden by saturation: it makes the results that depend on it NaN.

    Args:
        x: `[..., K]`, float32, bfloat16 or float16; any leading dimensions, empty ones too.
        weight: `[N, K]`, of such a dtype.
        bias: `[N]` or None; added in float32.
        state: Formats, scales and measurements.

    Returns:
        `[..., N]` in `state.compute`, whatever autocast says.

    Raises:
        TypeError: A dtype is another.
        ValueError: The shapes do not fit.
    """
    _check(x, weight, bias)
    if state.device != x.device:
        state.to(x.device)
    rows = x.reshape(-1, x.shape[-1])
    state.rows = rows.shape[0]
    if not torch.is_grad_enabled():
        with exactly(rows):
            inputs = Operand(rows, "input", state), Operand(weight, "weight", state)
            out = forward_product(*inputs, bias)
    else:
        out = LinearFunction.apply(rows, weight, bias, state)
    return out.view(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("input", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in _DTYPES:
            raise TypeError(
                f"a linear layer in eight bits takes float32, bfloat16 or float16, but its {name} "
                f"is {tensor.dtype}: cast it, or give the layer a rule such as name=float32 and "
                "restore it for float64"
            )
    if not x.dim() or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"the input {list(x.shape)} does not end in the {weight.shape[-1]} features of the "
            f"weight {list(weight.shape)}"
        )
