"""Tensors as a recording holds them: copied, turned into bytes and back, digested."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from accel.numerics.storage.layouts import Elements


def why_not_recorded(tensor: Tensor) -> str | None:
    """Why a tensor cannot be recorded; None if it can."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor inside torch.func transforms has no values of its own"
    if tensor.is_nested:
        return "a nested tensor is not recorded"
    if is_traceable_wrapper_subclass(tensor):  # DTensor, quantized weights of torchao, …
        return f"a {type(tensor).__name__} is not recorded: it holds its values in other tensors"
    if tensor.is_quantized:
        return "a quantized tensor is not recorded"
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        return "a meta tensor has no values"
    return None


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU with the values of now; sparse tensors become dense."""
    own = tensor.detach()
    if own.layout != torch.strided:
        own = own.to_dense()
    own = own.resolve_conj().resolve_neg()
    return own.to("cpu", copy=True, memory_format=torch.contiguous_format)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The reverse of `dtype_name`.

    Raises:
        ValueError: This torch has no such dtype.
    """
    dtype = getattr(torch, name, None) if re.fullmatch(r"[a-z0-9_]+", name) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"this torch ({torch.__version__}) has no dtype {name!r:.40}")
    return dtype


def elements_of(tensor: Tensor) -> Elements:
    """The elements of a contiguous tensor on the CPU, in its own memory."""
    return Elements(
        dtype_name(tensor.dtype), tuple(tensor.shape), _bytes_of(tensor), tensor.dtype.itemsize
    )


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return flat.reshape(-1).view(torch.uint8).numpy().data


def decoded(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor from its bytes, in their memory; the reverse of `elements_of`."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)
