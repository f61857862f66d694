"""Attributes that the program itself changes: the kernels are right, the call is another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.fault_zoo.faults import Kind, Strength
from benchmarks.fault_zoo.models import Attention, ModelName
from benchmarks.fault_zoo.traces import Observed, Place, Trace
from benchmarks.fault_zoo.workload import Workload


@dataclass(frozen=True)
class Change:
    """One attribute of a program, changed; see `Fault` for the fields."""

    name: str
    kind: Kind
    model: ModelName
    summary: str
    strengths: tuple[Strength, Strength, Strength]
    prepare: Callable[[Workload, float], None]


def _module(workload: Workload, kind: type[nn.Module]) -> Any:
    """The second module of a kind."""
    return [module for module in workload.model.modules() if isinstance(module, kind)][1]


def _eps(workload: Workload, strength: float) -> None:
    _module(workload, nn.LayerNorm).eps = strength


def _scale(workload: Workload, strength: float) -> None:
    _module(workload, Attention).scale *= 1 + strength


def _momentum(workload: Workload, strength: float) -> None:
    _module(workload, nn.BatchNorm2d).momentum = strength


def _decay(workload: Workload, strength: float) -> None:
    workload.optimizer.param_groups[0]["weight_decay"] = strength


CHANGES = (
    Change(
        "program: norm eps",
        "attribute",
        "gpt",
        "one layer norm of the program has another eps than 1e-5",
        (Strength(1.001e-5, "1.001e-5"), Strength(1e-6, "1e-6"), Strength(1e-3, "1e-3")),
        _eps,
    ),
    Change(
        "program: attention scale",
        "attribute",
        "gpt",
        "one attention of the program has another scale",
        (Strength(1e-6, "1e-6 more"), Strength(1e-3, "0.1 % more"), Strength(0.1, "10 % more")),
        _scale,
    ),
    Change(
        "program: norm momentum",
        "attribute",
        "cnn",
        "one batch norm of the program has another momentum than 0.1",
        (Strength(0.1001, "0.1001"), Strength(0.11, "0.11"), Strength(0.5, "0.5")),
        _momentum,
    ),
    Change(
        "program: weight decay",
        "optimizer",
        "gpt",
        "the optimizer of the program has another weight decay than 0.1",
        (Strength(0.1001, "0.1001"), Strength(0.11, "0.11"), Strength(0.0, "0")),
        _decay,
    ),
)


def called_otherwise(right: Trace, wrong: Trace) -> set[Place]:
    """The calls whose plain arguments differ between two runs of one program."""
    return {
        place
        for place, seen in wrong.calls.items()
        if place in right.calls and _plain(seen) != _plain(right.calls[place])
    }


def _plain(seen: Observed) -> list[object]:
    leaves = tree_leaves((seen.call.args, seen.call.kwargs))
    return [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
