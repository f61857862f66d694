"""Whether other indices chose equally good elements: ties are broken differently everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Call, Given
from accel.numerics.replaying.operators import short_name

_ALONG_A_DIM = frozenset(
    {
        "max", "min", "argmax", "argmin", "sort", "argsort", "topk", "median", "nanmedian",
        "kthvalue", "mode", "cummax", "cummin", "msort",
    }
)  # fmt: skip
_SO_FAR = frozenset({"cummax", "cummin"})  # they choose among the elements up to their own
_POOLS = frozenset({"max_pool2d_with_indices", "max_pool3d_with_indices"})


def same_choice(call: Call, actual: Tensor, truth: Tensor) -> bool:
    """Whether integer results that differ point to equal elements of the input.

    Args:
        call: The call that returned them.
        actual: Indices of the run, int64.
        truth: Indices of the replay, the same shape.
    """
    source = call.arguments.get("self", call.arguments.get("input"))
    if not isinstance(source, Tensor) or actual.dtype != torch.int64:
        return False
    name, source = short_name(call.name), source.detach().cpu()
    if name in _POOLS:
        spatial = 2 if "2d" in name else 3
        return _equal(
            source.flatten(-spatial), -1, actual.flatten(-spatial), truth.flatten(-spatial)
        )
    if name not in _ALONG_A_DIM:
        return False
    dim: Given = call.arguments.get("dim", -1 if name in ("sort", "argsort", "topk") else None)
    if dim is None:
        return _equal(source.reshape(-1), 0, actual.reshape(-1), truth.reshape(-1))
    if actual.dim() < source.dim():
        actual, truth = actual.unsqueeze(dim), truth.unsqueeze(dim)
    if name in _SO_FAR and bool((actual > _places(actual, int(dim))).any()):
        return False
    return _equal(source, int(dim), actual, truth)


def _places(indices: Tensor, dim: int) -> Tensor:
    """Each element's own place along `dim`."""
    shape = [1] * indices.dim()
    if shape:
        shape[dim] = -1
    return torch.arange(indices.shape[dim] if shape else 1).view(shape)


def _equal(source: Tensor, dim: int, actual: Tensor, truth: Tensor) -> bool:
    size = source.shape[dim]
    if not actual.numel() or int(actual.min()) < 0 or int(actual.max()) >= size:
        return False
    return bool((source.gather(dim, actual) == source.gather(dim, truth)).all())
