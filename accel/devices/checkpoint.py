"""Opening checkpoints wherever they were saved."""

from __future__ import annotations

import errno
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from accel.devices.base import Device
from accel.devices.choice import find_device


def load(
    path: str | os.PathLike[str],
    *,
    map_location: str | torch.device | Device = "cpu",
    mmap: bool = False,
) -> Any:
    """Open a checkpoint saved on any chip, on a machine that need not have that chip.

    Reads what `torch.save` wrote (tensors and plain containers only: `weights_only=True`, so that a
    hostile file runs no code) and safetensors files, told apart by content.

    Args:
        path: The file.
        map_location: Where its tensors go, whatever device they were saved from: a device, its
            name, or `meta`. On the CPU by default: `load_state_dict` copies from there without a
            second copy on the device.
        mmap: Map the file instead of reading it; safetensors files are mapped anyway.

    Returns:
        What was saved; a dictionary of tensors for safetensors.

    Raises:
        OSError: The file cannot be read: FileNotFoundError, IsADirectoryError, …
        ValueError: It is truncated, is no checkpoint, holds more than tensors and containers, or
            cannot be mapped.
        DeviceError: The device of `map_location` is not here.
    """
    path = Path(path)
    target = _target(map_location)
    with path.open("rb") as file:
        head = file.read(32)
    if not (_is_safetensors(head) or head.startswith(_ZIP) or _LEGACY_MAGIC in head):
        raise ValueError(
            f"{path} is no complete checkpoint: it begins neither like a file of torch.save nor of "
            "safetensors; copy or save it again"
        )
    if mmap and _LEGACY_MAGIC in head:
        raise ValueError(
            f"{path} cannot be mapped, being in torch.save's legacy format: save it again, or load "
            "it with mmap=False"
        )
    try:
        if _is_safetensors(head):
            from safetensors.torch import load_file

            # Onto the CPU first: safetensors knows only a few chips by name.
            return {name: tensor.to(target) for name, tensor in load_file(path).items()}
        with torch.serialization.safe_globals([(_rebuild_npu_tensor, _NPU_REBUILD)]):
            return torch.load(path, map_location=target, weights_only=True, mmap=mmap)
    # What says nothing about the file: the machine's memory, and warnings made errors.
    except (MemoryError, torch.OutOfMemoryError, Warning):
        raise
    # A damaged file shows as pickle's, zip's, safetensors', EOFError, KeyError, RuntimeError, or
    # as an OSError with EINVAL, when torch seeks before its start.
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(_explain(path, error)) from error


def _target(map_location: str | torch.device | Device) -> torch.device:
    if str(map_location) in {"cpu", "meta"}:
        return torch.device(str(map_location))
    return find_device(map_location).torch_device


def _explain(path: Path, error: Exception) -> str:
    refused = _REFUSED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if refused:
        return (
            f"{path} holds more than tensors and plain containers, which could run code when "
            f"opened ({refused[1] or refused[2]}): save model.state_dict() instead, or open it "
            "with torch.load(weights_only=False) if you trust it"
        )
    lines = str(error).splitlines()
    reason = lines[0] if lines and not isinstance(error, pickle.UnpicklingError) else ""
    return (
        f"{path} is no complete checkpoint of torch.save or safetensors "
        f"({reason or type(error).__name__}): copy or save it again"
    )


_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

# How torch's safe unpickler names what it refuses to construct or call.
_REFUSED = re.compile(
    r"(?:GLOBAL ([\w.]+) |(?:create new object|build) .* but got (?:<class ')?([\w.]+))"
)


def _is_safetensors(head: bytes) -> bool:
    """A safetensors file begins with its header's length, 8 bytes, and the header's brace."""
    return head[8:9] == b"{" and not head.startswith(_ZIP)


# torch_npu saves tensors through a function of its own; its last argument describes the memory
# format on the chip, which means nothing elsewhere. Opening such a file must not need torch_npu.
_NPU_REBUILD = "torch_npu.utils.storage._rebuild_npu_tensor"


def _rebuild_npu_tensor(
    storage: Any,
    storage_offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    backward_hooks: Any,
    npu_storage_info: Any,
) -> torch.Tensor:
    tensor: torch.Tensor = torch._utils._rebuild_tensor_v2(
        storage, storage_offset, size, stride, requires_grad, backward_hooks
    )
    return tensor
