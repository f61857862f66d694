"""One switch of torch: how it is read and set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Switch:
    """A getter and a setter; the getter raises, or returns None, where there is no such switch."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


def attribute(path: str, name: str) -> Switch:
    """A switch that is an attribute below `torch`."""

    def holder() -> Any:
        value: Any = torch
        for part in path.split("."):
            value = getattr(value, part)
        return value

    return Switch(lambda: getattr(holder(), name), lambda value: setattr(holder(), name, value))


def pair(owner: str, getter: str, setter: str) -> Switch:
    """A switch that is a getter and a setter below `torch`, looked up when used."""

    def function(name: str) -> Callable[..., Any]:
        value: Any = torch
        for part in f"{owner}.{name}".split("."):
            value = getattr(value, part)
        found: Callable[..., Any] = value
        return found

    return Switch(lambda: function(getter)(), lambda value: function(setter)(value))
