"""NVIDIA (CUDA) and AMD (ROCm): one torch device type, two families."""

from __future__ import annotations

from collections.abc import Callable

import torch

from accel.devices.accelerator import AcceleratorDevice
from accel.devices.formats import ScaledProduct, cuda_products


class _TorchCudaDevice(AcceleratorDevice):
    """What both share: `torch.cuda`'s runtime, which is not started to be counted or asked."""

    torch_type = "cuda"

    @classmethod
    def started(cls) -> bool:
        """Whether CUDA has started in this process."""
        return bool(torch.cuda.is_initialized())

    @classmethod
    def in_bad_fork(cls) -> bool:
        """Whether a parent process has started CUDA."""
        return torch.cuda._is_in_bad_fork()

    @classmethod
    def at_start(cls, call: Callable[[], None]) -> None:
        """Call something when CUDA starts; at once where it has started."""
        torch.cuda._lazy_call(call)


def _count(built_for_it: bool) -> int:
    """Devices by the management library, as torch counts before the runtime has started.

    `torch.cuda.is_available()` would start the driver: visible devices set later had no effect, and
    forked processes could not use CUDA.
    """
    if not built_for_it:
        return 0
    if torch.cuda._is_in_bad_fork():  # the runtime cannot be asked here, and would say 0
        amd = torch.version.hip is not None
        count = torch.cuda._device_count_amdsmi() if amd else torch.cuda._device_count_nvml()
        if count >= 0:
            return count
    return torch.cuda.device_count()


class CudaDevice(_TorchCudaDevice):
    """An NVIDIA GPU."""

    family = "cuda"

    @classmethod
    def count(cls) -> int:
        """Usable NVIDIA GPUs; 0 in a torch built for AMD or for no GPU."""
        return _count(torch.version.cuda is not None)

    def fp8_compute_dtypes(self) -> frozenset[torch.dtype]:
        """E4M3 and E5M2 from compute capability 8.9 (Ada, Hopper) on; Ampere has none."""
        if torch.cuda.get_device_capability(self.index) < (8, 9):
            return frozenset()
        return frozenset({torch.float8_e4m3fn, torch.float8_e5m2})

    def scaled_products(self) -> frozenset[ScaledProduct]:
        """By its compute capability."""
        return cuda_products(torch.cuda.get_device_capability(self.index))


class RocmDevice(_TorchCudaDevice):
    """An AMD GPU; torch calls its device type `cuda`."""

    family = "rocm"

    @classmethod
    def count(cls) -> int:
        """Usable AMD GPUs; 0 in a torch built for NVIDIA or for no GPU."""
        return _count(torch.version.hip is not None)

    def fp8_compute_dtypes(self) -> frozenset[torch.dtype]:
        """The fnuz formats on MI300 (gfx94x), the OCP formats on MI350 (gfx95x) and gfx12."""
        architecture = str(torch.cuda.get_device_properties(self.index).gcnArchName)
        if architecture.startswith("gfx94"):
            return frozenset({torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})
        if architecture.startswith(("gfx95", "gfx12")):
            return frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
        return frozenset()
