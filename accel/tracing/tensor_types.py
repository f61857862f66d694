"""torch's older names of tensor classes, by which programs of before 2018 say dtype and device."""

from __future__ import annotations

from typing import Any

import torch

from accel.devices.tensor_functions import tensor_type
from accel.tracing.patching import Function, replace
from accel.tracing.tracer import Tracer

DTYPES = {
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Short": torch.int16,
}


def tensor_class(tracer: Tracer, name: str) -> Any:
    """The class that `torch.cuda.FloatTensor` and the like mean here."""
    tracer.note(f"torch.cuda.{name}", None, "accel.tensor_type")
    return tensor_type(DTYPES[name.removesuffix("Tensor")])


def install_default_tensor_type(tracer: Tracer) -> None:
    """Redirect `torch.set_default_tensor_type("torch.cuda.FloatTensor")`."""
    api = "torch.set_default_tensor_type"

    def make(original: Function) -> Function:
        def replacement(t: Any) -> None:
            dtype = _dtype_on_device(tracer, t)
            if dtype is None or tracer.target == "cuda":
                original(t)
                return
            note = "torch.Tensor(data) is made on the CPU" * (tracer.target != "cpu")
            tracer.note(api, t if isinstance(t, str) else None, tracer.target, note)
            if tracer.target == "cpu":
                original(tensor_type(dtype))
                return
            # A plugin's classes are refused there; together these two are the same.
            torch.set_default_dtype(dtype)
            torch.set_default_device(tracer.target)

        return replacement

    replace(torch, "set_default_tensor_type", make)


def _dtype_on_device(tracer: Tracer, given: Any) -> torch.dtype | None:
    """The dtype of a class of `torch.cuda`, or of what `tensor_class` gave for it."""
    if isinstance(given, str):
        name = given.removeprefix("torch.cuda.").removesuffix("Tensor")
        return DTYPES.get(name) if given == f"torch.cuda.{name}Tensor" else None
    if tracer.target == "cpu":
        return None
    return next((dtype for dtype in DTYPES.values() if tensor_type(dtype) is given), None)
