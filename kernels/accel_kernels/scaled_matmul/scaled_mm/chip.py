"""What an NVIDIA GPU and this torch multiply with scales."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def why_absent() -> str | None:
    """Why no product in 8 bits is computed here; None if it is."""
    if not hasattr(F, "scaled_mm"):
        return f"needs torch.nn.functional.scaled_mm, which torch {torch.__version__} has not"
    return _least((8, 9), "8-bit floats")


def why_mx_absent() -> str | None:
    """Why no product with MX scales is computed here; None if it is."""
    return why_absent() or _least((10, 0), "MX scales")


def _least(needed: tuple[int, int], what: str) -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if torch.version.hip is not None:
        return "is written for NVIDIA GPUs: ROCm takes other layouts"
    found = torch.cuda.get_device_capability()
    if found >= needed:
        return None
    return (
        f"{what} need compute capability {needed[0]}.{needed[1]}, and "
        f"{torch.cuda.get_device_name()} has {found[0]}.{found[1]}"
    )


def has_rows(device: torch.device) -> bool:
    """Whether cuBLAS multiplies with scales of rows, into float32 too."""
    return has_blocks(device)


def has_blocks(device: torch.device) -> bool:
    """Whether cuBLAS multiplies with scales of 1x128 and 128x128: 9.x, from CUDA 12.9 on."""
    return torch.cuda.get_device_capability(device)[0] == 9 and _cuda() >= (12, 9)


def _cuda() -> tuple[int, ...]:
    return tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
