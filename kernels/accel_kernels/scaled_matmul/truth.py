"""The operator's result in float64: the product of what the codes stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accel_kernels.fp8 import dequantize
from accel_kernels.fp8.formats import FORMATS, Quantized, Scaling


def spelt_out(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with matrices `left` and `right` in the place of codes and scales."""
    given = dict(arguments)
    if "left" not in given:
        for side, name in (("a", "left"), ("b", "right")):
            parts = (given.pop(f"{side}{part}") for part in ("", "_scales", "_scaling"))
            given[name] = _matrix(*parts)
    return given


def _scaled_matmul(**given: Any) -> Tensor:
    operands = spelt_out(given)
    product: Tensor = operands["left"].double() @ operands["right"].double().T
    bias = operands["bias"]
    return product if bias is None else product + bias


def _matrix(codes: Tensor, scales: Tensor, words: Sequence[Any]) -> Tensor:
    name, granularity, kind = words
    scaling = Scaling(FORMATS[name], granularity, kind)
    return dequantize(Quantized(codes, scales, scaling), torch.float64)


REFERENCES: Mapping[str, Callable[..., Any]] = {"scaled_matmul": _scaled_matmul}
