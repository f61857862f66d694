"""The tiles on CPUs with AVX-512: products by PyTorch, everything else by compiled code.

A tile is read once after its product, for exponentials and their sums together; in PyTorch's
operators it is read four times. The C source is in `native/`; it is compiled with this machine's
compiler on first use.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from accel_kernels import fp8
from accel_kernels.avx512 import FLAGS, why_unfit
from accel_kernels.compiled import CompileError, compiled_library
from accel_kernels.contrastive_loss.tiles import Settings, passes
from accel_kernels.openmp import TEAM_HEADER, use_torch_threads

_WHAT = "the elementwise part of contrastive losses"
# Elements that are worth a thread more, which may have to be woken or started.
_PER_THREAD = 1 << 16


class _Tile(ctypes.Structure):
    """`struct tile` of native/tiles.c."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("shift", ctypes.c_float),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "row_factors", "column_factors", "row_sums", "column_sums", "partial",
                "row_totals",
            )
        ),
    )  # fmt: skip


@functools.cache
def why_absent() -> str | None:
    """Why this machine cannot run it; None if it can. Compiles it, the first time."""
    if (reason := why_unfit()) is not None:
        return reason
    try:
        _library()
    except CompileError as error:
        return str(error)
    except OSError as error:
        return f"what was compiled cannot be loaded: {error}"
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).parent / "native" / "tiles.c"
    shared = [Path(fp8.__file__).parent / "native" / "threads.h", TEAM_HEADER]
    library = ctypes.CDLL(str(compiled_library(source, _WHAT, FLAGS, shared)))
    use_torch_threads(library)
    tile = ctypes.POINTER(_Tile)
    library.accel_exp_sums.argtypes = library.accel_weigh.argtypes = (tile,)
    library.accel_softplus_sum.argtypes = (tile, ctypes.POINTER(ctypes.c_double))
    library.accel_exp_sums.restype = library.accel_softplus_sum.restype = ctypes.c_int
    library.accel_weigh.restype = None
    return library


def _tile(logits: Tensor, shift: float = 0.0) -> _Tile:
    rows, columns = logits.shape
    threads = min(torch.get_num_threads(), 1 + logits.numel() // _PER_THREAD)
    return _Tile(logits=logits.data_ptr(), rows=rows, columns=columns, threads=threads, shift=shift)


class CompiledElementwise:
    """See `tiles.settings.Elementwise`; of contiguous float32 tensors."""

    def exp_sums(self, logits: Tensor, shift: float, row_sums: Tensor, column_sums: Tensor) -> None:
        """See `Elementwise`."""
        tile = _tile(logits, shift)
        tile.row_sums, tile.column_sums = row_sums.data_ptr(), column_sums.data_ptr()
        if _library().accel_exp_sums(tile):
            raise MemoryError("there is no memory for the sums of a tile of logits")

    def weigh(
        self, logits: Tensor, shift: float, rows: Tensor, columns: Tensor, scratch: Tensor
    ) -> None:
        """See `Elementwise`."""
        tile = _tile(logits, shift)
        tile.row_factors, tile.column_factors = rows.data_ptr(), columns.data_ptr()
        _library().accel_weigh(tile)

    def softplus_sum(self, logits: Tensor, scratch: Tensor) -> Tensor:
        """See `Elementwise`."""
        total = ctypes.c_double()
        if _library().accel_softplus_sum(_tile(logits), ctypes.byref(total)):
            raise MemoryError("there is no memory for the sums of a tile of logits")
        return torch.tensor(total.value, dtype=torch.float64, device="cpu")


PASSES = passes(Settings(rows=512, columns=1024, elementwise=CompiledElementwise()))
"""Tiles that stay in the third-level cache, or nearly in a core's second."""
