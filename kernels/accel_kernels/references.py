"""The float64 truth of this package's own operators, for who makes a recorded call again.

Shared code depends on no operation: here are names, and the module `truth` of an operation is
imported when one of its operators is met.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

NAMESPACE = "accel_kernels"


class _Operator(NamedTuple):
    """Where an operator is from.

    Attributes:
        operation: The package that registers it.
        operand: The argument whose dtype says how precisely it computes.
    """

    operation: str
    operand: str


_ATTENTION = _Operator("segmented_attention", "query")
_CONTRASTIVE = _Operator("contrastive_loss", "x")
OPERATORS: Mapping[str, _Operator] = {
    "segmented_attention": _ATTENTION,
    "segmented_attention_backward": _ATTENTION,
    "contrastive_softmax": _CONTRASTIVE,
    "contrastive_softmax_backward": _CONTRASTIVE,
    "contrastive_sigmoid": _CONTRASTIVE,
    "contrastive_sigmoid_backward": _CONTRASTIVE,
    "scaled_matmul": _Operator("scaled_matmul", "out_dtype"),
}


def reference_of(name: str) -> Callable[..., Any] | None:
    """What computes an operator's results in float64, from arguments in float64.

    Args:
        name: `segmented_attention`, as in `torch.ops.accel_kernels`.

    Returns:
        A function with the parameters of the operator's schema, or None if there is no such
        operator. Its memory grows as the kernels' does.
    """
    if name not in OPERATORS:
        return None
    function: Callable[..., Any] = _truth(name).REFERENCES[name]
    return function


def operand_of(name: str) -> str | None:
    """The argument, a tensor or a dtype, by which an operator computes in float64 or less."""
    return OPERATORS[name].operand if name in OPERATORS else None


def spelt_out(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of which every number is a number of its own: codes become what they stand for.

    The operator's reference takes these too.
    """
    change = getattr(_truth(name), "spelt_out", dict) if name in OPERATORS else dict
    found: dict[str, Any] = change(arguments)
    return found


def _truth(name: str) -> ModuleType:
    return importlib.import_module(f"{NAMESPACE}.{OPERATORS[name].operation}.truth")
