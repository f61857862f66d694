"""A mask that passes for a bool tensor `[B, 1, T, S]` without being one in memory."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from accel.errors import BackendError
from accel_kernels.masks import Both, Dense, Mask, RowIntervals, Sizes, visibility, visible

_LOG = logging.getLogger("accel")
_warned = False
_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.clone.default}
# What makes sense of a bool tensor, True where a query may see a key, and of nothing else.
_READ = {
    "_local_scalar_dense",
    "all",
    "any",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "cat",
    "constant_pad_nd",
    "copy_",
    "eq",
    "equal",
    "expand",
    "index",
    "index_select",
    "logical_and",
    "logical_not",
    "logical_or",
    "permute",
    "repeat",
    "select",
    "slice",
    "squeeze",
    "sum",
    "transpose",
    "unsqueeze",
    "view",
    "where",
}


class StructuredMask(Tensor):
    """Bool `[B, 1, T, S]`, True where a query may see a key; written out only if it is read.

    Model code hands it from where masks are made to where attention is called, moves it between
    devices, and sometimes cuts or combines it. The first two keep the structure. The third writes
    the tensor out, which is right and takes `B * T * S` bytes, and is logged once. What treats it
    as numbers to be added to scores, as models written for eager attention alone do, would be wrong
    in silence with a bool mask of any kind, and raises.
    """

    mask: Mask | None
    sizes: Sizes
    local_size: int | None

    @staticmethod
    def __new__(
        cls,
        mask: Mask | None,
        sizes: Sizes,
        device: torch.device,
        local_size: int | None = None,
    ) -> StructuredMask:
        """Wrap a mask.

        Args:
            cls: This class.
            mask: None: every query sees every key.
            sizes: With one head.
            device: Where the tensor pretends to be, and those within the mask are.
            local_size: Keys of the sliding window, or of a chunk, that the mask holds.
        """
        shape = (sizes.batch, 1, sizes.query_length, sizes.key_length)
        made: StructuredMask = Tensor._make_wrapper_subclass(
            cls, shape, dtype=torch.bool, device=device
        )
        made.mask, made.sizes, made.local_size = mask, sizes, local_size
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"StructuredMask({self.mask}, {tuple(self.shape)})"

    def dense(self) -> Tensor:
        """The tensor that it stands for."""
        seen = visibility(self.mask, self.sizes, self.device)
        return visible(seen, self.sizes, self.device).expand(self.shape)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares no class method
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Keep the structure, write the tensor out, or refuse."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, StructuredMask) and _keeps(func, first, args, kwargs):
            return first._on(torch.device(kwargs.get("device") or first.device))
        name = func.name().removeprefix("aten::").split(".")[0]
        if name not in _READ:
            # No TypeError: Python would take that for an operand that it may swap.
            raise BackendError(
                f"the model's own code applies {name} to an attention mask that belongs to "
                "accel: it computes attention itself instead of through the attention interface. "
                "Load it with attn_implementation='eager'"
            )
        _warn(first if isinstance(first, StructuredMask) else None, name)
        return func(*_written_out(args), **_written_out(kwargs))

    def _on(self, device: torch.device) -> StructuredMask:
        mask = self.mask if device == self.device else _moved(self.mask, device)
        return StructuredMask(mask, self.sizes, device, self.local_size)


def _keeps(func: Any, mask: StructuredMask, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator returns the mask as it is, perhaps elsewhere."""
    if func in _SAME:
        return True
    if func is _aten._to_copy.default:
        return kwargs.get("dtype") in (None, torch.bool)
    if func is _aten.slice.Tensor:
        given = list(args[1:])
        dim, start, end, step = given + [0, None, None, 1][len(given) :]
        whole = end is None or end >= mask.shape[dim or 0]
        return not start and whole and step == 1
    return False


def _moved(mask: Mask | None, device: torch.device) -> Mask | None:
    if isinstance(mask, RowIntervals):
        return RowIntervals(mask.bounds.to(device))
    if isinstance(mask, Dense):
        return Dense(mask.allowed.to(device))
    if isinstance(mask, Both):
        left, right = _moved(mask.left, device), _moved(mask.right, device)
        return Both(left, right) if left is not None and right is not None else None
    return mask


def _written_out(given: Any) -> Any:
    if isinstance(given, StructuredMask):
        return given.dense()
    if isinstance(given, (list, tuple)):
        return type(given)(_written_out(part) for part in given)
    if isinstance(given, dict):
        return {name: _written_out(part) for name, part in given.items()}
    return given


def _warn(mask: StructuredMask | None, name: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        size = "" if mask is None else f" of {mask.numel() / 1e6:.0f} MB"
        _LOG.warning(
            "the model reads its attention mask (%s), so that it is written out as a [B, 1, T, S] "
            "tensor%s: right, but quadratic in memory",
            name,
            size,
        )
