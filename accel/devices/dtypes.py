"""What a device can do with each dtype, found by trying it.

Vendors' tables are per operator and contain errors, so a table is no answer. A dtype *computes* if
an addition and a product run and give the right numbers in that dtype (floating and complex dtypes:
a matrix product too), is *storage* if tensors of it can be made and copied to the host and back
unchanged, and is *refused* otherwise. FP8 cannot be tried that way, since its matrix product runs
emulated on many chips: there the family says (`Device.fp8_compute_dtypes`).
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

_NAMES = (
    "float64 float32 bfloat16 float16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e8m0fnu complex128 complex64 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"
)


@dataclass(frozen=True)
class DtypeSupport:
    """Dtypes by what the device does with them; the three sets are disjoint.

    Attributes:
        compute: Arithmetic runs and is right.
        storage: Tensors can be made, copied and read back, but not computed with.
        refused: Not even that.
    """

    compute: frozenset[torch.dtype]
    storage: frozenset[torch.dtype]
    refused: frozenset[torch.dtype]

    def of(self, dtype: torch.dtype) -> str:
        """`compute`, `storage` or `refused`; a dtype not tried is refused."""
        if dtype in self.compute:
            return "compute"
        return "storage" if dtype in self.storage else "refused"


@functools.cache
def probe(device: torch.device, fp8_compute: frozenset[torch.dtype]) -> DtypeSupport:
    """Try every dtype that torch has on `device`."""
    classes: dict[str, set[torch.dtype]] = {"compute": set(), "storage": set(), "refused": set()}
    # Neither the caller's modes (autocast, a default device, FakeTensorMode) nor a warning turned
    # into an error may decide what a chip can do: the answer is remembered.
    with (
        _disable_current_modes(),
        torch.device("cpu"),
        _no_autocast(device.type),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name in _NAMES.split():
            dtype: torch.dtype = getattr(torch, name)
            classes[_classify(dtype, device, fp8_compute)].add(dtype)
    return DtypeSupport(**{key: frozenset(value) for key, value in classes.items()})


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    # Constructing torch.autocast asserts for a chip whose plugin has none, so only if it is on.
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _classify(dtype: torch.dtype, device: torch.device, fp8_compute: frozenset[torch.dtype]) -> str:
    try:
        stored = _stores(dtype, device)
    # A vendor's refusal may be any exception (torch_npu raises five kinds); the class says it.
    except Exception:
        return "refused"
    if not stored:
        return "refused"
    if dtype.is_floating_point and dtype.itemsize == 1:
        return "compute" if dtype in fp8_compute else "storage"
    try:
        return "compute" if _computes(dtype, device) else "storage"
    except Exception:
        return "storage"


def _stores(dtype: torch.dtype, device: torch.device) -> bool:
    host = torch.tensor([1.0, 2.0, 0.0, 4.0]).to(dtype)
    there = host.to(device)
    # A chip without a dtype may hand back a narrower one: torch_npu turns float64 into float32.
    if there.dtype != dtype:
        return False
    return bool((there.to("cpu").view(torch.uint8) == host.view(torch.uint8)).all())


def _computes(dtype: torch.dtype, device: torch.device) -> bool:
    a = torch.tensor([[1, 0], [1, 1]]).to(dtype).to(device)
    if dtype == torch.bool:
        return bool((a & ~a).any().logical_not().item())
    total, product = a + a, a * a
    right = total.dtype == dtype and _equals(total, [[2, 0], [2, 2]])
    right = right and product.dtype == dtype and _equals(product, [[1, 0], [1, 1]])
    if dtype.is_floating_point or dtype.is_complex:
        matrix = a @ a
        right = right and matrix.dtype == dtype and _equals(matrix, [[1, 0], [2, 1]])
    return right


def _equals(tensor: torch.Tensor, expected: list[list[int]]) -> bool:
    return bool((tensor.to("cpu").to(torch.complex128) == torch.tensor(expected)).all())
