"""All faults of the zoo, and which of them change a run."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from benchmarks.fault_zoo import (
    faults_accumulation,
    faults_forward,
    faults_gradient,
    faults_index,
    faults_optimizer,
)
from benchmarks.fault_zoo.faults import Altered, Fault, Injector, Strength
from benchmarks.fault_zoo.workload import Precision, Workload, same_bits

FAULTS: tuple[Fault, ...] = (
    *faults_forward.FORWARD,
    *faults_gradient.FAULTS,
    *faults_accumulation.FAULTS,
    *faults_index.FAULTS,
    *faults_forward.ATTRIBUTE,
    *faults_optimizer.FAULTS,
)


class Case(NamedTuple):
    """A fault at one strength in one precision."""

    fault: Fault
    strength: Strength
    precision: Precision

    def __str__(self) -> str:
        return f"{self.fault.name} ({self.strength.label}, {self.precision})"


class Effect(NamedTuple):
    """What a fault does to a run, before any rule is asked.

    Attributes:
        effective: Whether a loss, gradient, weight, buffer or optimizer state has another bit.
        altered: The calls whose own result it changed.
    """

    effective: bool
    altered: tuple[Altered, ...]


def effect(case: Case) -> Effect:
    """Run a step with and without the fault; with the faulty kernel less its fault, too."""
    fault = case.fault
    right = Workload(fault.model, case.precision)
    right.step()
    others = [right.results()]
    if fault.neutral is not None:
        others.append(_run(case, fault.neutral)[0])
    wrong, altered = _run(case, case.strength.value)
    changed = not any(same_bits(other, wrong) for other in others)
    return Effect(changed and bool(altered), altered)


def _run(case: Case, strength: float) -> tuple[dict[str, Tensor], tuple[Altered, ...]]:
    workload = Workload(case.fault.model, case.precision)
    injector = Injector(case.fault, strength)
    with injector:
        workload.step()
    return workload.results(), tuple(injector.altered)
