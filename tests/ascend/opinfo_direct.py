"""Calls of kernels that no OpInfo reaches: other overloads of recorded calls, and a written table.

A kernel such as `aten::avg_pool2d_backward.grad_input` has no function in Python. Its operands are
those of a call that OpInfo's samples made of another overload (`aten::avg_pool2d_backward`), by
name. What is left has its operands written here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from accel.simulate.operators import registration
from tests.ascend import opinfo
from tests.ascend.opinfo_compare import CPU, Rule, Tree, compare, gradients, on, tensors
from tests.ascend.opinfo_formulas import FORMULAS
from tests.ascend.opinfo_written import HOST_RESULTS, WRITTEN

DEVICE_KEY = registration.DEVICE_KEY


class Direct(NamedTuple):
    """A call of an operator by its full name; the tree's first part is not used.

    Attributes:
        name: The operator.
        tree: Its operands.
        rule: How the results are held to each other.
        formula: What the CPU computes instead, where it has no kernel.
        call: What the chip calls instead of the operator itself.
    """

    name: str
    tree: Tree
    rule: Rule = Rule()
    formula: Callable[..., Any] | None = None
    call: Callable[..., Any] | None = None

    def check(self) -> tuple[str | None, set[str]]:
        """Compare on both devices: how they differ, or None, and the kernels reached."""
        formula = self.formula
        reference = None if formula is None else lambda tree: formula(*tree[1], **tree[2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            miss, reached = compare(self._run, self.tree, self.rule, reference)
        if miss is None and registration.kinds()[self.name, DEVICE_KEY] == "control":
            reached.add(self.name)
        return miss, reached

    def _run(self, tree: Tree) -> Any:
        if self.call is not None:
            return self.call(*tree[1], **tree[2])
        operator = registration.find_operator(self.name)
        # Below autograd, where the kernels of composite operators are.
        with torch.inference_mode():
            result = operator(*tree[1], **tree[2])
        if self.formula is not None:
            return result
        bound = _bind(operator, tree[1], tree[2])
        written = [
            bound[argument.name]
            for argument in operator._schema.arguments
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and argument.name in bound
        ]
        return result, written


class _Recording(TorchDispatchMode):
    """Keeps the operands of the first call of every operator."""

    def __init__(self, calls: dict[str, Tree]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.name() not in self._calls:
            self._calls[func.name()] = (None, *_detached((args, kwargs)))
        return func(*args, **kwargs)


def _detached(tree: Any) -> Any:
    with torch._C._DisableTorchDispatch():
        return pytree.tree_map(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree
        )


def recorded_calls(pairs: Iterable[opinfo.Pair], most_samples: int = 4) -> dict[str, Tree]:
    """Operands of the operators that OpInfo's samples call on a CPU, forward and backward."""
    calls: dict[str, Tree] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for pair in pairs:
            for _, sample in opinfo.spread(list(opinfo.samples(pair)), most_samples):
                tree = on(CPU, sample)
                leaves = [leaf for leaf in tensors(tree) if leaf.requires_grad]
                # Samples that raise are compared elsewhere.
                with contextlib.suppress(Exception), _Recording(calls):
                    value = pair.info.op(tree[0], *tree[1], **tree[2])
                    gradients(value, leaves)
    return calls


def derived_cases(calls: dict[str, Tree], wanted: Iterable[str]) -> Iterator[Direct]:
    """A call of each wanted operator for which another overload was recorded."""
    by_packet: dict[str, list[str]] = {}
    for name in calls:
        by_packet.setdefault(_packet(name), []).append(name)
    for name in wanted:
        for other in sorted(by_packet.get(_packet(name), ())):
            tree = _adapted(name, other, calls[other])
            if tree is not None:
                yield Direct(name, tree)
                break


def _packet(name: str) -> str:
    return name.partition(".")[0].rstrip("_")


def _bind(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in operator._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _adapted(name: str, other: str, tree: Tree) -> Tree | None:
    """Operands of a recorded call for another overload; None if they do not fit."""
    target, source = registration.find_operator(name), registration.find_operator(other)
    found = _bind(source, tree[1], tree[2])
    chosen: dict[str, Any] = {}
    for argument in target._schema.arguments:
        if argument.is_out:
            continue
        if argument.name in found:
            value = _converted(str(argument.type), found[argument.name])
            if value is _UNFIT:
                return None
            chosen[argument.name] = value
        elif not argument.has_default_value():
            return None
    outputs = [argument.name for argument in target._schema.arguments if argument.is_out]
    if outputs:
        results = _results(source, tree)
        if results is None or len(results) < len(outputs):
            return None
        for output, result in zip(outputs, results, strict=False):
            chosen[output] = torch.empty(0, dtype=result.dtype)
    return None, (), chosen


_UNFIT = object()


def _converted(kind: str, value: Any) -> Any:
    if kind == "number" and isinstance(value, Tensor):
        return value.flatten()[0].item() if value.numel() else _UNFIT
    if kind == "Tensor" and not isinstance(value, Tensor):
        return torch.tensor(value) if isinstance(value, (int, float, bool)) else _UNFIT
    return value


def _results(source: Any, tree: Tree) -> list[Tensor] | None:
    # A call that raises has no results to make outputs for.
    with contextlib.suppress(RuntimeError):
        _, args, kwargs = on(CPU, tree)
        value = source(*args, **kwargs)
        return tensors(value)
    return None


def written_cases(wanted: Iterable[str]) -> Iterator[Direct]:
    """The calls of `WRITTEN` and `FORMULAS` that are wanted."""
    for name in wanted:
        short = name.removeprefix("aten::")
        rule = Rule(host_results=short in HOST_RESULTS, factor=int(short in FORMULAS))
        if short in WRITTEN:
            yield Direct(name, _tree(WRITTEN[short]()), rule)
        elif short in FORMULAS:
            operands, compute, call = FORMULAS[short]
            yield Direct(name, _tree(operands()), rule, compute, call)


def _tree(operands: tuple[Any, ...]) -> Tree:
    if operands and isinstance(operands[-1], dict):
        return None, operands[:-1], operands[-1]
    return None, operands, {}
