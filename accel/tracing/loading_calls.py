"""Checkpoints that were written on CUDA, or that are read to it."""

from __future__ import annotations

from typing import Any

import torch

from accel.tracing.patching import Function, replace
from accel.tracing.tracer import Tracer

# Before torch's own for CUDA, which is 20.
_PRIORITY = 15


def install_loading(tracer: Tracer) -> None:
    """Redirect the devices that a file names, and those of `map_location`."""

    def to_what_is_here(storage: Any, location: str) -> Any:
        place = tracer.redirected(location)
        if place is None or place.type == "cuda":
            return None
        tracer.note("torch.load", location, place, "a tensor of the file")
        return storage if place.type == "cpu" else storage.to(device=place)

    torch.serialization.register_package(_PRIORITY, lambda storage: None, to_what_is_here)
    replace(torch, "load", lambda it: _with_map(tracer, it, "torch.load"))
    torch.serialization.load = torch.load
    replace(torch.jit, "load", lambda it: _with_map(tracer, it, "torch.jit.load"))


def _with_map(tracer: Tracer, original: Function, api: str) -> Function:
    def redirect(given: Any) -> Any:
        if isinstance(given, dict):
            # As text: it takes no torch device in a dictionary.
            redirected = {location: tracer.redirected(to) for location, to in given.items()}
            for location, to in redirected.items():
                if to is not None:
                    tracer.note(api, given[location], to)
            return {**given, **{here: str(to) for here, to in redirected.items() if to}}
        return tracer.device(api, given)

    def replacement(file: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            args = (redirect(args[0]), *args[1:])
        elif "map_location" in kwargs:
            kwargs["map_location"] = redirect(kwargs["map_location"])
        return original(file, *args, **kwargs)

    return replacement
