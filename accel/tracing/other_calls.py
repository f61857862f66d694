"""Flags of CUDA's libraries, profiles, and random states of CUDA devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from accel.devices.profiling_functions import profiler_activities
from accel.devices.seed_functions import fork_rng
from accel.tracing.patching import Function, replace
from accel.tracing.tracer import Tracer

_FLAGS = {
    "torch.backends.cudnn": torch.backends.cudnn,
    "torch.backends.cuda.matmul": torch.backends.cuda.matmul,
}
_NO_EFFECT = "set as asked; it has no effect here"


def install_others(tracer: Tracer) -> None:
    """Count flags, and redirect profiles and random states."""
    for name, flags in _FLAGS.items():
        _count_flags(tracer, name, type(flags))
    replace(torch.profiler.profile, "__init__", lambda it: _profile(tracer, it))
    replace(torch.random, "fork_rng", lambda it: _fork(tracer, it))


def _count_flags(tracer: Tracer, name: str, owner: Any) -> None:
    original: Function = owner.__setattr__

    def set_flag(self: Any, flag: str, value: Any) -> None:
        original(self, flag, value)
        if not flag.startswith("_") and tracer.target != "cuda":
            tracer.note(f"{name}.{flag}", value, "", _NO_EFFECT)

    owner.__setattr__ = set_flag


def _profile(tracer: Tracer, original: Function) -> Function:
    cuda = torch.profiler.ProfilerActivity.CUDA

    def replacement(self: Any, *args: Any, **kwargs: Any) -> None:
        activities = kwargs.get("activities")
        if isinstance(activities, Iterable) and tracer.target != "cuda":
            asked = list(activities)
            if cuda in asked:
                others = [one for one in asked if one != cuda]
                own = profiler_activities(cpu=False)
                kwargs["activities"] = [*others, *own] or profiler_activities()
                tracer.note("torch.profiler.profile", "ProfilerActivity.CUDA", tracer.target)
        original(self, *args, **kwargs)

    return replacement


def _fork(tracer: Tracer, original: Function) -> Function:
    def replacement(
        devices: Any = None, enabled: bool = True, *args: Any, device_type: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        named = device_type == "cuda" or (device_type is None and devices is not None)
        if not named or tracer.target == "cuda":
            return original(devices, enabled, *args, device_type=device_type, **kwargs)
        tracer.note("torch.random.fork_rng", devices, "accel.fork_rng")
        return fork_rng(devices, enabled)

    return replacement
