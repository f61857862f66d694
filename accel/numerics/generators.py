"""The random generators that a model may draw from: of its chips, of the CPU, Python's, NumPy's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from accel import devices


@dataclass(frozen=True)
class States:
    """What every generator would draw next."""

    torch: list[devices.RngState]
    python: Any
    numpy: Any

    def differ(self, other: States) -> bool:
        """Whether something was drawn between the two."""
        return self._bytes() != other._bytes()

    def _bytes(self) -> list[Any]:
        tensors = [t for state in self.torch for t in (state.cpu, state.device) if t is not None]
        return [*(bytes(t.numpy()) for t in tensors), self.python, repr(self.numpy["state"])]


class Generators:
    """The generators of the chips that a model's parameters are on, and of the host."""

    def __init__(self, model: nn.Module) -> None:
        places = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
        # A CPU tensor's device has no index in common with the default one: one CPU is enough.
        chips = sorted(str(place) for place in places if place.type != "cpu")
        self._devices = [devices.find_device(torch.device(name)) for name in ["cpu", *chips]]

    def states(self) -> States:
        """The states now."""
        return States(
            torch=[device.rng_state() for device in self._devices],
            python=random.getstate(),
            numpy=np.random.get_state(legacy=False),
        )

    @contextlib.contextmanager
    def preserved(self) -> Iterator[States]:
        """A block after which every generator is as it was before; yields that state."""
        before = self.states()
        try:
            yield before
        finally:
            for device, state in zip(self._devices, before.torch, strict=True):
                device.set_rng_state(state)
            random.setstate(before.python)
            np.random.set_state(before.numpy)
