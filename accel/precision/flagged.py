"""Optimizers that skip a step by a flag on the device, as torch's fused ones do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def takes_flag(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
    """Whether `step_unless` can be used.

    Not in an optimizer's first step, in which torch's fused SGD leaves a momentum uninitialised
    that it skips to write; not for sharded parameters, beside which torch refuses a plain flag; and
    not where an optimizer of the older kind asks a scaler, `step(grad_scaler=...)`, for the flag.
    """
    return (
        getattr(optimizer, "_step_supports_amp_scaling", False)
        and "grad_scaler" not in inspect.signature(optimizer.step).parameters
        and not any(hasattr(parameter, "device_mesh") for parameter in parameters)
        and (_is_stateless(optimizer) or all(optimizer.state.get(p) for p in parameters))
    )


def _is_stateless(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("momentum") == 0 for group in optimizer.param_groups)


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor, step: Callable[[], Any]) -> None:
    """`step()`, changing nothing if `skip`, bool `[]`, is true; the host does not wait to know."""
    fused: Any = optimizer
    fused.grad_scale, fused.found_inf = None, skip.to(torch.float32)
    try:
        step()
    finally:
        del fused.grad_scale, fused.found_inf
