"""Looking through tensors that hold a part of a tensor in another one: DTensor and its kin."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from accel.numerics.storage.entries import Shard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

_placed: dict[DTensorSpec, Shard | None] = {}
_MOST_PLACED = 4096


def is_dtensor(tensor: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor; without importing them, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_dtensor_class(kind: type) -> bool:
    """The same of a class."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and issubclass(kind, module.DTensor)


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor holds its elements in other tensors."""
    return is_traceable_wrapper_subclass(tensor)


def inner(tensor: Tensor) -> Tensor:
    """The tensor that holds this process's elements: no operator runs, nothing is waited for."""
    if is_dtensor(tensor):
        tensor = tensor._local_tensor
    elements = getattr(tensor, "elem", None)
    is_waiting = type(tensor).__name__ == "AsyncCollectiveTensor" and isinstance(elements, Tensor)
    return elements if is_waiting and isinstance(elements, Tensor) else tensor


def placed(tensor: Tensor) -> Shard | None:
    """Which part of the whole a DTensor's own part is; None for other tensors.

    Addends of a sum are `partial`. None too where the process has no part, or where the recording
    has no words for the placement: addends of a mean, or of which several processes have copies.
    """
    if not is_dtensor(tensor):
        return None
    spec = tensor._spec
    if spec not in _placed:
        if len(_placed) >= _MOST_PLACED:
            _placed.clear()
        _placed[spec] = _found(tensor)
    found = _placed[spec]
    if found is None or _fits(tensor._local_tensor, found):
        return found
    return None


def _found(tensor: DTensor) -> Shard | None:
    from torch.distributed.tensor import Partial, Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.get_coordinate() is None:
        return None
    addends = [one for one in placements if isinstance(one, Partial)]
    if any(one.reduce_op != "sum" for one in addends):
        return None
    copies = any(
        isinstance(one, Replicate) and mesh.size(dim) > 1 for dim, one in enumerate(placements)
    )
    if addends and copies:
        return None
    shape = tuple(tensor.shape)
    _, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Shard(shape, tuple(int(first) for first in offset), bool(addends))


def _fits(local: Tensor, shard: Shard) -> bool:
    return len(local.shape) == len(shard.shape) and all(
        first + size <= length
        for first, size, length in zip(shard.offset, local.shape, shard.shape, strict=True)
    )
