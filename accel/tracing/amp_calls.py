"""`torch.amp` for a CUDA device. On a CPU it stays disabled, as it is there without CUDA."""

from __future__ import annotations

from typing import Any

import torch

from accel.tracing.patching import Function, replace
from accel.tracing.tracer import Tracer, called_from_inside

# Questions and settings by device type. On a CPU they stay CUDA's, whose autocast is never on.
_SETTINGS = (
    "get_autocast_dtype", "is_autocast_enabled", "set_autocast_dtype", "set_autocast_enabled",
)  # fmt: skip
_KEYWORDS = ("device_type", "device")


def install_amp(tracer: Tracer) -> None:
    """Redirect autocast, the scaler, and the decorators of autograd functions."""
    replace(torch.amp.autocast_mode.autocast, "__init__", lambda it: _disabling(tracer, it, 2))
    replace(torch.amp.GradScaler, "__init__", lambda it: _disabling(tracer, it, 5))
    for name in ("custom_fwd", "custom_bwd", "is_autocast_available"):
        replace(torch.amp, name, lambda it: _typed(tracer, it, f"torch.amp.{it.__name__}"))
    for name in _SETTINGS:
        replace(torch, name, lambda it: _typed(tracer, it, f"torch.{it.__name__}"))


def _disabling(tracer: Tracer, original: Function, place_of_enabled: int) -> Function:
    """`__init__` of a class that takes a device type, and `enabled` further on."""

    def replacement(self: Any, *args: Any, **kwargs: Any) -> None:
        kind, _ = _kind_of(args, kwargs, "cuda")
        place = tracer.redirected(kind) if isinstance(kind, str) else None
        if place is not None:
            disabled = place.type == "cpu"
            tracer.note(_api(self), kind, place, "disabled, as without CUDA" * disabled)
            if not disabled:
                args, kwargs = _with_kind(args, kwargs, place.type)
            elif len(args) > place_of_enabled:
                args = (*args[:place_of_enabled], False, *args[place_of_enabled + 1 :])
            else:
                kwargs["enabled"] = False
        original(self, *args, **kwargs)

    return replacement


def _api(instance: Any) -> str:
    """The class of torch's that an object is of, as programs name it."""
    of_torch = (c for c in type(instance).__mro__ if c.__module__.partition(".")[0] == "torch")
    found = next(of_torch)
    home = "torch.cuda.amp" if found.__module__.startswith("torch.cuda") else "torch.amp"
    is_scaler = issubclass(found, torch.amp.GradScaler)
    return f"{home}.{'GradScaler' if is_scaler else 'autocast'}"


def _typed(tracer: Tracer, original: Function, api: str) -> Function:
    """A function that takes a device type, first or by name."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        kind, _ = _kind_of(args, kwargs, None)
        asked = isinstance(kind, str) and not called_from_inside()
        place = tracer.redirected(kind) if asked else None
        if place is not None:
            tracer.note(api, kind, place)
            if place.type != "cpu":
                args, kwargs = _with_kind(args, kwargs, place.type)
        return original(*args, **kwargs)

    return replacement


def _kind_of(args: tuple[Any, ...], kwargs: dict[str, Any], default: Any) -> tuple[Any, str]:
    for keyword in _KEYWORDS:
        if keyword in kwargs:
            return kwargs[keyword], keyword
    return (args[0] if args else default), ""


def _with_kind(
    args: tuple[Any, ...], kwargs: dict[str, Any], kind: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    _, keyword = _kind_of(args, kwargs, None)
    if keyword:
        return args, {**kwargs, keyword: kind}
    return (kind, *args[1:]), kwargs
