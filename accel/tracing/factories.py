"""Functions of torch that make something on a device which is named by `device=`."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._device as device_contexts

from accel.tracing.patching import (
    Function,
    makes_tensor,
    put,
    replace,
    takes_device,
    takes_device_at,
)
from accel.tracing.tracer import Tracer, TrueDevice, called_from_inside

# Every public function of torch whose schema has a device; a test compares it with torch's schemas.
FACTORIES = (
    "arange", "as_tensor", "asarray", "bartlett_window", "blackman_window", "empty", "empty_like",
    "empty_permuted", "empty_quantized", "empty_strided", "eye", "from_file", "full", "full_like",
    "hamming_window", "hann_window", "kaiser_window", "linspace", "logspace", "normal", "ones",
    "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm",
    "range", "scalar_tensor", "sparse_bsc_tensor", "sparse_bsr_tensor",
    "sparse_compressed_tensor", "sparse_coo_tensor", "sparse_csc_tensor", "sparse_csr_tensor",
    "tensor", "tril_indices", "triu_indices", "zeros", "zeros_like",
)  # fmt: skip
METHODS = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")


def install_factories(tracer: Tracer) -> None:
    """Redirect `device=` of the functions that make tensors."""
    # Under a default device torch compares functions with these: its own, and those that replace.
    constructors = device_contexts._device_constructors()
    for name in FACTORIES:
        is_constructor = getattr(torch, name) in constructors
        replace(torch, name, makes_tensor(tracer, f"torch.{name}"))
        if is_constructor:
            constructors.add(getattr(torch, name))
    for name in METHODS:
        replace(torch.Tensor, name, takes_device(tracer, f"torch.Tensor.{name}"))
    for name in ("fftfreq", "rfftfreq"):
        replace(torch.fft, name, takes_device(tracer, f"torch.fft.{name}"))
    for name in ("nested_tensor", "as_nested_tensor"):
        replace(torch.nested, name, takes_device(tracer, f"torch.nested.{name}"))
    replace(torch, "set_default_device", takes_device_at(tracer, "torch.set_default_device", 0))
    for name in ("device", "Generator"):
        put(torch, name, _class_with_device(tracer, getattr(torch, name)))


class _DeviceClass(type):
    """Passes for a class of torch's that is written in C and takes a device.

    Its instances are that class's, for torch's C code looks at their true class. What Python code
    asks of the class (calls, `isinstance`, attributes, comparison, pickling by name) is answered as
    that class would.
    """

    _true: type
    _make: Function

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return (cls._true if called_from_inside() else cls._make)(*args, **kwargs)

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls._true)

    def __subclasscheck__(cls, other: type) -> bool:
        return other is cls or issubclass(other, cls._true)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls._true

    def __hash__(cls) -> int:
        return hash(cls._true)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._true, name)

    def __repr__(cls) -> str:
        return repr(cls._true)


def _class_with_device(tracer: Tracer, true: type) -> Any:
    api = f"torch.{true.__name__}"

    def redirect(given: Any) -> Any:
        return tracer.device(api, given) if isinstance(given, (str, int, TrueDevice)) else given

    def make_generator(device: Any = "cpu") -> Any:
        return true(redirect(device))

    def make_device(*args: Any, **kwargs: Any) -> Any:
        kind = args[0] if args else kwargs.get("type", kwargs.get("device"))
        index = args[1] if len(args) > 1 else kwargs.get("index")
        if kind == "cuda" and index == -1:
            return redirect(-1 if tracer.target == "cpu" else true(*args, **kwargs))
        if isinstance(kind, (int, TrueDevice)) and index is None:
            place = redirect(kind)
            if place is not kind:
                return place
        return redirect(true(*args, **kwargs))

    body = {
        "__module__": "torch",
        "__qualname__": true.__name__,
        "__doc__": true.__doc__,
        "_true": true,
        "_make": staticmethod(make_device if true is TrueDevice else make_generator),
    }
    return _DeviceClass(true.__name__, (), body)
