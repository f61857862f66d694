"""Flat functions for `torch.distributed`: which collectives go with the device."""

from __future__ import annotations

import torch

from accel.devices.choice import current_family
from accel.devices.device_functions import is_available
from accel.devices.resolution import DeviceLike, resolve
from accel.errors import DeviceError

# Vendors' collective libraries by torch's names for their backends.
_VENDORS = frozenset({"nccl", "hccl", "xccl", "cncl", "mccl", "rccl"})


def dist_backend(spec: str | None = None) -> str:
    """The backend for `init_process_group` on the current device, for `"nccl"`.

    Args:
        spec: None or empty, or what the program was told: a vendor's backend means the one of this
            device, and any other is kept. In pairs, as in `cuda:nccl,cpu:gloo`, the accelerator's
            pair is made this device's, and left out on a CPU.

    Returns:
        `nccl`, `hccl`, …; `gloo` on a CPU.

    Raises:
        DeviceError: torch knows no backend for this device.
    """
    if not spec:
        return _own_backend()
    pairs = [part.strip().partition(":") for part in spec.split(",")]
    names = []
    for device, separator, backend in pairs:
        if not separator:
            names.append(_own_backend() if device.lower() in _VENDORS else device)
        elif device == "cpu":
            names.append(f"cpu:{backend}")
        elif is_available():
            own = _own_backend() if backend.lower() in _VENDORS else backend
            names.append(f"{current_family().torch_type}:{own}")
    return ",".join(names) if names else _own_backend()


def is_accelerator_backend(backend: str) -> bool:
    """Whether a backend is a vendor's for its accelerators, for `backend == "nccl"`.

    Not so `gloo`, which is what `dist_backend` gives on a CPU.

    Args:
        backend: A name, such as `torch.distributed.get_backend()` returns, or pairs of device and
            backend: then whether one of them is.
    """
    names = {part.strip().rpartition(":")[2].lower() for part in str(backend).split(",")}
    own = current_family()().collective_backend if is_available() else None
    return bool(names & (_VENDORS | ({own} if own else set())))


def is_accelerator_backend_available() -> bool:
    """Whether this torch has the accelerator's collectives, for `is_nccl_available()`.

    False on a CPU, where gloo serves.
    """
    if not is_available() or not torch.distributed.is_available():
        return False
    backend = current_family()().collective_backend
    return backend is not None and torch.distributed.is_backend_available(backend)


def ddp_device_ids(rank: DeviceLike = None) -> list[int] | None:
    """`device_ids` for `DistributedDataParallel`, for `[rank]`; None on a CPU, as it wants there.

    Args:
        rank: The device's index, or the device; the current one by default.

    Raises:
        DeviceError: No such device is here.
    """
    chosen = resolve(rank)
    return None if chosen.family == "cpu" else [chosen.index]


def ddp_output_device(rank: DeviceLike = None) -> int | None:
    """`output_device` for `DistributedDataParallel`, for `rank`; None on a CPU.

    Raises:
        DeviceError: No such device is here.
    """
    ids = ddp_device_ids(rank)
    return None if ids is None else ids[0]


def _own_backend() -> str:
    family = current_family()
    backend = family().collective_backend
    if backend is None:
        raise DeviceError(
            f"torch knows no collective backend for {family.family}: install the vendor's plugin, "
            "or give init_process_group a backend by name"
        )
    return backend
