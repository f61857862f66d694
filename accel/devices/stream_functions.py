"""Flat streams and events. On an accelerator they are torch's generic ones, on a CPU `HostStream`s.

One kind throughout: torch_npu refuses to record an event of its own in a generic stream.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from accel.devices.blocks import Block
from accel.devices.device_functions import is_available
from accel.devices.resolution import DeviceLike, ask, module_of, resolve
from accel.devices.streams import HostEvent, HostStream
from accel.devices.streams import Stream as AnyStream


class _StreamType(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, (torch.Stream, HostStream))


class _EventType(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, (torch.Event, HostEvent))


class Stream(metaclass=_StreamType):
    """A new stream of a device, for `torch.cuda.Stream`: a `torch.Stream`.

    On a CPU a `HostStream`, whose waits do nothing: work there is done when its call returns.

    Args:
        device: Where; the current device by default.
        priority: Lower numbers go first, as on CUDA; nothing on a CPU.
        **kwargs: As `torch.Stream` takes them.
    """

    def __new__(cls, device: DeviceLike = None, priority: int = 0, **kwargs: Any) -> Any:
        """Make it; what is returned is of torch's own class."""
        chosen = resolve(device)
        if chosen.family == "cpu":
            return HostStream()
        return torch.Stream(chosen.torch_device, priority=priority, **kwargs)


class Event(metaclass=_EventType):
    """A new event, for `torch.cuda.Event`: a `torch.Event`; on a CPU one that notes real time.

    Args:
        enable_timing: Whether `elapsed_time`, in milliseconds, may be asked for.
        blocking: Whether `synchronize` sleeps instead of spinning; nothing on a CPU.
        interprocess: Whether another process may wait for it; nothing on a CPU.
        external: Of CUDA graphs only; another accelerator refuses it.

    Raises:
        TypeError: `external` on an accelerator that has no such events.
    """

    def __new__(
        cls,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> Any:
        """Make it; what is returned is of torch's own class."""
        chosen = resolve(None)
        if chosen.family == "cpu":
            return HostEvent(enable_timing)
        if external:
            return module_of(chosen).Event(enable_timing, blocking, interprocess, external=True)
        return torch.Event(
            chosen.torch_device,
            enable_timing=enable_timing,
            blocking=blocking,
            interprocess=interprocess,
        )


def current_stream(device: DeviceLike = None) -> AnyStream:
    """The current stream of the device; on a CPU one whose waits do nothing."""
    return resolve(device).current_stream()


def default_stream(device: DeviceLike = None) -> AnyStream:
    """The stream that a device begins with; on a CPU one whose waits do nothing."""
    chosen = resolve(device)
    if chosen.family == "cpu":
        return HostStream()
    own = ask(chosen, "default_stream", chosen.index)
    generic: AnyStream = torch.Stream(
        stream_id=own.stream_id, device_index=own.device_index, device_type=own.device_type
    )
    return generic


def set_stream(stream: AnyStream | None) -> None:
    """Make a stream the current one, and its device with it; on a CPU, or with None, nothing."""
    if isinstance(stream, torch.Stream):
        torch.accelerator.set_stream(stream)


def stream(stream: AnyStream | None) -> Block:
    """A block whose work goes to a stream, for `with torch.cuda.stream(s):`.

    Args:
        stream: None, and one of a CPU, change nothing.
    """
    return Block(functools.partial(_working_in, stream))


def record_stream(tensor: torch.Tensor, stream: AnyStream) -> None:
    """Tell the allocator that a stream uses a tensor, for `tensor.record_stream(s)`.

    On a CPU, whose tensors refuse it, nothing.
    """
    if isinstance(stream, torch.Stream) and tensor.device.type != "cpu":
        tensor.record_stream(stream)


def is_current_stream_capturing() -> bool:
    """Whether work is recorded into a graph now; False on a CPU."""
    return is_available() and bool(ask(resolve(None), "is_current_stream_capturing"))


@contextlib.contextmanager
def _working_in(stream: AnyStream | None) -> Iterator[None]:
    if not isinstance(stream, torch.Stream):
        yield
        return
    here = torch.accelerator.current_stream()
    there = torch.accelerator.current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(there)
        torch.accelerator.set_stream(here)  # the device that was current, too
