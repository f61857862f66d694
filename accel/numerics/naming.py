"""Which module a divergence is blamed on, given the first tensors that are out of budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accel.numerics.entries import Key
from accel.numerics.judgement import Judged


@dataclass(frozen=True)
class Divergence:
    """Where two runs begin to differ by more than rounding.

    Attributes:
        module: Path of the module at fault, empty for the model itself.
        module_class: Its class.
        where: Which tensor shows it, and what lies between it and the last good one.
        reason: What is wrong with that tensor.
        key: That tensor; None if a whole module is missing on one side.
    """

    module: str
    module_class: str
    where: str
    reason: str
    key: Key | None

    @property
    def name(self) -> str:
        """The module's path and class, for people."""
        path = self.module or "(the model itself)"
        return f"{path} ({self.module_class})" if self.module_class else path


def first_divergence(judged: Sequence[Judged], classes: dict[str, str]) -> Divergence | None:
    """Name the first module out of budget.

    A module whose inputs are in order and whose output is not is at fault. Where a module's
    *input* is the first thing wrong, the fault lies in code of the module around it (a functional
    attention between two layers). Gradients likewise, backwards: a module whose outputs' gradients
    are in order and whose input's gradient is not is at fault.

    Args:
        judged: Everything, in execution order.
        classes: The class of each module path.
    """
    first = next((one for one in judged if one.status == "out"), None)
    if first is None:
        return None
    key = first.measured.key
    module, where = _blamed(first, judged)
    return Divergence(module, classes.get(module, ""), where, first.reason, key)


def _blamed(first: Judged, judged: Sequence[Judged]) -> tuple[str, str]:
    key = first.measured.key
    name = key.module or "the model"
    if key.phase == "forward":
        return key.module, f"its output {key.path} in call {key.call}"
    if key.phase == "input":
        where = f"its own code before {name}: input {key.path} of that, call {key.call},"
        return _parent(key.module), where
    if key.phase == "parameter_gradient":
        return key.module, f"the gradient of its {key.path} in step {key.call}"
    return _blamed_backward(first, judged)


def _blamed_backward(first: Judged, judged: Sequence[Judged]) -> tuple[str, str]:
    digest = first.measured.candidate.digest
    consumers = [
        one.measured.key
        for one in judged
        if one.status == "out"
        and one.measured.key.phase == "input_gradient"
        and one.measured.candidate.digest == digest
    ]
    if consumers:
        # The innermost module that took the tensor in: of a block and its first layer, the layer.
        key = max(consumers, key=lambda one: one.module.count(".") + bool(one.module))
        return key.module, f"its backward: the gradient of input {key.path} in call {key.call}"
    key = first.measured.key
    where = f"the backward of its own code after {key.module or 'the model'}: the gradient of"
    return _parent(key.module), f"{where} output {key.path} of that, call {key.call},"


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
