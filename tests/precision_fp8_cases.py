"""Plans for linear layers in eight bits, and what such a layer computes, in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from accel.precision.operand import GEMMS, OPERANDS, SLOTS, ModulePlan, OperandFormat, Role, Slot
from accel_kernels.fp8 import E4M3, E5M2, HIF8, Scaling, dequantize, quantize

BF16 = OperandFormat(dtype=torch.bfloat16)
FLOAT32 = OperandFormat(dtype=torch.float32)


def plan_of(
    given: Scaling | OperandFormat,
    *,
    weight: Scaling | OperandFormat | None = None,
    gradient: Scaling | OperandFormat | None = None,
    compute: torch.dtype = torch.float32,
    history: int = 0,
    name: str = "layer",
    **slots: Scaling | OperandFormat,
) -> ModulePlan:
    """A plan by role; single slots as `weight_gradient__input=...`."""
    roles = {"input": given, "weight": weight or given, "gradient": gradient or given}

    def form(item: Scaling | OperandFormat) -> OperandFormat:
        return OperandFormat(scaling=item, history=history) if isinstance(item, Scaling) else item

    formats = {slot: form(roles[slot.role]) for slot in SLOTS}
    for text, item in slots.items():
        gemm, _, role = text.partition("__")
        formats[Slot(gemm, role)] = form(item)
    return ModulePlan(name, "Linear", compute, formats, {})


TENSOR = Scaling(E4M3)
RECIPES = {
    "tensorwise": {"given": TENSOR, "gradient": Scaling(E5M2)},
    "rowwise": {"given": Scaling(E4M3, "row", "power_of_two")},
    "rowwise, weight gradient in bfloat16": {
        "given": Scaling(E4M3, "row", "power_of_two"),
        "weight_gradient__input": BF16,
        "weight_gradient__gradient": BF16,
    },
    "blocks": {"given": Scaling(E4M3, "1x128"), "weight": Scaling(E4M3, "128x128")},
    "mx": {"given": Scaling(E4M3, "1x32", "power_of_two")},
    "hifloat8": {"given": Scaling(HIF8, target=15.0), "gradient": Scaling(HIF8, target=224.0)},
    "delayed": {"given": TENSOR, "gradient": Scaling(E5M2), "history": 3},
}


class Results(NamedTuple):
    """A layer's output and gradients."""

    out: Tensor
    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def results_of(layer: nn.Linear, x: Tensor, gradient: Tensor) -> Results:
    """Run a layer forward and backward, on fresh gradients."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    out = layer(x)
    out.backward(gradient.to(out.dtype))
    bias = None if layer.bias is None else layer.bias.grad
    return Results(out.detach(), x.grad, layer.weight.grad, bias)


class Truth(NamedTuple):
    """A matrix product in float64, and the sum of its terms' magnitudes, which bounds its error."""

    value: Tensor
    size: Tensor


def truth(
    plan: ModulePlan, x: Tensor, weight: Tensor, bias: Tensor | None, gradient: Tensor, rounded=None
) -> dict[str, Truth]:
    """The three products of rounded operands, in float64, by name of the product.

    `rounded(values, format)` rounds a matrix whose rows are summed along; by default it is the
    codec's, and its results are exact in float64.
    """
    rounded = rounded or _rounded
    x, gradient = x.flatten(0, -2), gradient.flatten(0, -2)
    matrices = {
        "forward": (x, weight),
        "data_gradient": (gradient, weight.t()),
        "weight_gradient": (gradient.t(), x.t()),
    }
    found = {}
    for gemm in GEMMS:
        forms = [plan.slots[Slot(gemm, role)] for role in OPERANDS[gemm]]
        in_eight = all(form.is_fp8 for form in forms)
        plain = [form.dtype for form in forms if form.dtype is not None]
        dtype = None if in_eight else max(plain, key=lambda one: torch.finfo(one).bits)
        a, b = (
            rounded(values, form) if in_eight else values.to(dtype).double()
            for values, form in zip(matrices[gemm], forms, strict=True)
        )
        value, size = a @ b.t(), a.abs() @ b.abs().t()
        if gemm == "forward" and bias is not None:
            value, size = value + bias.double(), size + bias.double().abs()
        found[gemm] = Truth(value, size)
    return found


def _rounded(values: Tensor, form: OperandFormat) -> Tensor:
    assert form.scaling is not None
    return dequantize(quantize(values, form.scaling), torch.float64)


def assert_near(result: Tensor, expected: Truth, terms: int, rounding: float = 0.0) -> None:
    """Within float32 sums of `terms` addends, two roundings of scales, and one of the result."""
    assert result.shape == expected.value.shape or result.dim() == 3
    eps = torch.finfo(torch.float32).eps
    difference = (result.double().reshape(expected.value.shape) - expected.value).abs()
    # Blocked sums err far less than the bound of one term after the other, n eps / 2.
    bound = eps * (terms**0.5 + 4.0) * expected.size + rounding * expected.value.abs() + 1e-37
    assert bool((difference <= bound).all()), (difference / bound).max()


def states_equal(one: dict[Role, Tensor], other: dict[Role, Tensor]) -> bool:
    return all(torch.equal(one[role], other[role]) for role in one)
