"""Putting a replacement where a function was."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch.jit._builtins as builtins_of_jit
from torch.overrides import handle_torch_function, has_torch_function

from accel.tracing.tracer import Tracer

Function = Callable[..., Any]


def replace(owner: Any, name: str, make: Callable[[Function], Function]) -> None:
    """Replace `owner.name` by what `make` makes of it; nothing where an older torch lacks it."""
    original = getattr(owner, name, None)
    if original is None:
        return
    replacement = functools.wraps(original)(make(original))
    if not inspect.isfunction(original):  # written in C, which names its own private owner
        is_module = isinstance(owner, ModuleType)
        replacement.__module__ = owner.__name__ if is_module else owner.__module__
        replacement.__qualname__ = name if is_module else f"{owner.__qualname__}.{name}"
    put(owner, name, replacement)


def put(owner: Any, name: str, replacement: Any) -> None:
    """Put a replacement in the place of `owner.name`."""
    # torch.jit knows the operators that a script may call by the identity of their functions.
    operator = builtins_of_jit._find_builtin(getattr(owner, name))
    if operator is not None:
        builtins_of_jit._register_builtin(replacement, operator)
    setattr(owner, name, replacement)


def takes_device(
    tracer: Tracer, api: str, keyword: str = "device"
) -> Callable[[Function], Function]:
    """Redirect an argument that is given by name."""

    def make(original: Function) -> Function:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            given = kwargs.get(keyword)
            if given is not None:
                kwargs[keyword] = tracer.device(api, given)
            return original(*args, **kwargs)

        return replacement

    return make


def makes_tensor(tracer: Tracer, api: str) -> Callable[[Function], Function]:
    """As `takes_device`, for a function that tensor subclasses and modes may override.

    torch's C code would tell them of its own function, and they compare it with the public one.
    """

    def make(original: Function) -> Function:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            if has_torch_function(args):
                return handle_torch_function(replacement, args, *args, **kwargs)
            given = kwargs.get("device")
            if given is not None:
                kwargs["device"] = tracer.device(api, given)
            if kwargs.get("pin_memory") and tracer.target == "cpu":
                kwargs["pin_memory"] = False  # it is for copies to an accelerator
                tracer.note(f"{api}(pin_memory)", None, "cpu")
            return original(*args, **kwargs)

        return replacement

    return make


def takes_device_at(
    tracer: Tracer, api: str, position: int, keyword: str = "device", *, as_text: bool = False
) -> Callable[[Function], Function]:
    """Redirect an argument that is given by place or by name.

    Args:
        tracer: Counts.
        api: What is counted.
        position: Among the positional arguments, with `self`.
        keyword: Its name.
        as_text: Hand on the type's name and no torch device; an index is then no device.
    """

    def redirect(given: Any) -> Any:
        if not as_text:
            return tracer.device(api, given)
        place = tracer.redirected(given) if isinstance(given, str) else None
        if place is None:
            return given
        tracer.note(api, given, place)
        return str(place)

    def make(original: Function) -> Function:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            if len(args) > position:
                given = args[position]
                chosen = redirect(given)
                if chosen is not given:
                    args = (*args[:position], chosen, *args[position + 1 :])
            elif kwargs.get(keyword) is not None:
                kwargs[keyword] = redirect(kwargs[keyword])
            return original(*args, **kwargs)

        return replacement

    return make
