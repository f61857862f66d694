"""Which device of its family a thread computes on.

Torch keeps a current device per thread, and its own blocks change it, so it is asked each time.
What the environment asks for (`ACCEL_DEVICE=cuda:1`, `LOCAL_RANK`) is where a thread begins: it is
made torch's current device once. Where the vendor's runtime has not started, that waits in the
vendor's queue of calls for its start: an earlier start would fix `CUDA_VISIBLE_DEVICES` and the
like, and make forked processes unusable.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from accel.devices.accelerator import AcceleratorDevice
from accel.devices.base import Device
from accel.devices.registry import _registry, constant_in_graphs


class _Mine(NamedTuple):
    """What this thread did with a family.

    Attributes:
        heard: The environment's index that it has acted on.
        own: The index that the program set.
    """

    heard: int | None = None
    own: int | None = None

    @property
    def last(self) -> int | None:
        """Where this library put it; None where it never did."""
        return self.heard if self.own is None else self.own


_NOTHING = _Mine()


def index_of(family: type[Device], wish: int | None, named: bool) -> int:
    """The index to compute on in this thread; where the environment asks for one, made current.

    Args:
        family: Not the CPU's.
        wish: The index that the environment asks for.
        named: By `ACCEL_DEVICE`, and not by `LOCAL_RANK`.
    """
    if not issubclass(family, AcceleratorDevice):
        return _own(family, wish)
    if not _has_started(family):
        return _resting(family, wish)
    if wish is not None:
        _settle(family, wish, named)
    return family.current_index()


def follow(device: Device) -> Device:
    """A block's device, unless torch has made another of its family current since."""
    family = type(device)
    if not issubclass(family, AcceleratorDevice) or not _has_started(family):
        return device
    return family(family.current_index())


def index_without_binding(family: type[Device], rank: int | None) -> int:
    """The same for a family that is only named: nothing is made current."""
    mine = _mine(family)
    if rank is not None and _registry.follows_rank and rank != mine.heard:
        return rank
    if not issubclass(family, AcceleratorDevice):
        return mine.last or 0
    return family.current_index() if _has_started(family) else _unstarted(family, mine)


def settled_by_program(family: type[Device], index: int, heard: int | None) -> None:
    """Note what `set_device` chose, before the device is made current.

    Args:
        family: Of the device.
        index: Its own.
        heard: What the environment asked for by name, which this overrules.
    """
    _note(family, _Mine(heard, index))


def _mine(family: type[Device]) -> _Mine:
    threads: dict[type[Device], _Mine] = getattr(_registry.local, "mine", {})
    return threads.get(family, _NOTHING)


def _note(family: type[Device], mine: _Mine) -> None:
    _registry.local.mine = {**getattr(_registry.local, "mine", {}), family: mine}


@constant_in_graphs
def _own(family: type[Device], wish: int | None) -> int:
    """The index of a chip that torch keeps no current one of."""
    mine = _mine(family)
    if wish is None:
        return mine.own or 0
    if wish == mine.heard:
        return wish if mine.own is None else mine.own
    _note(family, _Mine(wish))
    family(wish).activate()
    return wish


@constant_in_graphs
def _settle(family: type[AcceleratorDevice], wish: int, named: bool) -> None:
    """Begin where the environment asks for it, unless this thread has begun."""
    mine = _mine(family)
    if wish == mine.heard:
        return
    # Threads begin at 0: the program, or a block of torch's, has put this one elsewhere.
    moved = mine == _NOTHING and not named and family.current_index() != 0
    _note(family, _Mine(wish))
    if not moved:
        family(wish).activate()


@constant_in_graphs
def _resting(family: type[AcceleratorDevice], wish: int | None) -> int:
    """The index where the runtime has not started, or only in a parent process."""
    mine = _mine(family)
    if wish is None or wish == mine.heard:
        return _unstarted(family, mine)
    if family not in _registry.queued and not family.in_bad_fork():
        _registry.queued[family] = True
        family.at_start(functools.partial(_begin, family))
    return wish


def _unstarted(family: type[AcceleratorDevice], mine: _Mine) -> int:
    if mine.last is None:
        return family.resting_index()
    return mine.last if family.in_bad_fork() else family.current_index()


def _begin(family: type[AcceleratorDevice]) -> None:
    """At the runtime's start: go where the environment asks for by then."""
    from accel.devices.choice import wish_of

    wish = wish_of(family)
    if wish is not None and wish != _mine(family).heard:
        _note(family, _Mine(wish))
        family(wish).activate()


def _has_started(family: type[AcceleratorDevice]) -> bool:
    if torch.compiler.is_compiling():
        _start(family)  # as the compiler does later; what is traced here stays true then
    return _started(family)


@constant_in_graphs
def _started(family: type[AcceleratorDevice]) -> bool:
    return family.started()


@constant_in_graphs
def _start(family: type[AcceleratorDevice]) -> None:
    if not family.started() and not family.in_bad_fork():
        family(0).module.init()
