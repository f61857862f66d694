"""A resolved policy put on a model, and taken off it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from accel.precision.fp8 import LinearState, convert_linear
from accel.precision.modules import apply_plan, restore
from accel.precision.operand import ModulePlan, OperandFormat
from accel.precision.policy import Policy
from accel.precision.policy.resolve import Resolution


class Application:
    """What was changed of a model, so that it computes by a policy.

    A linear layer one of whose operands differs from its compute dtype becomes a layer in eight
    bits (which computes any mixture of formats); any other module whose dtype differs from the
    policy's gets a region of its own. The rest is autocast's.

    Args:
        resolution: Of the model, and not changed since.

    Attributes:
        layers: The states of the layers in eight bits, by qualified name without what wrappers
            such as `torch.compile` and DDP add.

    Raises:
        TypeError: A module cannot be changed, such as one of TorchScript; none is changed then.
        ValueError: A weight has a dtype that eight bits are not made of; so too.
    """

    def __init__(self, resolution: Resolution) -> None:
        self.layers: dict[str, LinearState] = {}
        self._undo: list[Callable[[], object]] = []
        try:
            modules, names = resolution.modules, resolution.plain_names
            for name, plan in resolution.items():
                self._apply(modules[name], names[name], plan, resolution.compute)
        except (TypeError, ValueError):
            self.remove()
            raise

    def _apply(self, module: nn.Module, name: str, plan: ModulePlan, compute: torch.dtype) -> None:
        if _is_mixed(plan):
            self.layers[name] = convert_linear(module, plan)
        elif plan.compute != compute:
            apply_plan(module, plan)
        else:
            return
        self._undo.append(lambda: restore(module))

    def return_in(self, model: nn.Module, policy: Policy) -> None:
        """Let the model return what is floating-point in the policy's output dtype, if it has one.

        Where a policy does not name it, outputs stay as the model makes them.
        """
        if policy.output == policy.compute:
            return

        def cast(module: nn.Module, inputs: Any, result: Any) -> Any:
            def convert(value: Any) -> Any:
                narrow = isinstance(value, Tensor) and value.is_floating_point()
                return value.to(policy.output) if narrow else value

            return tree_map(convert, result)

        self._undo.append(model.register_forward_hook(cast).remove)

    def remove(self) -> None:
        """Make every module again what it was; parameters stay as they were trained."""
        while self._undo:
            self._undo.pop()()
        self.layers.clear()


def _is_mixed(plan: ModulePlan) -> bool:
    return any(given != OperandFormat(dtype=plan.compute) for given in plan.slots.values())
