"""Kernels that are right but coarse: which, why, and how far they were measured to be off.

`KEEPS_16_BITS`: operators whose kernels hold intermediate results in 16 bits when their inputs are
16 bits wide, on every chip; `KEEPS_16_BITS_ON_CPU`: those of torch's CPU. Their compute precision
is the inputs', so that is the noise they are measured by.

`INACCURATE`: kernels of torch's CPU that add one after the other, so that their error grows with
the number of addends. They are reported as `known` up to 2 (1.8 at least) times what was measured
(`benchmarks/replay_population.py`, and the right runs of `benchmarks/fault_zoo`; torch 2.13 on
x86), and are no excuse for another chip's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Call
from accel.numerics.replaying.limits import MOST_M, MOST_M_16, MOST_R, MOST_R_16, drifts
from accel.numerics.replaying.yardstick import SIXTEEN_BIT, Measured
from accel_kernels.references import NAMESPACE

_WIDE = frozenset({torch.float32})

KEEPS_16_BITS = {
    "attention": "weights are rounded to 16 bits before they multiply the values",
    "recurrent": "states are kept in 16 bits from step to step",
}
"""By operator or kind; on every chip."""

KEEPS_16_BITS_ON_CPU = {
    "native_batch_norm": "scale and shift of each channel are rounded to the input's dtype",
    "_native_batch_norm_legit": "as native_batch_norm",
    "_log_softmax": "the log of the sum is rounded before it is subtracted",
    "logsumexp": "several kernels, one after the other",
    "nll_loss_forward": "the sum is rounded before it is divided",
    "mse_loss_backward": "difference and factor are rounded before they are multiplied",
    "native_dropout": "the mask is scaled in the input's dtype",
    "sigmoid_backward": "each step is rounded to float16",
    "prod": "each product is rounded",
    "scatter_reduce": "the sum is rounded before it is divided",
    "upsample_bicubic2d": "the interpolation along each dimension is rounded",
    "col2im": "each sum is rounded",
    "floor_divide": "remainder and quotient are rounded before the floor",
}
"""By operator; of torch's CPU kernels."""

UNDECIDED_ON_CPU = {
    "grid_sampler_2d": "torch's CPU kernel rounds coordinates to 16 bits, which moves a sample by "
    "a part of a pixel that no noise of its inputs measures",
}
"""16-bit kernels of torch's CPU that are neither within the limits nor shown to be wrong."""

_WIDE_IF_MIXED = frozenset({"native_batch_norm", "_native_batch_norm_legit"})
_WIDE_RESULTS = {"native_batch_norm": "1", "_native_batch_norm_legit": "1"}  # the means
PARTIAL_SUMS = frozenset({"matmul", "convolution"})
"""Kinds whose kernels may keep partial sums in 16 bits (split-K; a switch on CUDA)."""

ROUNDED_SCALARS = frozenset(
    {"add", "add_", "sub", "sub_", "rsub", "remainder", "remainder_", "fmod", "fmod_"}
)
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
        measured: The largest R that was measured, over the root of the number of addends.
        why: What the kernel does, and an error that was measured.
        largest: Results with more elements are not concerned; None if all are.
        spread: The largest M that was measured, over the R beside it.
        only: Which calls are concerned; all if None.
        by_inputs: Whether it adds in the 16 bits of its inputs, though its results are wide.
    """

    dtypes: frozenset[torch.dtype]
    results: tuple[str, ...]
    addends: Addends
    measured: float
    why: str
    largest: int | None = None
    spread: float = 5.0
    only: Callable[[Call], bool] | None = None
    by_inputs: bool = False


def _by_winograd(call: Call) -> bool:
    """Whether NNPACK computes a convolution by Winograd's transforms (where oneDNN does not)."""
    given = call.arguments
    return (
        given["weight"].shape[2:] == (3, 3)
        and given["input"].shape[0] >= _LEAST_BATCH
        and not given["transposed"]
        and given["groups"] == 1
        and all(set(given[name]) == {1} for name in ("stride", "padding", "dilation"))
    )


def _has_16_bit_inputs(call: Call) -> bool:
    return any(tensor.dtype in SIXTEEN_BIT for tensor in call.tensors)


def adds_by_inputs(call: Call, result: str) -> bool:
    """Whether a wide result is known to be added up in the 16 bits of the inputs."""
    return _has_16_bit_inputs(call) and any(
        entry.by_inputs and result in entry.results for entry in INACCURATE.get(call.name, ())
    )


_LEAST_BATCH = 16  # of NNPACK; below it torch has another kernel
_SEQUENTIAL = "torch's CPU kernel adds in sequence"
_NORM = Inaccurate(_WIDE, (), "elements", 0.85, f"{_SEQUENTIAL}: R 651 at 600,000 elements")
_NORM_16 = Inaccurate(
    SIXTEEN_BIT, (), "elements", 0.013, f"{_SEQUENTIAL}: R 1.2 at 8,192 elements of float16"
)
_IN_16_BITS = Inaccurate(
    SIXTEEN_BIT, (), "rows", 0.2, "torch's CPU kernel adds in 16 bits: R 7.7 at 2,048 rows"
)
_STATISTICS = ("1", "2", "running_mean", "running_var")
_BATCH_NORM = Inaccurate(
    _WIDE, _STATISTICS, "places", 0.3, f"{_SEQUENTIAL}: R 27 at 9,801 places, channels last"
)
_WINOGRAD = Inaccurate(
    _WIDE, ("0",), "none", 23.0,
    "Winograd's transforms lose digits: R 23, M 358 (NNPACK, 3 by 3, without oneDNN)",
    spread=16.0, only=_by_winograd,
)  # fmt: skip
INACCURATE: dict[str, tuple[Inaccurate, ...]] = {
    "aten::_foreach_norm": (_NORM, _NORM_16),
    "aten::linalg_vector_norm": (_NORM, _NORM_16),
    "aten::convolution": (_WINOGRAD,),
    "aten::convolution_backward": (
        Inaccurate(_WIDE, ("1",), "places", 0.52, "oneDNN adds in sequence: R 51 at most"),
        Inaccurate(
            _WIDE, ("2",), "places", 1.1,
            "oneDNN adds the bias's gradient in sequence: R 35 at 1,024 places whose sum cancels",
        ),
        Inaccurate(SIXTEEN_BIT, (), "places", 0.06, "it adds in 16 bits: R 1.5, M 5"),
    ),
    "aten::native_batch_norm": (_BATCH_NORM,),
    "aten::_native_batch_norm_legit": (_BATCH_NORM,),
    "aten::native_batch_norm_backward": (
        Inaccurate(
            _WIDE, ("1", "2"), "places", 1.87, f"{_SEQUENTIAL}: R 60 at 1,024 places, channels last"
        ),
        Inaccurate(
            _WIDE, ("0",), "places", 0.26,
            f"{_SEQUENTIAL}, and every element gets its share: R 8.1, M 44 at 1,024 places",
        ),
    ),
    "aten::native_layer_norm_backward": (
        Inaccurate(_WIDE, ("1", "2"), "rows", 0.45, f"{_SEQUENTIAL}: R 7.2 at 256 rows"),
        Inaccurate(
            SIXTEEN_BIT, ("1", "2"), "rows", 0.28,
            "torch's CPU kernel adds the weight's gradient in 16 bits: R 22 at 8,192 rows",
        ),
        Inaccurate(
            _WIDE, ("1", "2"), "rows", 0.46,
            "torch's CPU kernel adds float32 gradients in its inputs' 16 bits: R 30 at 8,192 rows",
            only=_has_16_bit_inputs, by_inputs=True,
        ),
    ),
    "aten::sum": (
        Inaccurate(
            SIXTEEN_BIT, ("0",), "none", 1.9,
            "the sums of torch's CPU threads are rounded to 16 bits: R 1.9 with 2 threads", 1,
        ),
    ),
    "aten::nll_loss_forward": (
        Inaccurate(SIXTEEN_BIT, (), "rows", 0.21, "its sum is rounded twice: R 2.6"),
    ),
    "aten::embedding_dense_backward": (_IN_16_BITS,),
    "aten::index_put": (_IN_16_BITS,),
    "aten::index_put_": (_IN_16_BITS,),
    "aten::_index_put_impl_": (_IN_16_BITS,),
}  # fmt: skip
"""By operator."""


class Known(NamedTuple):
    """A known inaccuracy.

    Attributes:
        reason: Which.
        most_rms: The largest R that it explains.
        most_worst: The largest M.
    """

    reason: str
    most_rms: float
    most_worst: float


def kernels_of(device: Mapping[str, str], environment: Mapping[str, str] | None = None) -> str:
    """Whose kernels computed a recording: the chip family, `cpu` for torch's CPU kernels.

    Args:
        device: `Manifest.device`.
        environment: `Manifest.numerics_mode["environment"]`; a simulated chip's kernels are those
            of the CPU.
    """
    if environment and "ACCEL_SIMULATE" in environment:
        return "cpu"
    return device.get("family", "unknown")


def known_inaccuracy(call: Call, result: str, found: Measured, device_type: str) -> Known | None:
    """Why a result out of the limits is a known inaccuracy of its kernel; None if it is not.

    Args:
        call: The call.
        result: The result's name.
        found: Of that result, by the noise of its inputs' dtype if that is 16 bits wide.
        device_type: Whose kernel it is; see `kernels_of`.
    """
    if device_type != "cpu":
        return None
    for entry in INACCURATE.get(call.name, ()):
        if not _concerns(entry, call, result, found):
            continue
        most = MARGIN * entry.measured * math.sqrt(_addends(call, entry.addends))
        is_wide = found.dtype not in SIXTEEN_BIT
        known = Known(
            f"known inaccurate: {entry.why} (here R {found.rms:.3g})",
            max(most, MOST_R if is_wide else MOST_R_16),
            max(entry.spread * most, MOST_M if is_wide else MOST_M_16),
        )
        if not found.nonfinite and found.rms <= known.most_rms and found.worst <= known.most_worst:
            return known
    return None


MARGIN = 2.0  # of the bounds over what was measured


def _concerns(entry: Inaccurate, call: Call, result: str, found: Measured) -> bool:
    if entry.only is not None and not entry.only(call):
        return False
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


def keeps_16_bits(
    call: Call, kind: str, found: Iterable[Measured], unit: float, device_type: str
) -> bool:
    """Whether an operator's kernels are known to hold intermediates in 16 bits.

    Args:
        call: The call.
        kind: Its family.
        found: Its results, measured by noise of the compute precision.
        unit: Unit roundoff of that.
        device_type: Whose kernel it is; see `kernels_of`.
    """
    short = call.name.partition("::")[2]
    is_coarse = short in KEEPS_16_BITS or kind in KEEPS_16_BITS
    if call.name.startswith(f"{NAMESPACE}::") and call.arguments.get("backend") == "reference":
        return False  # which computes in float32
    if is_coarse or (device_type == "cpu" and short in KEEPS_16_BITS_ON_CPU):
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
