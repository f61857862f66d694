"""Kernels that are right but coarse: which, why, and how far they were measured to be off.

`KEEPS_16_BITS`: operators whose kernels hold intermediate results in 16 bits when their inputs are
16 bits wide. Their compute precision is the inputs', so that is the noise they are measured by.

`INACCURATE`: kernels that add one after the other, so that their error grows with the number of
addends. They are reported as `known` up to the stated multiple of the root of that number, which
is about twice what was measured (`benchmarks/replay_population.py`; torch 2.13 on x86).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Call
from accel.numerics.replaying.limits import drifts
from accel.numerics.replaying.yardstick import SIXTEEN_BIT, Measured

_WIDE = frozenset({torch.float32})

KEEPS_16_BITS = {
    "attention": "weights are rounded to 16 bits before they multiply the values",
    "native_batch_norm": "scale and shift of each channel are rounded to the input's dtype",
    "_native_batch_norm_legit": "as native_batch_norm",
    "recurrent": "states are kept in 16 bits from step to step",
    "_log_softmax": "the log of the sum is rounded before it is subtracted, on the CPU",
    "logsumexp": "several kernels, one after the other",
    "nll_loss_forward": "the sum is rounded before it is divided",
    "mse_loss_backward": "difference and factor are rounded before they are multiplied",
    "native_dropout": "the mask is scaled in the input's dtype, on the CPU",
    "sigmoid_backward": "each step is rounded to float16 on the CPU",
}
"""By operator or kind."""

_WIDE_IF_MIXED = frozenset({"native_batch_norm", "_native_batch_norm_legit"})
_WIDE_RESULTS = {"native_batch_norm": "1", "_native_batch_norm_legit": "1"}  # the means
PARTIAL_SUMS = frozenset({"matmul", "convolution"})
"""Kinds whose kernels may keep partial sums in 16 bits (split-K; a switch on CUDA)."""

ROUNDED_SCALARS = frozenset({"add", "add_", "sub", "sub_", "rsub"})
"""Of these, torch's CPU rounds Python scalars to the tensors' 16-bit dtype in vector code, and not
in the scalar code for the last few elements; CUDA never does."""

_LEAST_PARTIAL = 0.05  # share of misrounded elements; other kernels have far fewer
Addends = Literal["elements", "rows", "places", "none"]


@dataclass(frozen=True)
class Inaccurate:
    """An operator with a kernel that loses more than its arithmetic must.

    Attributes:
        dtypes: Of the results concerned.
        results: Names of the results concerned; all if empty.
        addends: What is added: elements, rows (all dimensions but the last) or places (all but the
            second); `none` if it is no matter of how many.
        factor: The largest R and a sixth of the largest M that are known, over the root of the
            number of addends.
        why: What the kernel does, and the largest error that was measured.
        largest: Results with more elements are not concerned; None if all are.
    """

    dtypes: frozenset[torch.dtype]
    results: tuple[str, ...]
    addends: Addends
    factor: float
    why: str
    largest: int | None = None


_SEQUENTIAL = "torch's CPU kernel adds in sequence"
_NORM = Inaccurate(_WIDE, (), "elements", 1.7, f"{_SEQUENTIAL}: R 651 at 600,000 elements")
_IN_16_BITS = Inaccurate(
    SIXTEEN_BIT, (), "rows", 0.5, "torch's CPU kernel adds in 16 bits: 9 units at 2,048 rows"
)
_STATISTICS = ("1", "2", "running_mean", "running_var")
_BATCH_NORM = Inaccurate(
    _WIDE, _STATISTICS, "places", 3.0, f"{_SEQUENTIAL}: R 60 at 1,024 places, channels last"
)
_WINOGRAD = "Winograd's transforms lose digits: R 20, M 229 (NNPACK)"
INACCURATE: dict[str, tuple[Inaccurate, ...]] = {
    "aten::_foreach_norm": (_NORM,),
    "aten::linalg_vector_norm": (_NORM,),
    "aten::convolution": (Inaccurate(_WIDE, ("0",), "none", 80.0, _WINOGRAD),),
    "aten::convolution_backward": (
        Inaccurate(_WIDE, ("0",), "none", 80.0, _WINOGRAD),
        Inaccurate(
            _WIDE, ("1", "2"), "places", 1.6, "oneDNN adds in sequence: R 78 at 9,801 places"
        ),
        Inaccurate(SIXTEEN_BIT, (), "places", 0.4, "it adds in 16 bits: R 4.5 at 441 places"),
    ),
    "aten::native_batch_norm": (_BATCH_NORM,),
    "aten::native_batch_norm_backward": (
        _BATCH_NORM,
        Inaccurate(_WIDE, ("0",), "places", 0.5, "it uses these sums: R 8, M 44 at 1,024 places"),
    ),
    "aten::native_layer_norm_backward": (
        Inaccurate(_WIDE, ("1", "2"), "rows", 0.6, f"{_SEQUENTIAL}: R 26 at 8,192 rows"),
        Inaccurate(
            SIXTEEN_BIT, ("1", "2"), "rows", 0.8,
            "torch's CPU kernel adds the weight's gradient in 16 bits: R 13 at 2,048 rows",
        ),
    ),
    "aten::sum": (
        Inaccurate(
            SIXTEEN_BIT, ("0",), "none", 4.0,
            "the sums of torch's CPU threads are rounded to 16 bits: R 1.9 with 2 threads", 1,
        ),
    ),
    "aten::nll_loss_forward": (
        Inaccurate(SIXTEEN_BIT, (), "rows", 0.5, "its sum is rounded, and again: R 2.1 at 9 rows"),
    ),
    "aten::embedding_dense_backward": (_IN_16_BITS,),
    "aten::index_put": (_IN_16_BITS,),
    "aten::index_put_": (_IN_16_BITS,),
    "aten::_index_put_impl_": (_IN_16_BITS,),
    "aten::index_add": (_IN_16_BITS,),
    "aten::index_add_": (_IN_16_BITS,),
    "aten::scatter_add": (_IN_16_BITS,),
    "aten::scatter_add_": (_IN_16_BITS,),
}  # fmt: skip
"""By operator."""


def known_inaccuracy(call: Call, result: str, found: Measured) -> str | None:
    """Why a result out of the limits is a known inaccuracy of its kernel; None if it is not.

    Args:
        call: The call.
        result: The result's name.
        found: Of that result, by the noise of its inputs' dtype if that is 16 bits wide.
    """
    for entry in INACCURATE.get(call.name, ()):
        if not _concerns(entry, result, found):
            continue
        most = max(_LEAST_KNOWN, entry.factor * math.sqrt(_addends(call, entry.addends)))
        if not found.nonfinite and found.rms <= most and found.worst <= 6 * most:
            return f"known inaccurate: {entry.why} (here R {found.rms:.3g})"
    return None


_LEAST_KNOWN = 4.0


def _concerns(entry: Inaccurate, result: str, found: Measured) -> bool:
    is_small = entry.largest is None or found.count <= entry.largest
    return (
        is_small and found.dtype in entry.dtypes and (not entry.results or result in entry.results)
    )


def _addends(call: Call, kind: Addends) -> int:
    """How many addends the largest argument has, at most."""
    if kind == "none":
        return 1
    largest = max(call.tensors, key=Tensor.numel)
    if kind == "elements" or largest.dim() < 2:
        return largest.numel()
    return largest.numel() // max(1, largest.shape[-1 if kind == "rows" else 1])


def keeps_16_bits(call: Call, kind: str, found: Iterable[Measured], unit: float) -> bool:
    """Whether an operator's kernels are known to hold intermediates in 16 bits.

    Args:
        call: The call.
        kind: Its family.
        found: Its results, measured by noise of the compute precision.
        unit: Unit roundoff of that.
    """
    short = call.name.partition("::")[2]
    if short in KEEPS_16_BITS or kind in KEEPS_16_BITS:
        return not (short in _WIDE_IF_MIXED and any(t.dtype == torch.float32 for t in call.tensors))
    if kind not in PARTIAL_SUMS:
        return False
    rounded = [one for one in found if one.dtype in SIXTEEN_BIT]
    return any(one.misrounding > _LEAST_PARTIAL for one in rounded) and not any(
        drifts(one, unit) for one in rounded
    )


def is_wide_result(call: Call, result: str) -> bool:
    """Whether a result of such an operator is computed wide nevertheless."""
    return _WIDE_RESULTS.get(call.name.partition("::")[2]) == result
