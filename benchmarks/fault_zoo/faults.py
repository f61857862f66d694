"""What a fault is, and the mode that makes one operator's kernel faulty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.fault_zoo.models import ModelName
from benchmarks.fault_zoo.roundings import BF16
from benchmarks.fault_zoo.workload import equal_bits

Kind = Literal[
    "forward value",
    "gradient only",
    "accumulation dtype",
    "mask or index",
    "attribute",
    "optimizer",
    "collective",
]
KINDS: tuple[Kind, ...] = (
    "forward value",
    "gradient only",
    "accumulation dtype",
    "mask or index",
    "attribute",
    "optimizer",
    "collective",
)


class Strength(NamedTuple):
    """How strong a fault is: a number that its kernel takes, and what it means."""

    value: float
    label: str


class Call(NamedTuple):
    """A call of a kernel: the operator, and its arguments in place."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def right(self) -> Any:
        """What the right kernel gives; writes to the arguments that the operator writes to.

        A collective is waited for: what it wrote has arrived.
        """
        result = self.func(*self.args, **self.kwargs)
        if self.is_collective:
            from torch._C._distributed_c10d import Work

            Work.unbox(result[1]).wait()
        return result

    @property
    def is_collective(self) -> bool:
        """Whether other processes take part."""
        return str(self.func._schema.name).startswith("c10d::")

    @property
    def is_written(self) -> bool:
        """Whether its results are in its arguments, and what it returns is them again."""
        return self.is_collective or bool(self.func._schema.is_mutable)

    @property
    def is_double(self) -> bool:
        """Whether it computes in float64: a truth, not a kernel of the run."""
        leaves = tree_leaves((self.args, self.kwargs))
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in leaves)

    def copied(self) -> Call:
        """The same call with copies of its tensors."""
        copy = tree_map_only(Tensor, _copy, (self.args, self.kwargs))
        return Call(self.func, *copy)


class Altered(NamedTuple):
    """A call that a fault changed: the operator and how many calls of it came before."""

    operator: str
    occurrence: int


Kernel = Callable[[Call, float], Any]


@dataclass(frozen=True)
class Fault:
    """A kernel with a known fault.

    Attributes:
        name: Short and unique.
        kind: Which class of faults it belongs to.
        model: On which model it is shown.
        operator: The operator whose kernel is faulty: `aten::gelu`.
        summary: What is wrong, in one line.
        strengths: Three of them, the weakest first.
        kernel: Gives the faulty result; for an operator that writes to its arguments it writes.
        where: Which calls of the operator are faulty, by how many came before and the call; all
            of them unless given.
        neutral: The strength at which the kernel has no fault. A kernel that computes everything
            itself rounds otherwise than torch's; only what the fault adds to that counts. None for
            one that changes the arguments or the result of torch's kernel.
    """

    name: str
    kind: Kind
    model: ModelName
    operator: str
    summary: str
    strengths: tuple[Strength, Strength, Strength]
    kernel: Kernel
    where: Callable[[int, Call], bool] = lambda occurrence, call: True
    neutral: float | None = None


class Injector(TorchDispatchMode):
    """Makes a fault happen in every call below it, as a faulty kernel would.

    Enter it before the recorder, so that it lies below: the recorder then sees the operator as the
    program asked for it, and the faulty result as the kernel's.

    Attributes:
        where: Which calls are faulty; the fault's own unless set.
        altered: The calls whose result differs by at least one bit from the right one, and from
            that of the same kernel without the fault.
    """

    def __init__(self, fault: Fault, strength: float) -> None:
        super().__init__()
        self.fault, self.strength, self.where = fault, strength, fault.where
        self.altered: list[Altered] = []
        self._seen = 0

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = Call(func, args, kwargs or {})
        if func._schema.name != self.fault.operator:
            return call.right()
        occurrence, self._seen = self._seen, self._seen + 1
        if not self.where(occurrence, call):
            return call.right()
        changed, result = faulty(call, self.fault, self.strength)
        if changed:
            self.altered.append(Altered(self.fault.operator, occurrence))
        return result


def faulty(call: Call, fault: Fault, strength: float) -> tuple[bool, Any]:
    """What the faulty kernel gives, and whether the fault changes a bit."""
    right = call.copied()
    others = [(right, right.right())]
    if fault.neutral is not None:
        twin = call.copied()
        others.append((twin, _result(twin, fault, fault.neutral, others[0][1])))
    result = _result(call, fault, strength, others[0][1])
    # Arguments too: batch norm writes to its running statistics without saying so.
    changed = all(_differ((other, one[1:]), (result, call[1:])) for one, other in others)
    return changed, result


def _result(call: Call, fault: Fault, strength: float, right: Any) -> Any:
    result = fault.kernel(call, strength)
    return result if call.is_written else tree_like(right, result)


def tree_like(right: Any, result: Any) -> Any:
    """The tensors of `result` with dtype and strides of those of `right`; None stays None."""
    if isinstance(right, Tensor):
        if result is None:
            return right
        if right.dtype == torch.bfloat16 and result.dtype == torch.float64:
            # Rounded once: a copy of float64 to bfloat16 goes by way of float32.
            result = BF16(result)
        return torch.empty_like(right).copy_(result)
    if isinstance(right, (tuple, list)):
        pairs = zip(right, result, strict=True)
        return type(right)([tree_like(one, other) for one, other in pairs])
    return right


def _differ(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return any(isinstance(a, Tensor) and not equal_bits(a, b) for a, b in pairs)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
