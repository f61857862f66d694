"""What one linear layer in eight bits keeps between steps; no parameter and no buffer of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from accel.precision.controller.statistics import COLUMNS
from accel.precision.operand import GEMMS, OPERANDS, ROLES, ModulePlan, OperandFormat, Role, Slot

NOT_MEASURED = -1.0


class LinearState:
    """Formats, scales of delayed scaling and measurements of one layer.

    The layer reads it in every forward, also in compiled code: a change of `formats`, `probes` or
    `collect` compiles the layer once more, and going back does not. It is changed between steps,
    not between a forward and its backward.

    A forward that is computed again by activation checkpointing changes nothing: everything that
    is kept within a step is a maximum, and the scales of a step follow from steps before.

    Attributes:
        plan: What the policy gave to the layer.
        formats: Format of each operand now, at first the plan's.
        compute: Dtype of the layer's output, and of the products not in eight bits by the policy.
        promote: Partial sums of a product over that many of K are added apart in float32; None:
            the sum is one.
        collect: Whether forward and backward measure `probes`.
        guarded: Whether `pending` is kept of inputs and gradients that no delayed scaling needs.
        probes: Formats to measure each operand in, whether it is computed in them or not; at first
            those of eight bits in the plan.
        statistics: Of each operand float32 `[len(probes), 6]`, columns as in the controller's
            `OperandStatistics`; the largest of each since `reset_statistics`, or `NOT_MEASURED`.
        pending: The largest finite magnitude of each operand in this step.
        supposed: The largest of the steps before, which delayed scaling supposes; 0 if unknown.
        history: float32 `[steps]`, the largest of each of them, in turns.
        rows: Rows `[rows, K]` of the last forward's input.
        features: `(K, N)`.
    """

    def __init__(self, plan: ModulePlan, features: tuple[int, int], device: torch.device) -> None:
        missing = [f"{gemm}/{role}" for gemm in GEMMS for role in OPERANDS[gemm]
                   if Slot(gemm, role) not in plan.slots]  # fmt: skip
        if missing:
            raise ValueError(
                f"the plan of {plan.name!r} gives no format to {', '.join(missing)}: a linear "
                "layer needs one for each operand"
            )
        self.plan = plan
        self.formats: dict[Slot, OperandFormat] = dict(plan.slots)
        self.compute = plan.compute
        self.promote: int | None = None
        self.collect = self.guarded = False
        self.features = features
        self.rows = 0
        self.device = device
        self.probes: dict[Role, tuple[OperandFormat, ...]] = {}
        self.statistics: dict[Role, Tensor] = {}
        self.pending: dict[Role, Tensor] = {}
        self.supposed: dict[Role, Tensor] = {}
        self.history: dict[Role, Tensor] = {}
        self.steps = 0
        for role in ROLES:
            slots = [item for slot, item in plan.slots.items() if slot.role == role]
            self.set_probes(role, tuple(dict.fromkeys(item for item in slots if item.is_fp8)))
            length = max(item.history for item in slots)
            self.pending[role] = torch.zeros((), device=device)
            self.supposed[role] = torch.zeros((), device=device)
            self.history[role] = torch.zeros(length, device=device)

    @property
    def flops(self) -> int:
        """Of the last forward's product; the backward has two such products."""
        return 2 * self.rows * self.features[0] * self.features[1]

    def set_probes(self, role: Role, probes: tuple[OperandFormat, ...]) -> None:
        """Measure an operand in other formats from now on; what was measured is forgotten."""
        self.probes[role] = probes
        self.statistics[role] = torch.full((len(probes), COLUMNS), NOT_MEASURED, device=self.device)

    def reset_statistics(self) -> None:
        """Forget what was measured."""
        for found in self.statistics.values():
            found.fill_(NOT_MEASURED)

    def to(self, device: torch.device) -> None:
        """Move to the layer's device."""
        self.device = device
        for kept in (self.statistics, self.pending, self.supposed, self.history):
            for role, tensor in kept.items():
                kept[role] = tensor.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What delayed scaling needs to go on; clones."""
        kept = {"pending": self.pending, "supposed": self.supposed, "history": self.history}
        return {
            "steps": self.steps,
            **{name: {role: tensor.clone() for role, tensor in one.items()}
               for name, one in kept.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: It is not that, or was saved with histories of other lengths; nothing has
                changed then.
        """
        kept = {"pending": self.pending, "supposed": self.supposed, "history": self.history}
        if not isinstance(state, Mapping) or set(state) != {"steps", *kept}:
            raise ValueError(
                f"the state of the layer {self.plan.name!r} is not one of LinearState.state_dict"
            )
        steps = state["steps"]
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise ValueError(f"the steps of {self.plan.name!r} are a count, not {steps!r}")
        for name, one in kept.items():
            for role in ROLES:
                _check_saved(f"{self.plan.name}: {name} of {role}", state[name], role, one[role])
        self.steps = steps
        for name, one in kept.items():
            for role in ROLES:
                one[role].copy_(state[name][role])

    def __deepcopy__(self, memo: dict[int, Any]) -> LinearState:
        """Plan and formats are immutable and shared; tensors are copied."""
        twin = object.__new__(LinearState)
        memo[id(self)] = twin
        for name, value in vars(self).items():
            if name in ("plan", "formats", "probes"):
                setattr(twin, name, copy.copy(value))
            else:
                setattr(twin, name, copy.deepcopy(value, memo))
        return twin


def _check_saved(what: str, saved: Any, role: Role, own: Tensor) -> None:
    found = saved.get(role) if isinstance(saved, Mapping) else None
    if not isinstance(found, Tensor) or found.dtype != own.dtype or found.shape != own.shape:
        given = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise ValueError(
            f"{what} must be {own.dtype} {list(own.shape)}, not {given}: resume with the policy "
            "of the checkpoint"
        )
