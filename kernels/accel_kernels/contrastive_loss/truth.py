"""The operators' results in float64: by the dense formula, and for what it has computed by tiles.

Rows of x are taken in blocks, so that no matrix of all pairs is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accel_kernels.contrastive_loss import operators
from accel_kernels.spec import REFERENCE

_OPERATORS: Mapping[str, Callable[..., tuple[Tensor, ...]]] = {
    "contrastive_softmax": operators.softmax,
    "contrastive_softmax_backward": operators.softmax_backward,
    "contrastive_sigmoid": operators.sigmoid,
}
# Pairs of a block: the dense formula keeps some matrices of them.
_PAIRS = 1 << 20
# Arguments that have a row for every row of x.
_OF_X = (
    "x", "x_reference", "x_sample", "x_group", "guide_x", "x_threshold", "x_lse", "grad_x_lse",
    "grad_x_positive",
)  # fmt: skip


def _blocks(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The call's rows of x in parts. What a pass returns of parts adds up to what it is of all."""
    rows = max(1, _PAIRS // max(1, len(given["y"])))
    for start in range(0, max(1, len(given["x"])), rows):
        part = {name: value for name, value in given.items() if name != "backend"}
        for name in _OF_X:
            if isinstance(tensor := given.get(name), Tensor):
                part[name] = tensor[start : start + rows]
        yield part


def _added(
    name: str, given: Mapping[str, Any], of_x: Sequence[int], logarithms: Sequence[int] = ()
) -> tuple[Tensor, ...]:
    """The results of all blocks: those of x one after the other, of the others the sums.

    Args:
        name: The operator.
        given: Its arguments.
        of_x: Places of the results that have a row for every row of x.
        logarithms: Places of those that are logarithms of sums.
    """
    judge = "tiles" if given["backend"] == REFERENCE else REFERENCE
    joined: dict[int, list[Tensor]] = {place: [] for place in of_x}
    total: dict[int, Tensor] = {}
    for part in _blocks(given):
        results = _OPERATORS[name](**part, backend=judge)
        for place, result in enumerate(results):
            if place in joined:
                joined[place].append(result)
            elif place in total:
                add = torch.logaddexp if place in logarithms else torch.add
                total[place] = add(total[place], result)
            else:
                total[place] = result
    found = {**total, **{place: torch.cat(parts) for place, parts in joined.items()}}
    return tuple(found[place] for place in sorted(found))


def _softmax(**given: Any) -> tuple[Tensor, ...]:
    return _added("contrastive_softmax", given, of_x=(0, 2, 4), logarithms=(1,))


def _softmax_backward(**given: Any) -> tuple[Tensor, ...]:
    lses = [given["x_lse"], given["y_lse"]]
    if operators.are_large(lses, [given["grad_x_lse"], given["grad_y_lse"]]):
        # As the operator does it, of the whole.
        for side, lse in zip("xy", lses, strict=True):
            given[f"{side}_reference"] = operators.moved(given[f"{side}_reference"], lse)
        own = {n: value for n, value in given.items() if not n.endswith(("_lse", "_positive"))}
        given["x_lse"], given["y_lse"], *_ = _softmax(**own)
    return _added("contrastive_softmax_backward", given, of_x=(0,))


def _sigmoid(**given: Any) -> tuple[Tensor, ...]:
    """Without gradients, all results but the first are empty."""
    of_x = (1,) if given["with_gradients"] else ()
    return _added("contrastive_sigmoid", given, of_x=of_x)


def _sigmoid_backward(gradient: Tensor, **saved: Tensor) -> tuple[Tensor, ...]:
    names = ("grad_x", "grad_y", "grad_scale", "grad_bias")
    return tuple(gradient * saved[name] for name in names)


REFERENCES: Mapping[str, Callable[..., Any]] = {
    "contrastive_softmax": _softmax,
    "contrastive_softmax_backward": _softmax_backward,
    "contrastive_sigmoid": _sigmoid,
    "contrastive_sigmoid_backward": _sigmoid_backward,
}
