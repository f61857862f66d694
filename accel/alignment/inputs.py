"""Inputs of an encoder, seen as rows: how many there are, and some of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def row_count(inputs: Any) -> int | None:
    """How many samples the inputs hold.

    Args:
        inputs: A tensor, whose rows are its first dimension; a list or another sequence, whose rows
            are its items; or a mapping, tuple, named tuple or dataclass of those. What is none of
            these has no rows.

    Returns:
        The number of rows, None if nothing in it has any.

    Raises:
        ValueError: Parts of it have different numbers of rows.
    """
    counts = {count for count in _counts(inputs) if count is not None}
    if len(counts) > 1:
        raise ValueError(f"parts of one input have {sorted(counts)} rows; every part needs as many")
    return counts.pop() if counts else None


def select_rows(inputs: Any, rows: Tensor) -> Any:
    """The same inputs with only some rows; what has none stays as it is.

    Args:
        inputs: As for `row_count`.
        rows: int64 on the CPU.
    """
    listed = rows.tolist()
    return _each(
        inputs,
        lambda tensor: tensor.index_select(0, rows.to(tensor.device)),
        lambda items: _chosen(items, listed),
    )


def slice_rows(inputs: Any, start: int, stop: int) -> Any:
    """Rows from `start` to before `stop`, of a tensor as a view.

    Args:
        inputs: As for `row_count`.
        start: First row.
        stop: After the last.
    """
    return _each(inputs, lambda tensor: tensor[start:stop], lambda items: items[start:stop])


def without_graph(inputs: Any) -> Any:
    """The same inputs, whose tensors are detached from what made them.

    Args:
        inputs: Tensors in mappings, lists, tuples, dataclasses and what pytree knows, one in
            another. What holds no tensor with a graph is handed on as it is.
    """
    return tree_map(_without_graph, inputs) if _has_graph(inputs) else inputs


def _has_graph(inputs: Any) -> bool:
    return any(
        leaf.requires_grad if isinstance(leaf, Tensor) else _has_graph(_parts(leaf) or ())
        for leaf in tree_leaves(inputs)
    )


def _without_graph(leaf: Any) -> Any:
    """The same of what pytree does not open."""
    if isinstance(leaf, Tensor):
        return leaf.detach() if leaf.requires_grad else leaf
    parts = _parts(leaf)
    if not parts or not _has_graph(parts):
        return leaf
    return _rebuilt(leaf, {key: without_graph(one) for key, one in parts.items()})


def _counts(inputs: Any) -> Iterable[int | None]:
    if isinstance(inputs, Tensor):
        yield inputs.shape[0] if inputs.dim() else None
        return
    parts = _parts(inputs)
    if parts is None:
        yield len(inputs) if _is_sequence(inputs) else None
        return
    for part in parts.values():
        yield from _counts(part)


def _each(
    inputs: Any, of_tensor: Callable[[Tensor], Tensor], of_items: Callable[[Any], Any]
) -> Any:
    if isinstance(inputs, Tensor):
        return of_tensor(inputs) if inputs.dim() else inputs
    parts = _parts(inputs)
    if parts is None:
        return of_items(inputs) if _is_sequence(inputs) else inputs
    return _rebuilt(inputs, {key: _each(one, of_tensor, of_items) for key, one in parts.items()})


def _parts(inputs: Any) -> dict[Any, Any] | None:
    """What a structure is made of; None for what is no structure."""
    if isinstance(inputs, Mapping):
        return dict(inputs.items())
    if isinstance(inputs, tuple):
        return dict(enumerate(inputs))
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        return {one.name: getattr(inputs, one.name) for one in dataclasses.fields(inputs)}
    return None


def _rebuilt(inputs: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(inputs, tuple):
        kind = type(inputs)
        return kind(*parts.values()) if hasattr(inputs, "_fields") else kind(parts.values())
    if isinstance(inputs, MutableMapping):
        # A tokenizer's batch, for instance, keeps its class.
        copied = copy.copy(inputs)
        copied.update(parts)
        return copied
    if isinstance(inputs, Mapping):
        return parts
    given = {one.name for one in dataclasses.fields(inputs) if one.init}
    made = dataclasses.replace(inputs, **{key: parts[key] for key in parts if key in given})
    for key in parts.keys() - given:  # which the constructor does not take; it may be frozen
        object.__setattr__(made, key, parts[key])
    return made


def _is_sequence(inputs: Any) -> bool:
    has_items = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
    return (isinstance(inputs, Sequence) or has_items) and not isinstance(inputs, (str, bytes))


def _chosen(items: Any, rows: list[int]) -> Any:
    is_array = hasattr(items, "dtype")
    return items[rows] if is_array else [items[row] for row in rows]
