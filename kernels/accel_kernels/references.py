"""The float64 truth of this package's own operators, for who makes a recorded call again.

An operator is called again by another of its kernels: the reference, or for what the reference has
computed another. What kernels of attention share is not judged: what masks, biases and dropout are,
which tiles are seen, and the product that leaves out what is not; nor are formats in eight bits.
Shared code depends on no operation, so these are named here, and
imported when one is met.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel_kernels.fp8 import dequantize
from accel_kernels.fp8.formats import FORMATS, Quantized, Scaling

NAMESPACE = "accel_kernels"
Function = Callable[..., Any]


class _Operator(NamedTuple):
    """Where an operator is from and who judges it.

    Attributes:
        operation: The package that registers it.
        operand: The argument whose dtype says how precisely it computes.
        reference: Judges every other kernel; None: a formula does.
        judge: Judges the reference.
    """

    operation: str
    operand: str
    reference: str | None = None
    judge: str | None = None


_ATTENTION = _Operator("segmented_attention", "query", "reference", "cpu")
_CONTRASTIVE = _Operator("contrastive_loss", "x", "reference", "tiles")
OPERATORS: Mapping[str, _Operator] = {
    "segmented_attention": _ATTENTION,
    "segmented_attention_backward": _ATTENTION,
    "contrastive_softmax": _CONTRASTIVE,
    "contrastive_softmax_backward": _CONTRASTIVE,
    "contrastive_sigmoid": _CONTRASTIVE,
    "contrastive_sigmoid_backward": _CONTRASTIVE,
    "scaled_matmul": _Operator("scaled_matmul", "out_dtype"),
}


def reference_of(name: str) -> Function | None:
    """What computes an operator's results in float64, from arguments in float64.

    Args:
        name: `segmented_attention`, as in `torch.ops.accel_kernels`.

    Returns:
        A function with the parameters of the operator's schema, or None if there is no such
        operator. Its memory grows as the kernels' does.
    """
    if name not in OPERATORS:
        return None
    return _FUNCTIONS.get(name) or functools.partial(_by_another_kernel, name)


def operand_of(name: str) -> str | None:
    """The argument, a tensor or a dtype, by which an operator computes in float64 or less."""
    return OPERATORS[name].operand if name in OPERATORS else None


def spelt_out(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of which every number is a number of its own: codes become what they stand for.

    The operator's reference takes these too.
    """
    if name != "scaled_matmul" or "left" in arguments:
        return dict(arguments)
    given = dict(arguments)
    left, right = (
        _matrix(*(given.pop(f"{side}{part}") for part in ("", "_scales", "_scaling")))
        for side in "ab"
    )
    return {"left": left, "right": right, **given}


def _by_another_kernel(name: str, *, backend: str, **given: Any) -> Any:
    _, _, reference, judge = OPERATORS[name]
    return _operator(name)(**given, backend=judge if backend == reference else reference)


def _operator(name: str) -> Function:
    importlib.import_module(f"{NAMESPACE}.{OPERATORS[name].operation}.operators")  # registers it
    operator: Function = getattr(torch.ops.accel_kernels, name)
    return operator


def _attention_backward(*, backend: str, **given: Any) -> tuple[Tensor | None, ...]:
    found = _by_another_kernel("segmented_attention_backward", backend=backend, **given)
    specs = importlib.import_module(f"{NAMESPACE}.segmented_attention").SPECS
    lacks = any(s.name == backend and "gradient of bias" not in s.features for s in specs)
    # A kernel that has none is only called where nobody wants it.
    return (*found[:3], None if lacks else found[3])


# --- contrastive losses ------------------------------------------------------------------------

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
        part = dict(given)
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
    joined: dict[int, list[Tensor]] = {place: [] for place in of_x}
    total: dict[int, Tensor] = {}
    for part in _blocks(given):
        results = _by_another_kernel(name, **part)
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
    operators = importlib.import_module(f"{NAMESPACE}.contrastive_loss.operators")
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


# --- products in eight bits --------------------------------------------------------------------


def _scaled_matmul(**given: Any) -> Tensor:
    operands = spelt_out("scaled_matmul", given)
    product: Tensor = operands["left"].double() @ operands["right"].double().T
    bias = operands["bias"]
    return product if bias is None else product + bias


def _matrix(codes: Tensor, scales: Tensor, words: Sequence[Any]) -> Tensor:
    name, granularity, kind = words
    scaling = Scaling(FORMATS[name], granularity, kind)
    return dequantize(Quantized(codes, scales, scaling), torch.float64)


_FUNCTIONS: dict[str, Function] = {
    "segmented_attention_backward": _attention_backward,
    "contrastive_softmax": _softmax,
    "contrastive_softmax_backward": _softmax_backward,
    "contrastive_sigmoid": _sigmoid,
    "contrastive_sigmoid_backward": _sigmoid_backward,
    "scaled_matmul": _scaled_matmul,
}
