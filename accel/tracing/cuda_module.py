"""`torch.cuda` itself: its functions become accel's, and what has no equivalent is counted.

Its attributes are replaced and not the module, so that every way to it is covered: an alias,
`from torch.cuda import synchronize`, `getattr(torch, "cuda")`, `importlib`. Code of torch gets the
functions that were there.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

import torch

from accel.devices import functions
from accel.tracing.cuda_names import CLAIMS, CLASSES, FUNCTIONS, NEUTRAL, NVTX, SUBMODULES
from accel.tracing.patching import Function, replace
from accel.tracing.tensor_types import DTYPES, tensor_class
from accel.tracing.tracer import NO_EQUIVALENT, Tracer, called_from_inside


def install_cuda(tracer: Tracer) -> None:
    """Replace the public names of torch.cuda and of its modules."""
    cuda: Any = torch.cuda
    before = {name: getattr(cuda, name) for name in cuda.__all__}
    shown = [name for name in before if name not in NEUTRAL]
    replaced = {id(before[name]): _install_name(tracer, cuda, name) for name in shown}
    for name in SUBMODULES:
        _install_submodule(tracer, importlib.import_module(f"torch.cuda.{name}"), replaced)
    _install_attributes(tracer, cuda, before)


def _install_name(tracer: Tracer, cuda: Any, name: str) -> Any:
    """Replace one name; what is there then."""
    original = getattr(cuda, name)
    api = f"torch.cuda.{name}"
    if name in CLASSES:
        setattr(cuda, name, _class(tracer, api, original, CLASSES[name]))
    elif name in CLAIMS:
        replace(cuda, name, lambda _: _claim(tracer, api, original, name))
    elif name in FUNCTIONS:
        replace(cuda, name, lambda _: _function(tracer, api, original, FUNCTIONS[name]))
    elif inspect.isroutine(original):
        replace(cuda, name, lambda _: _without_equivalent(tracer, api, original))
    return getattr(cuda, name, original)


def _install_submodule(tracer: Tracer, module: ModuleType, replaced: dict[int, Any]) -> None:
    names = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
    for name in names:
        original = getattr(module, name)
        if id(original) in replaced:
            setattr(module, name, replaced[id(original)])
        elif module is torch.cuda.nvtx and name in NVTX:
            _install_mark(tracer, module, name)
        elif inspect.isfunction(original) and original.__module__ == module.__name__:
            replace(module, name, lambda it: _without_equivalent(tracer, _api(it), it))


def _install_mark(tracer: Tracer, nvtx: Any, name: str) -> None:
    replace(nvtx, name, lambda it: _function(tracer, f"torch.cuda.nvtx.{name}", it, NVTX[name]))


def _api(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _function(tracer: Tracer, api: str, original: Function, name: str) -> Function:
    equivalent: Function = getattr(functions, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if called_from_inside():
            return original(*args, **kwargs)
        if tracer.target == "cuda":
            tracer.note(api, None, api)
            return original(*args, **kwargs)
        tracer.note(api, None, f"accel.{name}")
        return equivalent(*args, **kwargs)

    return replacement


def _claim(tracer: Tracer, api: str, original: Function, name: str) -> Function:
    equivalent: Function = getattr(functions, name)

    def replacement() -> Any:
        if called_from_inside():
            return original()
        if tracer.target == "cuda":
            tracer.note(api, None, api)
            return original()
        if tracer.claims_cuda:
            tracer.note(api, None, f"accel.{name}", f"answered {CLAIMS[name]} on a CPU")
            return CLAIMS[name]
        tracer.note(api, None, f"accel.{name}")
        return equivalent()

    return replacement


def _without_equivalent(tracer: Tracer, api: str, original: Function) -> Function:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not called_from_inside():
            tracer.note(api, None, "", "" if tracer.target == "cuda" else NO_EQUIVALENT)
        return original(*args, **kwargs)

    return replacement


def _class(tracer: Tracer, api: str, original: type, name: str) -> Any:
    equivalent = getattr(functions, name)
    instances = (original, equivalent) if isinstance(equivalent, type) else original

    class Kind(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is not made or called_from_inside() or tracer.target == "cuda":
                chosen = original if cls is made else super().__call__
                return chosen(*args, **kwargs)
            tracer.note(api, None, f"accel.{name}")
            return equivalent(*args, **kwargs)

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, instances)

        def __subclasscheck__(cls, other: type) -> bool:
            return other is cls or issubclass(other, original)

    made = Kind(original.__name__, (), {"__doc__": original.__doc__, "__module__": "torch.cuda"})
    return made


def _install_attributes(tracer: Tracer, cuda: Any, before: dict[str, Any]) -> None:
    """Answer and count what is not called: tensor classes, graphs, and other classes and values."""
    hidden = {
        name: value
        for name, value in before.items()
        if getattr(cuda, name, None) is value and name not in NEUTRAL
    }
    further = getattr(cuda, "__getattr__", None)

    def answer(name: str) -> Any:
        if name not in hidden:
            if further is not None:
                return further(name)
            raise AttributeError(f"module 'torch.cuda' has no attribute {name!r}")
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "torch":
            return hidden[name]
        if tracer.target != "cuda" and name.removesuffix("Tensor") in DTYPES:
            return tensor_class(tracer, name)
        if tracer.target != "cuda" and name == "default_generators":
            tracer.note(f"torch.cuda.{name}", None, "accel.default_generators")
            return functions.default_generators()
        note = "" if tracer.target == "cuda" else NO_EQUIVALENT
        tracer.note(f"torch.cuda.{name}", None, "", note)
        return hidden[name]

    for name in hidden:
        delattr(cuda, name)
    cuda.__getattr__ = answer
    cuda.__dir__ = lambda: sorted({*vars(cuda), *hidden})
