"""How coarse the arithmetic behind each tensor of a run is."""

from __future__ import annotations

import torch

from accel.numerics.encoding import dtype_named
from accel.numerics.entries import Entry, Key
from accel.numerics.reader import Recording
from accel_kernels import budgets


def coarsest_dtypes(recording: Recording) -> dict[Key, torch.dtype]:
    """The coarsest floating-point dtype that each tensor has passed through, or may have.

    An autocast in force counts, since it computes inside modules whose outputs are float32.
    """
    coarsest = torch.float64
    found: dict[Key, torch.dtype] = {}
    for key, entry in recording.entries.items():
        for dtype in _dtypes(entry):
            if budgets.unit_roundoff(dtype) > budgets.unit_roundoff(coarsest):
                coarsest = dtype
        found[key] = coarsest
    return found


def _dtypes(entry: Entry) -> list[torch.dtype]:
    if entry.key.phase == "parameter":
        return []  # held so, but not yet computed with
    names = [entry.dtype] + ([entry.autocast] if entry.autocast is not None else [])
    dtypes = [dtype_named(name) for name in names]
    real = [_PARTS.get(dtype, dtype) for dtype in dtypes]
    return [dtype for dtype in real if dtype.is_floating_point]


_PARTS = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
