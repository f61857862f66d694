"""What the references share: the dtype they compute in, and checks of arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype a reference computes in: float64 if any input is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def outside_autocast(reference: Callable[..., Any]) -> Callable[..., Any]:
    """`reference` with autocast off, which would narrow the products it computes wide."""

    @wraps(reference)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        device = next((value.device.type for value in given if isinstance(value, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return reference(*args, **kwargs)

    return run


def require_floats(operator: str, **tensors: Tensor | None) -> None:
    """Raise `TypeError` unless every tensor given is of a floating dtype in `FLOATS`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in FLOATS:
            raise TypeError(f"{operator}: {name} is {tensor.dtype}; give one of {list(FLOATS)}")


def require_choice(operator: str, name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `ValueError` unless `value` is one of `allowed`."""
    choices = list(allowed)
    if value not in choices:
        raise ValueError(f"{operator}: {name}={value!r}; give one of {choices}")


def require_shape(operator: str, name: str, tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    """Raise `ValueError` unless the shape of `tensor` is one of `shapes`."""
    if tuple(tensor.shape) not in shapes:
        raise ValueError(
            f"{operator}: {name} has shape {list(tensor.shape)}; "
            f"give {' or '.join(str(list(shape)) for shape in shapes)}"
        )


def refuse(operator: str, name: str, value: object, why: str) -> NoReturn:
    """Raise `NotImplementedError` for an argument whose meaning no document states."""
    raise NotImplementedError(f"{operator}: {name}={value!r} is not available: {why}")
