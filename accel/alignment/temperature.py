"""The learned scale and bias of the logits, held within bounds without losing their gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

SOFTMAX_SCALE = 1 / 0.07
"""Initial scale of CLIP (arXiv 2103.00020, section 2.5), 14.3."""
SIGMOID_SCALE = 10.0
"""Initial scale of SigLIP (arXiv 2303.15343, section 3.2)."""
SIGMOID_BIAS = -10.0
"""Initial bias of SigLIP, the same section: nearly all pairs of a batch are negatives."""


class _Bounded(nn.Module):
    """A number `[1]` within bounds, whose gradient is alive wherever a step leads inward."""

    def __init__(
        self, name: str, init: float, bounds: tuple[float, float], learnable: bool
    ) -> None:
        super().__init__()
        self._name, self.bounds = name, bounds
        parameter = nn.Parameter(torch.tensor([init], dtype=torch.float32), requires_grad=learnable)
        self.register_parameter(name, parameter)

    def _clamped(self, low: float, high: float) -> Tensor:
        clamped: Tensor = _LiveClamp.apply(getattr(self, self._name), low, high)
        return clamped.reshape(())

    def extra_repr(self) -> str:
        """The bounds, and whether it is learned."""
        return f"bounds={self.bounds}, learnable={getattr(self, self._name).requires_grad}"


class Temperature(_Bounded):
    """A scale of logits, `exp(log_scale)`, held within bounds.

    CLIP clamps the parameter in place after each step; a clamp in the forward alone, as in
    ImageBind, has no gradient at the bound, so that a scale which has reached it stays there. Here
    the forward clamps, and its gradient is alive wherever a step against it leads inward; where a
    step would lead further out it is zero, so that the parameter cannot run away.

    The parameter is `[1]` and not `[]`, since FSDP2 shards no scalars. Leave it out of weight
    decay, which would pull the scale towards 1.

    Args:
        init: The scale at first.
        bounds: Least and greatest scale, both positive.
        learnable: False: the parameter asks for no gradient.

    Attributes:
        log_scale: `[1]` float32, the parameter.
        bounds: As given.

    Raises:
        ValueError: The bounds are not positive and in order, or `init` is outside.
    """

    log_scale: nn.Parameter

    def __init__(
        self,
        init: float = SOFTMAX_SCALE,
        bounds: tuple[float, float] = (1.0, 100.0),
        learnable: bool = True,
    ) -> None:
        _check("Temperature", init, bounds)
        if bounds[0] <= 0.0:
            raise ValueError(f"the bounds of a Temperature must be above 0, not {bounds}")
        super().__init__("log_scale", math.log(init), bounds, learnable)

    def forward(self) -> Tensor:
        """The scale, `[]`, in the parameter's dtype."""
        low, high = self.bounds
        return self._clamped(math.log(low), math.log(high)).exp()


class Bias(_Bounded):
    """What is added to every logit of a sigmoid loss, held within bounds as a `Temperature` is.

    Args:
        init: The bias at first.
        bounds: Least and greatest.
        learnable: False: the parameter asks for no gradient.

    Attributes:
        bias: `[1]` float32, the parameter.
        bounds: As given.

    Raises:
        ValueError: The bounds are not in order, or `init` is outside.
    """

    bias: nn.Parameter

    def __init__(
        self,
        init: float = SIGMOID_BIAS,
        bounds: tuple[float, float] = (-100.0, 100.0),
        learnable: bool = True,
    ) -> None:
        _check("Bias", init, bounds)
        super().__init__("bias", init, bounds, learnable)

    def forward(self) -> Tensor:
        """The bias, `[]`, in the parameter's dtype."""
        return self._clamped(*self.bounds)


class _LiveClamp(torch.autograd.Function):
    # Separate from the forward, so that functional transforms see it too.
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: float, high: float) -> Tensor:
        return value.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        value, low, high = inputs
        ctx.save_for_backward(value)
        ctx.bounds = low, high

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (value,), (low, high), (grad,) = ctx.saved_tensors, ctx.bounds, grads
        # A step goes against the gradient. NaN is neither and goes through.
        outward = ((value >= high) & (grad < 0)) | ((value <= low) & (grad > 0))
        return grad.masked_fill(outward, 0.0), None, None


def _check(name: str, init: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not low < high:
        raise ValueError(f"the bounds of a {name} must be (least, greatest), not {bounds}")
    if not low <= init <= high:
        raise ValueError(f"{name} begins at {init}, outside of its bounds {bounds}; widen them")
