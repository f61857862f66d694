"""A model's modules with all their names, without those that wrappers add."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from accel.precision.policy.families import class_names, families_of, is_embedding

# Where each wrapper keeps the module it wraps; what it adds to names is no part of them.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "AveragedModel": "module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}


@dataclass
class Node:
    """One module of a model.

    Attributes:
        module: It.
        path: Its first name as `named_modules` gives it.
        names: Its names without wrappers; several where it is shared.
        chains: For each name, the modules it is inside of, from the model on, and itself.
        families: As rules name them.
        classes: Names of its class and base classes.
    """

    module: nn.Module
    path: str
    names: tuple[str, ...]
    chains: list[tuple[Node, ...]] = field(default_factory=list, repr=False)
    families: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def title(self) -> str:
        """Its first name, or words for the model itself."""
        return self.name or "the model"

    @property
    def inside(self) -> Iterator[Node]:
        """The modules that it is inside of."""
        return (node for chain in self.chains for node in chain[:-1])


def nodes_of(model: nn.Module) -> list[Node]:
    """Every module of a model once, in the order of `named_modules`; wrappers are left out."""
    nodes: dict[int, Node] = {}
    _walk(model, "", "", (), nodes)
    embedded = {
        id(parameter)
        for node in nodes.values()
        if is_embedding(node.module)
        for parameter in node.module._parameters.values()
        if parameter is not None
    }
    for node in nodes.values():
        node.families = families_of(node.module, node.names, embedded)
        node.classes = class_names(node.module)
    return list(nodes.values())


def _walk(
    module: nn.Module, path: str, name: str, outer: tuple[Node, ...], nodes: dict[int, Node]
) -> None:
    wrapped = _wrapped(module)
    if wrapped is not None:
        _walk(getattr(module, wrapped), _join(path, wrapped), name, outer, nodes)
        return
    if any(node.module is module for node in outer):
        return  # a module that holds itself
    node = nodes.setdefault(id(module), Node(module, path, ()))
    if name not in node.names:
        node.names = (*node.names, name)
        node.chains.append((*outer, node))
    for child, inner in module._modules.items():
        if inner is not None:
            _walk(inner, _join(path, child), _join(name, child), (*outer, node), nodes)


def _wrapped(module: nn.Module) -> str | None:
    for kind in type(module).__mro__:
        attribute = _WRAPPERS.get(kind.__name__)
        if attribute and kind.__module__.startswith("torch.") and attribute in module._modules:
            return attribute
    return None


def _join(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer else inner
