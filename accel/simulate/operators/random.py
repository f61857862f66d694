"""Random numbers: drawn on the CPU from the state of the device's own generator.

The simulated chip's stream is a function of its generator's seed and offset, as on the chip, but
not the chip's own stream: that cannot be reproduced without it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from accel.simulate.operators import memory

if TYPE_CHECKING:
    from accel.simulate.operators.generic import Plan

_STATE = struct.Struct("<Qq")  # torch_npu's generator state: seed and Philox offset
_STEP = 4  # an offset counts 32-bit numbers, four to a Philox block
_MIX = 0x9E3779B97F4A7C15  # odd constant of the golden ratio: neighbouring offsets, distant seeds


def draw_seed(generator: Any) -> int:
    """A seed from a device generator, which moves on so that the next one differs."""
    state = generator.get_state()
    seed, offset = _STATE.unpack(bytes(state.tolist()))
    generator.set_state(
        torch.tensor(list(_STATE.pack(seed, offset + _STEP)), dtype=torch.uint8, device="cpu")
    )
    return int((seed + (offset // _STEP + 1) * _MIX) & 0x7FFFFFFFFFFFFFFF)


def default_generator(device: torch.device) -> Any:
    """torch_npu's generator of a device."""
    index = memory.npu().current_device() if device.index is None else device.index
    memory.npu().init()
    return memory.npu().default_generators[index]


def run(
    operator: Callable[..., Any],
    plan: Plan,
    device: torch.device,
    args: list[Any],
    kwargs: dict[str, Any],
) -> Any:
    """Run a random operator on the CPU with numbers that follow from the device's generator."""
    given, place = None, None
    if plan.generator is not None:
        index = plan.arguments.index(plan.generator)
        place = index if index < len(args) else None
        given = kwargs.get(plan.generator) if place is None else args[place]
    if given is None and not plan.is_random:
        return operator(*args, **kwargs)
    if given is None:
        given = default_generator(device)
    elif given.device.type != device.type:
        raise RuntimeError(
            f"Expected a '{device.type}' device type for generator but found "
            f"'{given.device.type}' ({plan.name} on the simulated Ascend)"
        )
    seed = draw_seed(given)
    if plan.generator is None:
        return _with_default_seed(operator, seed, args, kwargs)
    own = torch.Generator(device="cpu").manual_seed(seed)
    if place is None:
        return operator(*args, **{**kwargs, plan.generator: own})
    args[place] = own
    return operator(*args, **kwargs)


def _with_default_seed(
    operator: Callable[..., Any], seed: int, args: list[Any], kwargs: dict[str, Any]
) -> Any:
    """Run with torch's own CPU generator seeded for this call alone.

    For operators that take no generator. A thread that draws from it meanwhile sees the seed.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        return operator(*args, **kwargs)
    finally:
        torch.default_generator.set_state(before)
