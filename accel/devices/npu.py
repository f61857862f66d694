"""Huawei Ascend, through torch_npu."""

from __future__ import annotations

import importlib.util

import torch

from accel.devices.accelerator import AcceleratorDevice


class NpuDevice(AcceleratorDevice):
    """An Ascend NPU."""

    family = "npu"
    torch_type = "npu"

    @classmethod
    def count(cls) -> int:
        """Usable NPUs; 0 where torch_npu is not installed.

        Raises:
            ImportError, RuntimeError, OSError: torch_npu is installed and does not load, for
                example because CANN is missing. The registry keeps that and goes on.
        """
        if not hasattr(torch, "npu"):
            # torch loads it by itself unless autoloading is off; then it is ours to load.
            if importlib.util.find_spec("torch_npu") is None:
                return 0
            import torch_npu  # noqa: F401 - registers torch.npu
        npu = torch.get_device_module("npu")
        return int(npu.device_count()) if npu.is_available() else 0

    def fp8_compute_dtypes(self) -> frozenset[torch.dtype]:
        """E4M3 and E5M2 on Ascend 950; 910 and 310 have no FP8 arithmetic."""
        if not self.name.startswith("Ascend950"):
            return frozenset()
        return frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
