"""Moving nested batches of tensors to a device."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

_logger = logging.getLogger("accel")


def move(batch: Any, device: torch.device, *, pin: bool) -> Any:
    """See `Device.move`."""
    if isinstance(batch, torch.Tensor):
        return _move_tensor(batch, device, pin=pin)
    # Before the containers: PackedSequence is a tuple and BatchEncoding a mapping, and both know
    # better than we do which of their fields move.
    if callable(getattr(batch, "to", None)) and not isinstance(batch, type):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return _move_mapping(batch, device, pin=pin)
    if isinstance(batch, tuple) and hasattr(batch, "_make"):
        return batch._make(move(item, device, pin=pin) for item in batch)
    if isinstance(batch, (list, tuple)):
        return type(batch)([move(item, device, pin=pin) for item in batch])
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return _move_dataclass(batch, device, pin=pin)
    return batch


def _move_tensor(tensor: torch.Tensor, device: torch.device, *, pin: bool) -> torch.Tensor:
    if tensor.device.type != "cpu":
        # Asynchronous copies to the host would return before the values are there.
        return tensor.to(device, non_blocking=device.type != "cpu")
    if tensor.layout != torch.strided and device.index:
        # torch makes the parts of a sparse tensor on the current device, whichever is asked for.
        with torch.accelerator.device_index(device.index):
            return tensor.to(device, non_blocking=True)
    pinnable = tensor.layout == torch.strided and tensor.numel() > 0
    if pin and pinnable and _can_pin(device.type) and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@functools.cache
def _can_pin(device_type: str) -> bool:
    """Whether torch has a page-locked allocator here; a chip's plugin may bring none."""
    try:
        torch.empty(1, device="cpu").pin_memory()
    except (RuntimeError, NotImplementedError) as error:
        _logger.debug("no page-locked memory for %s: %s", device_type, error)
        return False
    return True


def _move_mapping(
    batch: Mapping[Any, Any], device: torch.device, *, pin: bool
) -> Mapping[Any, Any]:
    moved = {key: move(value, device, pin=pin) for key, value in batch.items()}
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return moved
    # A copy keeps what a constructor call would lose: a defaultdict's factory, a subclass's fields.
    result = copy.copy(batch)
    result.update(moved)
    return result


def _move_dataclass(batch: Any, device: torch.device, *, pin: bool) -> Any:
    # copy + object.__setattr__ instead of replace(): it also serves frozen dataclasses and fields
    # with init=False, and runs no __post_init__ a second time.
    result = copy.copy(batch)
    for field in dataclasses.fields(batch):
        if not hasattr(batch, field.name):  # init=False and not set yet
            continue
        value = move(getattr(batch, field.name), device, pin=pin)
        object.__setattr__(result, field.name, value)
    return result
