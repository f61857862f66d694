"""The vendor's operators, and the mask that their compressed sparse modes take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel_kernels.segmented_attention.npu_fusion.limits import SIDE

_triangles: dict[torch.device, Tensor] = {}


def operator(name: str) -> Callable[..., Any]:
    """One of torch_npu's operators; there is none unless torch_npu is imported.

    Raises:
        RuntimeError: torch_npu has not registered it.
    """
    found = getattr(torch.ops.npu, name, None)
    if found is None:
        raise RuntimeError(
            f"torch.ops.npu.{name} does not exist: npu_fusion needs torch_npu, imported before it "
            "is called, in a release that has this operator"
        )
    operation: Callable[..., Any] = found
    return operation


def triangle(device: torch.device) -> Tensor:
    """The 2048 x 2048 mask of sparse modes 2, 3 and 4: True, which is masked, above the diagonal.

    4 MB, made once a device: made for each call it is what torch_npu's own attention spends much
    of its memory traffic on.
    """
    found = _triangles.get(device)
    if found is None:
        found = torch.ones(SIDE, SIDE, dtype=torch.bool, device=device).triu(1)
        _triangles[device] = found
    return found
