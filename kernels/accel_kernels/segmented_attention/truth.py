"""The operators' results in float64: by the reference, and for what it has computed by `cpu`.

What the two share is judged by neither: what masks, biases and dropout are, which tiles are seen,
and the product that leaves out what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from accel_kernels.segmented_attention import SPECS, operators
from accel_kernels.spec import REFERENCE


def _another(backend: str) -> str:
    return "cpu" if backend == REFERENCE else REFERENCE


def _forward(*, backend: str, **given: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = operators.forward(**given, backend=_another(backend))
    return found


def _backward(*, backend: str, **given: Any) -> tuple[Tensor | None, ...]:
    found = operators.backward(**given, backend=_another(backend))
    lacks = any(s.name == backend and "gradient of bias" not in s.features for s in SPECS)
    # A kernel that has none is only called where nobody wants it.
    return (*found[:3], None if lacks else found[3])


REFERENCES: Mapping[str, Callable[..., Any]] = {
    "segmented_attention": _forward,
    "segmented_attention_backward": _backward,
}
