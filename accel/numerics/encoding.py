"""Tensors as a recording holds them: copied, encoded for safetensors, digested, decoded."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# What every safetensors since 0.4 can hold and other frameworks can read. Any other dtype is kept
# as its bytes, with its name beside it.
_NATIVE = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.bool,
    }
)  # fmt: skip
_COMPLEX_PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


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


def encoded(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor as it goes into a safetensors file.

    Complex tensors get a last dimension of 2; dtypes that safetensors lacks become `uint8` with a
    last dimension of one element's bytes.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype in _NATIVE:
        return tensor
    return tensor.unsqueeze(-1).view(torch.uint8)


def encoded_layout(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[torch.dtype, list[int]]:
    """The dtype and shape of `encoded(tensor)` for a tensor of this dtype and shape."""
    sizes = list(shape)
    if dtype.is_complex:
        dtype, sizes = _COMPLEX_PARTS.get(dtype, torch.float16), [*sizes, 2]
    if dtype in _NATIVE:
        return dtype, sizes
    return torch.uint8, [*sizes, dtype.itemsize]


def decoded(stored: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The reverse of `encoded`, for a `stored` whose layout has been checked."""
    if dtype.is_complex:
        return torch.view_as_complex(stored)
    return stored if dtype in _NATIVE else stored.view(dtype).reshape(shape)


def digest_of(stored: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """SHA-256 of a header line naming dtype and shape, and of the bytes in row-major order.

    Args:
        stored: Contiguous, as made by `encoded`.
        dtype: Of the tensor that it holds.
        shape: Of the tensor that it holds.
    """
    header = f"{dtype_name(dtype)} {','.join(map(str, shape))}\n"
    hasher = hashlib.sha256(header.encode())
    hasher.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """The digest of any tensor that can be recorded."""
    own = copied(tensor)
    return digest_of(encoded(own), own.dtype, tuple(own.shape))
