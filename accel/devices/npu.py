"""Huawei Ascend, through torch_npu."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch

from accel.devices import chips
from accel.devices.accelerator import AcceleratorDevice
from accel.devices.formats import ScaledProduct, ascend_products
from accel.errors import DeviceError

_logger = logging.getLogger("accel")


def _count_by_driver(npu: Any) -> int:
    """Visible NPUs by the driver; negative where it does not tell, or the runtime has started."""
    count = getattr(npu, "_device_count_ascend_hal", None)
    return -1 if count is None or npu.is_initialized() else int(count())


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
        # The driver's own library counts without the runtime, which a count would start.
        told = _count_by_driver(npu)
        if told >= 0:
            return told
        return int(npu.device_count()) if npu.is_available() else 0

    @classmethod
    def started(cls) -> bool:
        """Whether the runtime has started in this process."""
        return bool(torch.get_device_module("npu").is_initialized())

    @classmethod
    def resting_index(cls) -> int:
        """The current index; torch_npu's set_device does not count as a start."""
        import torch_npu

        return max(0, int(torch_npu._C._npu_getDeviceWithoutSet()))

    @classmethod
    def in_bad_fork(cls) -> bool:
        """Whether a parent process has started the runtime."""
        return bool(torch.get_device_module("npu")._is_in_bad_fork())

    @classmethod
    def at_start(cls, call: Callable[[], None]) -> None:
        """Call something when the runtime starts; at once where it has started."""
        torch.get_device_module("npu")._lazy_call(call)

    @property
    def chip(self) -> chips.Chip:
        """What this chip has and how it differs from other Ascend chips.

        Raises:
            DeviceError: Its name is not in the table (`accel.devices.chips`).
        """
        name = self.name
        try:
            return chips.chip(name)
        except ValueError as error:
            raise DeviceError(
                f"npu:{self.index} is a chip that this version does not know: {name!r}; a newer "
                "one may"
            ) from error

    def fp8_compute_dtypes(self) -> frozenset[torch.dtype]:
        """E4M3 and E5M2 on Ascend 950; 910 and 310 have no FP8 arithmetic."""
        try:
            has_fp8 = self.chip.fp8
        except DeviceError as error:
            # Everything else of such a chip is found by trying, so that it stays usable.
            _logger.warning("%s; its 8-bit floats are taken for storage only", error)
            has_fp8 = False
        if not has_fp8:
            return frozenset()
        return frozenset({torch.float8_e4m3fn, torch.float8_e5m2})

    def scaled_products(self) -> frozenset[ScaledProduct]:
        """By its chip; none of a chip that is not known."""
        return ascend_products(self.chip) if self.fp8_compute_dtypes() else frozenset()

    def clear_overflow(self) -> None:
        """Clear the chip's float status, where it saturates."""
        if self._saturates():
            torch.ops.npu.npu_clear_float_status(self._no_status())

    def overflow(self) -> torch.Tensor | None:
        """The chip's float status, where it saturates: not zero after an overflow."""
        if not self._saturates():
            return None
        status: torch.Tensor = torch.ops.npu.npu_get_float_status(self._no_status())
        return status[0] != 0

    def _saturates(self) -> bool:
        # The chip's default, or what INF_NAN_MODE_FORCE_DISABLE made of it.
        return not self.module.utils.is_support_inf_nan()

    def _no_status(self) -> torch.Tensor:
        return torch.zeros(8, device=self.torch_device)
