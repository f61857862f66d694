"""The states of torch's random generators, of whatever devices a model is on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from accel.devices import Device, find_device
from accel.devices.base import RngState


class Generators:
    """The default generators of the CPU and of other devices, of any family.

    Python's and NumPy's generators are not among them.

    Args:
        devices: Any; the CPU is always one.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        others = {device for device in devices if device.type not in ("cpu", "meta")}
        names = sorted(others, key=str) or [torch.device("cpu")]
        self.devices: list[Device] = [find_device(name) for name in names]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Generators:
        """Of the devices that tensors are on."""
        return cls({tensor.device for tensor in tensors})

    def states(self) -> list[RngState]:
        """A state for each device, each with the CPU's."""
        return [device.rng_state() for device in self.devices]

    def restore(self, states: list[RngState]) -> None:
        """Go back to what `states` returned."""
        for device, state in zip(self.devices, states, strict=True):
            device.set_rng_state(state)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """A block after which they are as before, whatever was drawn in it."""
        states = self.states()
        try:
            yield
        finally:
            self.restore(states)
