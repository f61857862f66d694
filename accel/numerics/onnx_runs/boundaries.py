"""What goes into and out of each module call of an exported program."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from accel.numerics.capture import nesting

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.export.graph_signature import ArgumentSpec

_PLAIN = (Tensor, str, int, float, bool, type(None))


class Places(NamedTuple):
    """Values of a program by their places among a module's inputs (`0`, `mask`) and outputs."""

    inputs: dict[str, str]
    outputs: dict[str, str]

    def renamed(self, names: Mapping[str, str]) -> Places:
        """With the values' names in another program; what has none is left out."""
        both = [
            {place: names[value] for place, value in places.items() if value in names}
            for places in self
        ]
        return Places(*both)


@dataclass
class Boundary:
    """One module call.

    Attributes:
        name: The exporter's name for it: `blocks.0.norm`, and `shared@1` for the second call.
        module: Its path.
        call: How often the module was called before.
        class_name: Of the module.
        places: Its inputs and outputs; None where the exporter does not know them.
        first, last: Number of its first operator, and one past that of its last.
    """

    name: str
    module: str
    call: int
    class_name: str
    places: Places | None
    first: int = 0
    last: int = 0

    def extend(self, number: int) -> None:
        """Operator `number` runs in it."""
        self.first = self.first if self.last else number
        self.last = number + 1


def steady_modules(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    """Paths of the modules whose inputs and outputs the exporter can follow.

    Those are called with the same arrangement of tensors and plain values every time. The module
    runs once to find out.
    """
    seen: dict[str, list[object]] = {name: [] for name, _ in module.named_modules() if name}
    handles = []

    def watch(path: str, inner: nn.Module) -> None:
        def after(_: nn.Module, given: Any, named: Any, output: Any) -> None:
            leaves, arrangement = pytree.tree_flatten(((given, named), output))
            followed = all(isinstance(leaf, _PLAIN) for leaf in leaves)
            seen[path].append(arrangement if followed else None)

        handles.append(inner.register_forward_hook(after, with_kwargs=True))

    for path, inner in module.named_modules():
        if path:
            watch(path, inner)
    try:
        module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(path for path, calls in seen.items() if _is_steady(calls))


def _is_steady(calls: list[object]) -> bool:
    return bool(calls) and calls[0] is not None and all(call == calls[0] for call in calls)


def take_places(program: ExportedProgram) -> dict[str, Places]:
    """The places of each followed module call, by the exporter's name for the call.

    They are removed from the program: what it is taken apart into has other names, which torch does
    not always find.
    """
    found = {}
    for entry in program.module_call_graph:
        if not entry.fqn or entry.signature is None:
            continue
        signature, entry.signature = entry.signature, None
        inputs = _inputs_named([_name(item) for item in signature.inputs], signature.in_spec)
        outputs = _unflattened([_name(item) for item in signature.outputs], signature.out_spec)
        found[entry.fqn] = Places(inputs, outputs)
    return found


def boundaries(
    program: ExportedProgram, root: nn.Module, places: Mapping[str, Places]
) -> list[Boundary]:
    """The module calls of a program, in the order in which they begin, the root's first."""
    classes = {path: type(inner).__name__ for path, inner in root.named_modules()}
    found = {"": Boundary("", "", 0, classes[""], root_places(program))}
    operators = [node for node in program.graph.nodes if is_operator(node)]
    for number, node in enumerate(operators):
        stack = node.meta.get("nn_module_stack", {})
        for key, (path, _) in stack.items():
            name = _call_name(key)
            if name not in found:
                call = _call_number(name)
                found[name] = Boundary(name, path, call, classes.get(path, "?"), places.get(name))
        for name in {"", *map(_call_name, stack)}:
            found[name].extend(number)
    return list(found.values())


def root_places(program: ExportedProgram) -> Places:
    """Inputs and outputs of the whole program."""
    signature, spec = program.graph_signature, program.call_spec
    return Places(
        _inputs_named(list(signature.user_inputs), spec.in_spec),
        _unflattened(list(signature.user_outputs), spec.out_spec),
    )


def innermost(node: torch.fx.Node) -> str:
    """The name of the innermost module call that a node runs in."""
    stack = node.meta.get("nn_module_stack") or {"": None}
    return _call_name(next(reversed(stack)))


def is_operator(node: torch.fx.Node) -> bool:
    """Whether a node is an operator that computes tensors: no assertion, no access to a tuple."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))


def _call_name(key: str) -> str:
    """`L__self__shared@1` to `shared@1`."""
    return re.sub(r"^L__self__", "", key)


def _call_number(name: str) -> int:
    number = re.search(r"@(\d+)$", name)
    return int(number.group(1)) if number else 0


def _inputs_named(names: list[Any], spec: pytree.TreeSpec) -> dict[str, str]:
    args, kwargs = pytree.tree_unflatten(names, spec)
    return {**_texts(tuple(args)), **_texts(dict(kwargs))}


def _unflattened(names: list[Any], spec: pytree.TreeSpec) -> dict[str, str]:
    return _texts(pytree.tree_unflatten(names, spec))


def _texts(value: Any) -> dict[str, str]:
    return {place: leaf for place, leaf in nesting.leaves(value) if isinstance(leaf, str)}


def _name(item: ArgumentSpec) -> str | None:
    """The value's name; None for what is no tensor."""
    return item.name if type(item).__name__ == "TensorArgument" else None
