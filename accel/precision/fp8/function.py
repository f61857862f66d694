"""A linear layer whose three products are computed in the formats of its state.

`y = x @ w.T + b`, `dx = g @ w`, `dw = g.T @ x`: each operand is quantized along what its product
sums over, from the tensor in full precision. The gradient passes through quantization as it is
(straight-through: Bengio et al., arXiv 1308.3432, section 4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.precision.fp8.operands import Operand
from accel.precision.fp8.products import exactly, product
from accel.precision.fp8.state import LinearState
from accel_kernels.fp8 import Quantized


def forward_product(x: Operand, weight: Operand, bias: Tensor | None) -> Tensor:
    """`[M, K]` and `[N, K]` to `[M, N]`, in the layer's compute dtype."""
    state = x.state
    return product(x.of("forward"), weight.of("forward"), state.compute, bias, state.promote)


class LinearFunction(torch.autograd.Function):
    """The layer with its gradients: `apply(x [M, K], weight [N, K], bias [N] or None, state)`."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, state: LinearState
    ) -> Tensor:
        """Keep what the backward needs: of the input what enters the weight's gradient."""
        with exactly(values):
            x, w = Operand(values, "input", state), Operand(weight, "weight", state)
            x.observe()
            w.observe()
            out = forward_product(x, w, bias)
            kept = x.of("weight_gradient", transposed=True) if ctx.needs_input_grad[1] else None
        ctx.state = state
        ctx.dtypes = values.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.scaling = kept.scaling if isinstance(kept, Quantized) else None
        codes, scales = kept[:2] if isinstance(kept, Quantized) else (kept, None)
        needed = ctx.needs_input_grad[0]
        ctx.save_for_backward(codes, scales, weight if needed else None, w.amax if needed else None)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are asked for; of the weight in its own dtype, from float32 sums."""
        codes, scales, weight, amax = ctx.saved_tensors
        state: LinearState = ctx.state
        needs = ctx.needs_input_grad
        dtypes = ctx.dtypes
        results: list[Tensor | None] = [None, None, None]
        with torch.no_grad(), exactly(gradient):
            g = Operand(gradient, "gradient", state)
            g.observe()
            if needs[0]:
                w = Operand(weight, "weight", state, amax).of("data_gradient", transposed=True)
                left = g.of("data_gradient")
                results[0] = product(left, w, dtypes[0], promote=state.promote)
            if needs[1]:
                x = codes if scales is None else Quantized(codes, scales, ctx.scaling)
                left = g.of("weight_gradient", transposed=True)
                results[1] = product(left, x, dtypes[1], promote=state.promote)
            if needs[2]:
                results[2] = gradient.sum(0, dtype=torch.float32).to(dtypes[2])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A leaf of its own, so that no derivative is dropped where the gradient has none.
            leaf = torch.zeros((), device=gradient.device, requires_grad=True)
            results = [None if one is None else _Once.apply(one, gradient, leaf) for one in results]
        return (*results, None)


class _Once(torch.autograd.Function):
    """Refuses the derivative of a gradient: it would be that of a staircase, zero or infinite."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, gradient: Tensor, leaf: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise ValueError(
            "the gradients of a linear layer in eight bits have no derivative themselves: for "
            "double backward give the layer a rule such as name=bfloat16, or restore it"
        )
