"""Which value of a rewritten graph is which value of the graph it was made from.

torch notes on every node that it rewrites the node that it comes from.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor


def counterparts(before: torch.fx.Graph, after: torch.fx.Graph) -> dict[str, str]:
    """Names of the tensors of one graph to those of the other that hold the same.

    Args:
        before: A graph.
        after: What a rewriting made of it; `before` must still exist.

    Returns:
        What has a counterpart. What was computed in one operator and is computed in several now has
        the last of them; what an operator only passed on is what it was given.
    """
    made: dict[str, list[torch.fx.Node]] = {}
    for node in after.nodes:
        origin = _origin(node, before)
        if origin is not None:
            made.setdefault(origin, []).append(node)
    found: dict[str, torch.fx.Node] = {n.name: n for n in after.nodes if n.op == "placeholder"}
    for node in before.nodes:
        if node.op == "call_function":
            other = _counterpart(node, made, found)
            if other is not None:
                found[node.name] = other
    names = {node.name for node in before.nodes}
    return {name: node.name for name, node in found.items() if name in names}


def _counterpart(
    node: torch.fx.Node,
    made: dict[str, list[torch.fx.Node]],
    found: dict[str, torch.fx.Node],
) -> torch.fx.Node | None:
    if node.target is operator.getitem:
        return _item(node, made)
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    nodes = made.get(node.name, [])
    alike = [other for other in nodes if _is_alike(value, other)]
    if alike:
        return alike[-1]
    given = [found[source.name] for source in node.all_input_nodes if source.name in found]
    passed_on = not nodes and len(node.all_input_nodes) == 1
    return given[0] if passed_on and given and _is_alike(value, given[0]) else None


def _item(node: torch.fx.Node, made: dict[str, list[torch.fx.Node]]) -> torch.fx.Node | None:
    """The counterpart of one of several results of an operator."""
    source = node.args[0]
    if not isinstance(source, torch.fx.Node):
        return None
    value = node.meta.get("val")
    for other in made.get(source.name, []):
        if other.target is operator.getitem and other.args[1] == node.args[1]:
            parent = other.args[0]
            same = isinstance(parent, torch.fx.Node) and parent.target is source.target
            if same and isinstance(value, Tensor) and _is_alike(value, other):
                return other
    return None


def _is_alike(value: Tensor, other: torch.fx.Node) -> bool:
    found = other.meta.get("val")
    return isinstance(found, Tensor) and found.shape == value.shape and found.dtype == value.dtype


def _origin(node: torch.fx.Node, graph: torch.fx.Graph) -> str | None:
    """The node of `graph` that a node comes from."""
    sources = node.meta.get("from_node") or []
    while sources:
        if sources[-1].graph_id == id(graph):
            return str(sources[-1].name)
        sources = sources[-1].from_node
    return None
