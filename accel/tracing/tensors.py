"""Methods of tensors, modules and storages that name a CUDA device, or ask for one."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from accel.devices.tensor_functions import on_accelerator, tensor_type_name
from accel.tracing.patching import Function, replace, takes_device, takes_device_at
from accel.tracing.tensor_types import DTYPES
from accel.tracing.tracer import Tracer, called_from_inside

_TYPE_NAME = re.compile(r"torch\.cuda\.([A-Za-z0-9]+)Tensor")


def install_tensors(tracer: Tracer) -> None:
    """Redirect the methods of tensors, modules and storages."""
    for name in ("Tensor", "nn.Module", "nn.utils.rnn.PackedSequence"):
        owner: Any = torch
        for part in name.split("."):
            owner = getattr(owner, part)
        replace(owner, "to", takes_device_at(tracer, f"torch.{name}.to", 1))
    replace(torch.nn.Module, "to_empty", takes_device(tracer, "torch.nn.Module.to_empty"))
    # Before Tensor.to was replaced or after is the same: what they hand on is redirected already.
    _cuda_methods(tracer)
    _is_cuda(tracer, torch.Tensor, "torch.Tensor.is_cuda")
    _is_cuda(tracer, PackedSequence, "torch.nn.utils.rnn.PackedSequence.is_cuda")
    for storage in (torch.UntypedStorage, torch.storage.TypedStorage):
        _is_cuda(tracer, storage, f"torch.{storage.__name__}.is_cuda")
        replace(storage, "to", takes_device(tracer, f"torch.{storage.__name__}.to"))
    replace(torch.Tensor, "type", lambda original: _type(tracer, original))
    for name in ("pin_memory", "is_pinned"):
        replace(torch.Tensor, name, takes_device_at(tracer, f"torch.Tensor.{name}", 1))
    replace(torch.Tensor, "pin_memory", lambda original: _pin_memory(tracer, original))
    replace(torch.Tensor, "record_stream", lambda original: _record_stream(tracer, original))


def _cuda_methods(tracer: Tracer) -> None:
    to_tensor: Function = torch.Tensor.to
    to_module: Function = torch.nn.Module.to
    to_packed: Function = PackedSequence.to

    def move_tensor(
        self: Any,
        device: Any = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Any:
        place = _place(tracer, "torch.Tensor.cuda", device)
        return to_tensor(self, place, non_blocking=non_blocking, memory_format=memory_format)

    def move_module(self: Any, device: Any = None) -> Any:
        return to_module(self, _place(tracer, "torch.nn.Module.cuda", device))

    def move_packed(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = args[0] if args else kwargs.pop("device", None)
        place = _place(tracer, "torch.nn.utils.rnn.PackedSequence.cuda", device)
        return to_packed(self, place, *args[1:], **kwargs)

    def move_storage(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
        place = _place(tracer, f"torch.{type(self).__name__}.cuda", device)
        return self if place.type == "cpu" else self.to(device=place, non_blocking=non_blocking)

    replace(torch.Tensor, "cuda", lambda _: move_tensor)
    replace(torch.nn.Module, "cuda", lambda _: move_module)
    replace(PackedSequence, "cuda", lambda _: move_packed)
    replace(torch.UntypedStorage, "cuda", lambda _: move_storage)
    replace(torch.storage.TypedStorage, "cuda", lambda _: move_storage)


def install_functional_tensors(tracer: Tracer) -> None:
    """Redirect `.cuda()` in functions that torch compiles; the module is imported late."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    def make(original: Function) -> Function:
        def replacement(self: Any, device: Any = None, *args: Any, **kwargs: Any) -> Any:
            if tracer.target == "cuda":
                return original(self, device, *args, **kwargs)
            place = tracer.redirected("cuda" if device is None else device)
            return self.to(place, *args, **kwargs)

        return replacement

    replace(FunctionalTensor, "cuda", make)


def _place(tracer: Tracer, api: str, device: Any) -> torch.device:
    place = tracer.redirected("cuda" if device is None else device)
    if place is None:
        raise ValueError(f"{api} takes a CUDA device or its index, not {device!r}")
    tracer.note(api, device, place)
    return place


def _is_cuda(tracer: Tracer, owner: Any, api: str) -> None:
    true = getattr(owner, "is_cuda", None)
    if true is None:
        return

    def is_cuda(self: Any) -> bool:
        if tracer.target == "cuda" or called_from_inside():
            answer: bool = true.__get__(self, type(self))
            return answer
        tracer.note(api, None, "accel.on_accelerator")
        return on_accelerator(self)

    owner.is_cuda = property(is_cuda, doc=true.__doc__)


def _type(tracer: Tracer, original: Function) -> Function:
    def replacement(self: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        named = _TYPE_NAME.fullmatch(dtype) if isinstance(dtype, str) else None
        if named is not None and named[1] in DTYPES and tracer.target != "cuda":
            chosen = tensor_type_name(DTYPES[named[1]])
            tracer.note("torch.Tensor.type", dtype, chosen)
            dtype = chosen
        return original(self, dtype, *args, **kwargs)

    return replacement


def _pin_memory(tracer: Tracer, original: Function) -> Function:
    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.target != "cpu":
            return original(self, *args, **kwargs)
        tracer.note("torch.Tensor.pin_memory", None, "accel.pin_memory")
        return self

    return replacement


def _record_stream(tracer: Tracer, original: Function) -> Function:
    def replacement(self: Any, stream: Any) -> None:
        if tracer.target != "cpu":
            original(self, stream)
            return
        tracer.note("torch.Tensor.record_stream", None, "accel.record_stream")

    return replacement
