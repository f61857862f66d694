"""Flat functions that put tensors on the accelerator, and ask where they are."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import PackedSequence

from accel.devices.base import Device
from accel.devices.choice import current_family
from accel.devices.device_functions import device as _device
from accel.devices.device_functions import is_available
from accel.devices.resolution import DeviceLike, is_accelerator_name, module_of
from accel.errors import DeviceError

_Movable = TypeVar("_Movable")

# torch's older names of tensor classes, such as torch.cuda.FloatTensor.
_CLASS_NAMES = {
    torch.float64: "DoubleTensor",
    torch.float32: "FloatTensor",
    torch.float16: "HalfTensor",
    torch.bfloat16: "BFloat16Tensor",
    torch.uint8: "ByteTensor",
    torch.int8: "CharTensor",
    torch.int16: "ShortTensor",
    torch.int32: "IntTensor",
    torch.int64: "LongTensor",
    torch.bool: "BoolTensor",
}


def is_accelerator(device: object) -> bool:
    """Whether a device is an accelerator, for `device.type == "cuda"` and `"cuda" in name`.

    Args:
        device: A torch device, a `Device`, or a name: of any accelerator, here or not, also with
            a list of indices (`cuda:0,1`). An index is one where an accelerator is current.

    Returns:
        False for `cpu`, `meta`, and what names no device: another string, None, a path.
    """
    if isinstance(device, int):
        return is_available()
    if isinstance(device, str):
        type_, separator, indices = device.partition(":")
        named = all(index.isdecimal() for index in indices.split(",")) if separator else True
        return named and is_accelerator_name(type_)
    return isinstance(device, (torch.device, Device)) and is_accelerator_name(device)


def on_accelerator(tensor: Any) -> bool:
    """Whether a tensor, storage or packed sequence is on an accelerator, for `tensor.is_cuda`.

    False on the CPU and for `meta`.
    """
    owner = tensor.data if isinstance(tensor, PackedSequence) else tensor
    return is_accelerator_name(torch.device(owner.device))


def to_accelerator(
    tensor_or_module: _Movable,
    device: DeviceLike = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
) -> _Movable:
    """Put a tensor or module on the accelerator, for `.cuda()`; on a CPU it is returned as it is.

    Args:
        tensor_or_module: A tensor (one that is there already is returned itself), a module (moved
            in place and returned), or anything else with a `.to(device)` method.
        device: Which; the current one by default.
        non_blocking: Copy from page-locked memory without waiting.
        memory_format: Of the tensor that is returned, here as on an accelerator.

    Raises:
        DeviceError: No such device is here.
        TypeError: It has no `.to(device)`.
    """
    if not hasattr(tensor_or_module, "to"):
        raise TypeError(
            f"to_accelerator takes a tensor, a module or what has .to(device), not "
            f"{type(tensor_or_module).__name__}; nested batches: accel.current_device().move(batch)"
        )
    place = _device(device)
    movable: Any = tensor_or_module
    options: dict[str, Any] = {"non_blocking": non_blocking} if non_blocking else {}
    if memory_format is not torch.preserve_format:
        options["memory_format"] = memory_format
    if place.type != "cpu":
        moved: _Movable = movable.to(place, **options)
        return moved
    options.pop("non_blocking", None)
    reordered: _Movable = movable.to(**options) if options else movable
    return reordered


def map_location(device: DeviceLike = None) -> torch.device:
    """Where `torch.load` should put tensors, for `map_location="cuda:0"`; on a CPU the CPU.

    It must be given where a checkpoint may come from another chip: without it torch wants the
    device that the file names.

    Args:
        device: As in `accel.device`.
    """
    return _device(device)


def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to page-locked memory, for `tensor.pin_memory()`; on a CPU it is returned."""
    return tensor.pin_memory() if is_available() else tensor


def tensor_type(dtype: torch.dtype = torch.float32) -> Any:
    """The tensor class of a dtype on the current device, for `torch.cuda.FloatTensor`.

    On a CPU `torch.FloatTensor`, on Ascend `torch.npu.FloatTensor`: constructors from sizes (not
    initialised) or from data, and arguments of `tensor.type(...)` and `isinstance`. New code
    writes `torch.empty(..., device=...)` and `torch.tensor(..., device=...)`.

    Args:
        dtype: Of the tensors.

    Raises:
        ValueError: torch has no class for this dtype.
        DeviceError: The device's module has none.
    """
    name = _class_name(dtype)
    current = current_family()()
    owner = torch if current.family == "cpu" else module_of(current)
    found = getattr(owner, name, None)
    if found is None:
        raise DeviceError(
            f"torch.{current.torch_type} has no {name}; write torch.empty(sizes, dtype={dtype}, "
            "device=accel.device()) or torch.tensor(data, ...)"
        )
    return found


def tensor_type_name(dtype: torch.dtype = torch.float32) -> str:
    """What `tensor.type()` returns on the current device, for comparisons with it.

    Args:
        dtype: Of the tensor: `torch.FloatTensor` on a CPU, `torch.npu.FloatTensor` on Ascend.

    Raises:
        ValueError: torch has no class for this dtype.
    """
    kind = current_family().torch_type
    return ".".join(["torch", *([] if kind == "cpu" else [kind]), _class_name(dtype)])


def _class_name(dtype: torch.dtype) -> str:
    if dtype not in _CLASS_NAMES:
        known = ", ".join(str(known) for known in _CLASS_NAMES)
        raise ValueError(f"torch has no tensor class for {dtype}, only for {known}")
    return _CLASS_NAMES[dtype]
