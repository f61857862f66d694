"""Flat functions about random states, of devices. A CPU's generator is torch's default one.

`torch.cuda`'s leave that one alone, and so do these: `torch.manual_seed` and `Device.seed` seed it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch

from accel.devices.base import Device
from accel.devices.choice import acting_device, current_family
from accel.devices.device_functions import device_count, is_available
from accel.devices.resolution import DeviceLike, ask, module_of, resolve


def manual_seed(seed: int) -> None:
    """Seed the current device's generator; on a CPU nothing, as `torch.cuda.manual_seed`.

    `Device.seed` seeds the device and the CPU together.
    """
    acting_device().seed_current(seed)


def manual_seed_all(seed: int) -> None:
    """Seed every device of the current family; on a CPU nothing.

    As in torch a seed waits, where the runtime has not started, for its start.
    """
    current_family()().seed_every(seed)


def seed() -> None:
    """Seed the current device's generator with a random number; on a CPU nothing."""
    if is_available():
        ask(acting_device(), "seed")


def seed_all() -> None:
    """Seed every device of the current family with one random number; on a CPU nothing."""
    if is_available():
        ask(current_family()(), "seed_all")


def initial_seed() -> int:
    """What the current device's generator was seeded with; 0 on a CPU."""
    return int(ask(acting_device(), "initial_seed")) if is_available() else 0


def get_rng_state(device: DeviceLike = None) -> torch.Tensor:
    """State of the device's generator, uint8 `[N]` on the CPU; `[0]` on a CPU.

    Another chip family refuses it: random streams differ between families.
    """
    state = resolve(device).own_rng_state()
    return torch.empty(0, dtype=torch.uint8, device="cpu") if state is None else state


def set_rng_state(new_state: torch.Tensor, device: DeviceLike = None) -> None:
    """Restore what `get_rng_state` returned; on a CPU nothing.

    Args:
        new_state: uint8 `[N]`.
        device: Whose.
    """
    chosen = resolve(device)
    if chosen.family != "cpu":
        chosen.set_own_rng_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    """The states of every device of the current family; empty on a CPU."""
    return [get_rng_state(device) for device in _all_devices()]


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    """Restore what `get_rng_state_all` returned; on a CPU nothing.

    Raises:
        DeviceError: There are more states than devices.
    """
    if is_available():
        for index, state in enumerate(new_states):
            set_rng_state(state, index)


@contextlib.contextmanager
def fork_rng(devices: Iterable[DeviceLike] | None = None, enabled: bool = True) -> Iterator[None]:
    """A block after which the random states are what they were: the CPU's and the devices'.

    Args:
        devices: Whose besides the CPU's; None means all of the current family. On a CPU there are
            none, so that `devices=[0]` is taken and has no effect.
        enabled: False: change nothing.
    """
    if not enabled:
        yield
        return
    named = _all_devices() if devices is None else [resolve(device) for device in devices]
    chosen = [device for device in named if device.family != "cpu"]
    host, states = torch.get_rng_state(), [get_rng_state(device) for device in chosen]
    try:
        yield
    finally:
        torch.set_rng_state(host)
        for device, state in zip(chosen, states, strict=True):
            set_rng_state(state, device)


def generator(device: DeviceLike = None) -> torch.Generator:
    """A new generator for a device, for `torch.Generator("cuda")`; of the CPU's kind on a CPU."""
    return torch.Generator(resolve(device).torch_device)


def default_generators() -> tuple[torch.Generator, ...]:
    """The default generator of every device, for `torch.cuda.default_generators`; () on a CPU."""
    if not is_available():
        return ()
    device = acting_device()
    if not ask(device, "is_initialized"):
        ask(device, "init")  # before it the vendors' tuples are empty
    generators: tuple[torch.Generator, ...] = tuple(module_of(device).default_generators)
    return generators


def _all_devices() -> list[Device]:
    family = current_family()
    return [family(index) for index in range(device_count())]
