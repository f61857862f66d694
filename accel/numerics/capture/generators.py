"""The states of the random generators, as digests."""

from __future__ import annotations

import hashlib

import torch


def generator_digests() -> dict[str, str]:
    """A digest of the state of torch's default generators: the CPU's and the accelerator's."""
    found = {"cpu": _digest(torch.get_rng_state())}
    here = torch.accelerator.current_accelerator()
    if here is not None and torch.accelerator.is_available():
        module = torch.get_device_module(here)
        if hasattr(module, "get_rng_state"):
            found[here.type] = _digest(module.get_rng_state())
    return found


def _digest(state: torch.Tensor) -> str:
    with torch._C._DisableTorchDispatch():  # the program's own modes do not see the recorder
        return hashlib.sha256(state.cpu().numpy().tobytes()).hexdigest()[:32]
