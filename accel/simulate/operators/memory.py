"""Device tensors as CPU tensors and back. No operator of torch_npu takes part."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from accel.simulate.library import Runtime, current_runtime

TYPE = "npu"
CPU = torch.device("cpu")
_construct_storage: Any = torch._C._construct_storage_from_data_pointer
_runtime: Runtime | None = None


def runtime() -> Runtime:
    """The runtime, remembered: this is asked several times per operator."""
    global _runtime
    if _runtime is None:
        _runtime = current_runtime()
    return _runtime


class Fork:
    """Whether this process is a fork of one that used the chips."""

    used_before = False
    happened = False


def _before_fork() -> None:
    Fork.used_before = bool(npu().is_initialized())


def _after_fork() -> None:
    Fork.happened = Fork.happened or Fork.used_before


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def check_not_forked(name: str) -> None:
    """Refuse an operator in a fork, before the CPU's threads, which a fork has not, are waited for.

    Raises:
        RuntimeError: This process was forked.
    """
    if Fork.happened:
        raise RuntimeError(
            f"{name}: the simulated Ascend cannot be used in a process that was forked from one "
            'that used it; start it with the method "spawn"'
        )


def npu() -> Any:
    """`torch.npu`, which torch_npu adds when it is imported."""
    return torch.get_device_module(TYPE)


def is_device(tensor: Tensor) -> bool:
    """Whether a tensor is on the simulated chip."""
    return tensor.device.type == TYPE


def host_view(tensor: Tensor, storages: dict[int, UntypedStorage] | None = None) -> Tensor:
    """A CPU tensor on a device tensor's own memory, with its sizes, strides and offset.

    It does not keep the memory alive: use it only while `tensor` is there.

    Args:
        tensor: The device tensor.
        storages: CPU storages by address, for tensors that share memory to share one: torch looks
            for overlapping operands by storage.

    Raises:
        RuntimeError: The memory is not a live device allocation.
    """
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    view = torch.empty(0, dtype=tensor.dtype, device=CPU)
    if size == 0:
        view.set_(view.untyped_storage(), 0, tensor.size(), tensor.stride())
        return mark_lazy(view, tensor)
    address = runtime().host_address(storage.data_ptr(), size)
    storages = {} if storages is None else storages
    if address not in storages:
        storages[address] = _construct_storage(address, CPU, size)
    view.set_(
        storages[address],
        tensor.storage_offset(),
        tensor.size(),
        tensor.stride(),
    )
    return mark_lazy(view, tensor)


def mark_lazy(tensor: Tensor, like: Tensor) -> Tensor:
    """Give a tensor another's conjugate and negative bits: torch applies them when it reads."""
    if like.is_conj() != tensor.is_conj():
        torch._C._set_conj(tensor, like.is_conj())
    if like.is_neg() != tensor.is_neg():
        torch._C._set_neg(tensor, like.is_neg())
    return tensor


def extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.size(), tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A new device tensor with a CPU tensor's elements and strides."""
    result = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    size = extent(tensor)
    if size:
        address = runtime().host_address(result.data_ptr(), size)
        ctypes.memmove(address, tensor.data_ptr(), size)
    return mark_lazy(result, tensor)


def refill(target: Tensor, value: Tensor) -> None:
    """Write a CPU tensor into a device tensor, which takes its sizes if they differ."""
    if target.size() != value.size():
        target.resize_(value.size())
    host_view(target).copy_(value)
