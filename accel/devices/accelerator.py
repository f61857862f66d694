"""Every chip that torch sees as an accelerator, through `torch.accelerator`.

This is the whole family for Intel `xpu`, Apple `mps`, Cambricon `mlu`, Moore Threads `musa` and any
chip whose plugin registers with torch; CUDA and Ascend build on it (cuda.py, npu.py).
`torch.accelerator` has no random state, no chip name and no dtypes: for those the family asks the
module that torch names after the device (`torch.xpu`, `torch.mlu`, …), by the names that
`torch.cuda` made customary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from accel.devices.base import Device, MemoryInfo
from accel.errors import DeviceError


class AcceleratorDevice(Device):
    """A device of whatever accelerator torch was built or extended for."""

    @classmethod
    def count(cls) -> int:
        """Devices of this family's type that torch sees and can use."""
        current = torch.accelerator.current_accelerator(check_available=True)
        if current is None or current.type != cls.torch_type:
            return 0
        return torch.accelerator.device_count()

    @classmethod
    def current_index(cls) -> int:
        """Index of torch's current device in this thread."""
        return torch.accelerator.current_device_index()

    @classmethod
    def started(cls) -> bool:
        """Whether the runtime has started, so that asking for an index does not start it.

        Always so for a chip that has no queue of calls for its start.
        """
        return True

    @classmethod
    def resting_index(cls) -> int:
        """The current index while the runtime has not started."""
        return 0

    @classmethod
    def in_bad_fork(cls) -> bool:
        """Whether a parent process has started the runtime, which this process cannot use."""
        return False

    @classmethod
    def at_start(cls, call: Callable[[], None]) -> None:
        """Call something when the runtime starts; at once where it has started."""
        call()

    @property
    def module(self) -> Any:
        """The module that torch names after the device, such as `torch.xpu` or `torch.mlu`."""
        return torch.get_device_module(self.torch_type)

    @property
    def name(self) -> str:
        """The chip as its driver names it; the device's own name where its module tells none."""
        if not hasattr(self.module, "get_device_name"):
            return str(self.torch_device)
        return str(self._call("get_device_name"))

    def synchronize(self) -> None:
        """Wait until all work submitted to this device is done."""
        torch.accelerator.synchronize(self.torch_device)

    def memory(self) -> MemoryInfo:
        """Tensors of this process on the device, their peak, and the driver's free and total."""
        try:
            free, total = torch.accelerator.get_memory_info(self.torch_device)
            used = torch.accelerator.memory_allocated(self.torch_device)
            peak = torch.accelerator.max_memory_allocated(self.torch_device)
        except RuntimeError as error:
            raise DeviceError(
                f"{self} does not tell its memory ({str(error).splitlines()[0]}); subclass "
                "accel.Device for this chip (CONTRIBUTING, 'Add a chip')"
            ) from error
        return MemoryInfo(used, peak, free, total)

    def reset_peak_memory(self) -> None:
        """Start the peak anew from what is allocated now."""
        torch.accelerator.reset_peak_memory_stats(self.torch_device)

    def empty_cache(self) -> None:
        """Give cached memory back to the driver, on every device of the family."""
        torch.accelerator.empty_cache()

    def activate(self) -> None:
        """Make this torch's current device of the calling thread."""
        torch.accelerator.set_device_index(self.torch_device)

    def activated(self) -> contextlib.AbstractContextManager[Any]:
        """A block in which this is torch's current device of the calling thread."""
        return torch.accelerator.device_index(self.index)

    def own_rng_state(self) -> torch.Tensor:
        """State of this device's generator, uint8."""
        state: torch.Tensor = self._call("get_rng_state")
        return state

    def set_own_rng_state(self, state: torch.Tensor) -> None:
        """Restore what `own_rng_state` returned."""
        self._call("set_rng_state", state)

    def seed_own_generator(self, seed: int) -> None:
        """Seed this device's generator."""
        with self.activated():
            self._call("manual_seed", seed)

    def seed_current(self, seed: int) -> None:
        """Seed the current device's generator, at the runtime's start if that is still to come."""
        self._call("manual_seed", seed)

    def seed_every(self, seed: int) -> None:
        """Seed the generators of all devices of the family; no other device is made current."""
        if hasattr(self.module, "manual_seed_all"):
            self.module.manual_seed_all(seed)
        else:
            super().seed_every(seed)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the device's module, with the index if it takes one."""
        function = getattr(self.module, name, None)
        if function is None:
            raise DeviceError(
                f"torch.{self.torch_type} has no {name}(): its plugin does not offer it; subclass "
                "accel.Device for this chip (CONTRIBUTING, 'Add a chip')"
            )
        # torch.mps has one device, and its functions take no index.
        if _takes_more(function, len(arguments)):
            return function(*arguments, self.index)
        return function(*arguments)


def _takes_more(function: Any, count: int) -> bool:
    """Whether a function takes a positional argument more than `count`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # compiled without a signature: by torch.cuda's example it takes the index
        return True
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in positional for kind in kinds) > count


def family_of(torch_type: str) -> type[AcceleratorDevice]:
    """Make a family for an accelerator that has no file of its own."""
    return type(
        f"{torch_type.capitalize()}Device",
        (AcceleratorDevice,),
        {
            "family": torch_type,
            "torch_type": torch_type,
            "__doc__": f"A device of torch's accelerator `{torch_type}`.",
            "__module__": __name__,
        },
    )
