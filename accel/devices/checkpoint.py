"""Opening checkpoints wherever they were saved."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from accel.devices.base import Device


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
        map_location: Where its tensors go, whatever device they were saved from. On the CPU by
            default: `load_state_dict` copies from there without a second copy on the device.
        mmap: Map the file instead of reading it (files of `torch.save`, on the CPU).

    Returns:
        What was saved; a dictionary of tensors for safetensors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, is no checkpoint, or holds more than tensors and containers.
    """
    path = Path(path)
    target = map_location.torch_device if isinstance(map_location, Device) else map_location
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if _is_safetensors(head):
            from safetensors.torch import load_file

            return load_file(path, device=str(target))
        with torch.serialization.safe_globals([(_rebuild_npu_tensor, _NPU_REBUILD)]):
            return torch.load(path, map_location=target, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain containers, which could run code when "
            "opened: save model.state_dict() instead, or open it with torch.load(weights_only="
            f"False) if you trust it ({str(error).splitlines()[0]})"
        ) from error
    # safetensors raises its own type, torch RuntimeError or EOFError for truncated archives.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is no complete checkpoint of torch.save or safetensors: {reason}; copy or "
            "save it again"
        ) from error


def _is_safetensors(head: bytes) -> bool:
    """A safetensors file begins with its header's length, 8 bytes, and the header's brace."""
    return len(head) == 9 and head[8:] == b"{" and head[:2] != b"PK"


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
