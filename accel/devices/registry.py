"""The chip families of this process, and what became of them.

They come from this package, from `register_device`, and from the entry-point group `accel.devices`;
one that fails is kept with its traceback (`failures`), shown by `accel doctor`, and breaks nothing.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from accel.devices.accelerator import AcceleratorDevice, family_of
from accel.devices.base import Device
from accel.devices.cpu import CpuDevice
from accel.devices.cuda import CudaDevice, RocmDevice
from accel.devices.npu import NpuDevice

ENTRY_POINT_GROUP = "accel.devices"

_logger = logging.getLogger("accel")
_DeviceClass = TypeVar("_DeviceClass", bound=type[Device])
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class FamilyFailure:
    """A chip family that could not be loaded or asked.

    Attributes:
        family: Its name, or its entry point's.
        source: Where it comes from, e.g. `entry point mychip = my_package:MyDevice`.
        error: The exception in one line.
        traceback: The whole of it.
    """

    family: str
    source: str
    error: str
    traceback: str


class _Registry:
    """The families of this process and the choice among them: the library's only global state."""

    def __init__(self) -> None:
        self.families: dict[str, type[Device]] = {}
        self.failures: dict[str, FamilyFailure] = {}  # by source: names may be taken twice
        self.selected: dict[tuple[Any, ...], Any] = {}  # choice.py, by environment
        self.follows_rank = True  # until the program calls set_device
        self.queued: dict[type[Device], bool] = {}  # families that wait for their runtime's start
        self.plugins_loaded = False
        # Reentrant, since a plugin may use this library while it loads.
        self.lock = threading.RLock()
        self.local = threading.local()
        for family in (CpuDevice, CudaDevice, RocmDevice, NpuDevice):
            self.families[family.family] = family

    def fail(self, family: str, source: str, error: BaseException) -> None:
        if source in self.failures:
            return
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        text = "".join(traceback.format_exception(error))
        self.failures[source] = FamilyFailure(family, source, line, text)
        _logger.warning(
            "the device family %r (%s) failed and is left out: %s; run `accel doctor`",
            family,
            source,
            line,
        )


_registry = _Registry()


def constant_in_graphs(function: _Function) -> _Function:
    """Mark a function that `torch.compile` calls while it traces, taking the result as constant.

    It does what it does for real then; locks, plugins and drivers cannot be traced. It
    returns a number, a string or nothing, and what it changes is not read by what is traced. This
    is `torch.compiler.assume_constant_result` without importing the compiler, which takes seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def log_once(message: str) -> None:
    """Log a warning the first time that it is met."""
    _log_once(message)


@functools.cache
def _log_once(message: str) -> None:
    _logger.warning(message)


def register_device(device_class: _DeviceClass) -> _DeviceClass:
    """Add a chip family; usable as a class decorator.

    Args:
        device_class: A concrete subclass of `Device` with `family` and `torch_type` set.

    Returns:
        `device_class` itself.

    Raises:
        TypeError: It is not a concrete subclass of `Device`.
        ValueError: Another class already has its family name, or that is no plain word.
    """
    if not (isinstance(device_class, type) and issubclass(device_class, Device)):
        raise TypeError(f"register_device takes a subclass of accel.Device, not {device_class!r}")
    missing = sorted(getattr(device_class, "__abstractmethods__", ()))
    missing += [name for name in ("family", "torch_type") if not hasattr(device_class, name)]
    if missing:
        raise TypeError(f"{device_class.__name__} does not define {', '.join(missing)}")
    if not (isinstance(device_class.family, str) and device_class.family.isidentifier()):
        raise ValueError(
            f"{device_class.__name__}.family must be a name like 'npu', not {device_class.family!r}"
        )
    _drop_generic(device_class.torch_type)
    present = _registry.families.get(device_class.family)
    if present is not None and present is not device_class:
        raise ValueError(
            f"the device family {device_class.family!r} is already registered by "
            f"{present.__module__}.{present.__qualname__}; choose another name"
        )
    _registry.families[device_class.family] = device_class
    _registry.selected.clear()
    return device_class


def failure_of(family: str) -> FamilyFailure | None:
    """Why a family is missing: its own failure, else that of a plugin of its name."""
    device_class = _registry.families.get(family)
    if device_class is not None:
        return _registry.failures.get(_source(device_class))
    named = [failure for failure in _registry.failures.values() if failure.family == family]
    return named[0] if named else None


def _drop_generic(torch_type: str) -> None:
    """Forget the family made for an accelerator without one: a class of its own serves it now."""
    generic = _registry.families.get(torch_type)
    if generic is not None and generic.__module__ == AcceleratorDevice.__module__:
        del _registry.families[torch_type]


def failures() -> list[FamilyFailure]:
    """The families that could not be loaded or asked, with their tracebacks."""
    _load_plugins()
    return list(_registry.failures.values())


def _source(device_class: type[Device]) -> str:
    return f"{device_class.__module__}.{device_class.__qualname__}"


def accelerator_counts() -> dict[str, int]:
    """Usable devices per accelerator family, families without any left out."""
    _load_plugins()
    _add_unnamed_accelerator()
    counts = {}
    for family, device_class in list(_registry.families.items()):
        if family == "cpu" or _source(device_class) in _registry.failures:
            continue
        try:
            count = device_class.count()
        # A vendor's stack may fail in any way; it is kept, reported once, and shown by the doctor.
        except Exception as error:
            _registry.fail(family, _source(device_class), error)
            continue
        if count:
            counts[family] = count
    return counts


def _add_unnamed_accelerator() -> None:
    """Give torch's accelerator a family if none here is of its type."""
    try:
        accelerator = torch.accelerator.current_accelerator()
        # Whether it is there is asked only where no family will ask: torch.cuda.is_available()
        # starts the driver.
        if accelerator is None or _is_named(accelerator.type):
            return
        accelerator = torch.accelerator.current_accelerator(check_available=True)
    except Exception as error:
        _registry.fail("accelerator", "torch.accelerator", error)
        return
    if accelerator is not None:
        _registry.families[accelerator.type] = family_of(accelerator.type)


def _is_named(torch_type: str) -> bool:
    return any(family.torch_type == torch_type for family in _registry.families.values())


def _load_plugins() -> None:
    with _registry.lock:  # or a second thread would choose before the plugins are there
        if _registry.plugins_loaded:
            return
        _registry.plugins_loaded = True
        try:
            entry_points = list(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
        except Exception as error:  # one damaged package would break the chips of all others
            _registry.fail("plugins", f"entry points {ENTRY_POINT_GROUP}", error)
            return
        for entry_point in entry_points:
            _load_plugin(entry_point)


def _load_plugin(entry_point: importlib.metadata.EntryPoint) -> None:
    try:
        register_device(entry_point.load())
    # Third-party code: whatever it raises must not break those who do not use that chip.
    except (Exception, SystemExit) as error:
        source = f"entry point {entry_point.name} = {entry_point.value}"
        _registry.fail(entry_point.name, source, error)
