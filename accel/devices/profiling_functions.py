"""Flat marks for the vendor's profiler: NVTX on CUDA, MSTX on Ascend, nothing elsewhere.

They change no numbers, so a chip without such marks, like a CPU, takes none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from accel.devices.choice import current_family
from accel.devices.device_functions import is_available
from accel.devices.resolution import module_of

_Activity = torch.profiler.ProfilerActivity


def range_push(msg: str) -> int:
    """Begin a nested range, for `torch.cuda.nvtx.range_push`.

    Args:
        msg: Its name in the profile.

    Returns:
        How deep it is, counted from 0; 0 on a CPU, negative where the vendor's tool is not there.
    """
    return int(_mark("range_push", msg) or 0)


def range_pop() -> int:
    """End the innermost range of `range_push`, and tell how deep it was; 0 on a CPU."""
    return int(_mark("range_pop") or 0)


def range_start(msg: str) -> int:
    """Begin a range that may end on another thread, and return its handle; 0 on a CPU."""
    return int(_mark("range_start", msg) or 0)


def range_end(range_id: int) -> None:
    """End the range that `range_start` returned; on a CPU nothing."""
    _mark("range_end", range_id)


def mark(msg: str) -> None:
    """Note a moment in the profile; on a CPU nothing."""
    _mark("mark", msg)


@contextlib.contextmanager
def annotate(msg: str, *args: object, **kwargs: object) -> Iterator[None]:
    """A block, or a decorated function, as a range, for `torch.cuda.nvtx.range`; on a CPU nothing.

    Args:
        msg: Its name in the profile, formatted with what follows: `annotate("step {}", i)`.
        *args: For `msg.format`.
        **kwargs: For `msg.format`.
    """
    range_push(msg.format(*args, **kwargs))
    try:
        yield
    finally:
        range_pop()


def profiler_activities(*, cpu: bool = True) -> list[Any]:
    """What `torch.profiler.profile(activities=...)` can record here.

    For `[ProfilerActivity.CPU, ProfilerActivity.CUDA]`: the CPU and the current accelerator.

    Args:
        cpu: False: the accelerator's alone, an empty list on a CPU.
    """
    supported = torch.profiler.supported_activities()
    devices = [activity for activity in supported if activity.name != "CPU"]
    return [*([_Activity.CPU] if cpu else []), *(devices if is_available() else [])]


def _mark(name: str, *arguments: Any) -> Any:
    if not is_available():
        return None
    module = module_of(current_family()())
    # torch.cuda brings NVTX (roctx on AMD), torch_npu MSTX, by the same names.
    marks = getattr(module, "nvtx", None) or getattr(module, "mstx", None)
    return None if marks is None else getattr(marks, name)(*arguments)
