"""Put a model's linear layers under their plans, and take them out again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from accel.precision.fp8.linear import Fp8Linear
from accel.precision.fp8.products import plain_dtype
from accel.precision.fp8.state import LinearState
from accel.precision.modules import restore, swap_class
from accel.precision.operand import GEMMS, ModulePlan


def convert_linear(module: nn.Module, plan: ModulePlan) -> LinearState:
    """Compute a linear layer by a plan from now on.

    Args:
        module: An `nn.Linear` with that class's own forward. Its class changes, nothing else.
        plan: A format for each operand of its three products.

    Returns:
        Its state, also in `module.fp8`.

    Raises:
        TypeError: The module is no such layer, or in eight bits already.
        ValueError: The plan lacks a format, or the weight is not float32, bfloat16 or float16.
    """
    if isinstance(module, Fp8Linear):
        raise TypeError(f"{plan.name!r} is converted already: restore it first")
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise TypeError(
            f"{plan.name!r} is {type(module).__name__}, not an nn.Linear with its own forward: "
            "only that can be computed in eight bits; give it a rule with a dtype"
        )
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise TypeError(
            f"{plan.name!r} belongs to nn.MultiheadAttention, which reads its weight and never "
            "calls it: give it a rule with a dtype"
        )
    weight = module.weight
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"the weight of {plan.name!r} is {weight.dtype}; a layer in eight bits is made of "
            "float32, bfloat16 or float16"
        )
    state = LinearState(plan, (module.in_features, module.out_features), weight.device)
    swap_class(module, Fp8Linear)
    module.fp8 = state  # type: ignore[assignment]
    return state


def convert_linears(model: nn.Module, plans: Iterable[ModulePlan]) -> dict[str, LinearState]:
    """Convert each linear layer that computes a product in eight bits; all of them or none.

    Args:
        model: Its other modules stay as they are.
        plans: By qualified name; those without a product in eight bits are passed over.

    Returns:
        The states by name.

    Raises:
        TypeError: See `convert_linear`; nothing is converted then.
        ValueError: So too.
    """
    modules = dict(model.named_modules())
    states: dict[str, LinearState] = {}
    try:
        for plan in plans:
            if any(plain_dtype(plan.slots, gemm) is None for gemm in GEMMS if plan.slots):
                states[plan.name] = convert_linear(_named(modules, plan.name), plan)
    except (TypeError, ValueError):
        for name in states:
            restore(modules[name], Fp8Linear)
        raise
    return states


def _named(modules: dict[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise ValueError(f"the model has no module {name!r}: resolve the policy with this model")
    return modules[name]


def linear_states(model: nn.Module) -> dict[str, LinearState]:
    """The states of a model's converted layers by name."""
    return {
        name: module.fp8 for name, module in model.named_modules() if isinstance(module, Fp8Linear)
    }


def restore_linears(model: nn.Module) -> None:
    """Make every converted layer a plain one again; weights stay as they were trained."""
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            restore(module, Fp8Linear)
