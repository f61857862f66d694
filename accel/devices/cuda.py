"""NVIDIA (CUDA) and AMD (ROCm): one torch device type, two families."""

from __future__ import annotations

import torch

from accel.devices.accelerator import AcceleratorDevice
from accel.devices.formats import ScaledProduct, cuda_products


def _count(built_for_it: bool) -> int:
    return torch.cuda.device_count() if built_for_it and torch.cuda.is_available() else 0


class CudaDevice(AcceleratorDevice):
    """An NVIDIA GPU."""

    family = "cuda"
    torch_type = "cuda"

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


class RocmDevice(AcceleratorDevice):
    """An AMD GPU; torch calls its device type `cuda`."""

    family = "rocm"
    torch_type = "cuda"

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
