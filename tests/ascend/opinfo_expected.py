"""Where the simulated Ascend may differ from the CPU on OpInfo's samples, each with its reason.

The keys are the names that `opinfo.Pair.operator` gives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BY_DEVICE = "torch chooses the chunks and the dtype of its sums by the type of device"
_FLOAT64 = "torch_npu casts float64 to float32, so a step between is rounded to float32"
_UNSTEADY = "the CPU's own results differ from call to call in the last digits"

_CONTIGUOUS = "torch_npu has no kernel: its fallback gives the CPU contiguous copies"

# Another algorithm than on the CPU: held to `torch.testing.assert_close`'s tolerances for the
# dtype, times the factor. For half precision these are few ulps.
ROUNDED: dict[str, tuple[float, str]] = {
    "float_power": (16, _FLOAT64),
    "_native_batch_norm_legit": (4, "without statistics it falls back, on contiguous copies"),
    "linalg.det": (1, _CONTIGUOUS),
    "linalg.slogdet": (1, _CONTIGUOUS),
    "logdet": (1, _CONTIGUOUS),
    "masked.std": (4, _FLOAT64),
    "masked.var": (4, _FLOAT64),
    "linalg.lstsq": (16, _UNSTEADY),
    "linalg.lstsq[grad_oriented]": (16, _UNSTEADY),
    "nn.functional.linear_cross_entropy[chunked]": (64, _BY_DEVICE),
    "nn.functional.linear_cross_entropy[chunked_none]": (64, _BY_DEVICE),
}

_EMPTY = "allocates without writing"
_HOST = "torch_npu has no kernel: its fallback to the CPU draws from the CPU's generator"
# Held to shape and dtype; so is every operator that draws from the chip's generator.
ANY_VALUES: dict[str, str] = {
    "empty": _EMPTY,
    "empty_like": _EMPTY,
    "empty_permuted": _EMPTY,
    "empty_strided": _EMPTY,
    "new_empty": _EMPTY,
    "new_empty_strided": _EMPTY,
    "resize_": _EMPTY,
    "resize_as_": _EMPTY,
    "cauchy": _HOST,
    "geometric": _HOST,
    "log_normal": _HOST,
}

_UNWRITTEN = "the result is not written on the CPU either"
_OVERWRITTEN = "memory beside the result is overwritten on the CPU too"
# torch itself fails on an `out=` tensor that is not contiguous: only an empty one is given.
NO_STRIDED_OUT: dict[str, str] = {
    "linalg.lu": _OVERWRITTEN,
    "lu_unpack": _OVERWRITTEN,
    "tril": _OVERWRITTEN,
    "triu": _OVERWRITTEN,
    "nn.functional.gelu": _UNWRITTEN,
    "linalg.matrix_rank": _UNWRITTEN,
    "linalg.matrix_rank[hermitian]": _UNWRITTEN,
}

# The same for every `out=` tensor: none is given.
NO_OUT: dict[str, str] = {
    "native_batch_norm": "for strided operands " + _UNWRITTEN,
    "_native_batch_norm_legit": "for strided operands " + _UNWRITTEN,
}

# The CPU gets contiguous operands too, because its kernel rounds otherwise for strided ones.
FALLS_BACK: dict[str, str] = {
    "_batch_norm_with_update": _CONTIGUOUS,
    "hypot": _CONTIGUOUS,
    "igamma": _CONTIGUOUS,
    "nn.functional.huber_loss": _CONTIGUOUS,
}

# Arguments after the first stay on the host, as torch asks on every device.
HOST_ARGUMENTS: dict[str, str] = {
    "tensor_split": "torch takes the indices of a split from the CPU only",
}


@dataclass(frozen=True)
class Deviation:
    """A difference that the real torch_npu, or torch for any device but a few, makes by itself.

    Attributes:
        operator: Pattern of the whole name of an OpInfo.
        difference: Pattern found in the line that describes the difference.
        reason: Where it is from.
    """

    operator: str
    difference: str
    reason: str

    def explains(self, operator: str, difference: str) -> bool:
        """Whether this is the reason for a miss."""
        return bool(
            re.fullmatch(self.operator, operator) and re.search(self.difference, difference)
        )


DEVIATIONS = (
    Deviation(
        "bfloat16|bool|byte|cdouble|cfloat|chalf|char|double|float|half|int|long|short|to",
        "NPU raises RuntimeError: Only contiguous_format or preserve_format is supported",
        "torch_npu's `_to_copy` accepts no channels_last",
    ),
    Deviation(
        "conj_physical|svd",
        "NPU raises RuntimeError: .*DispatchStub",
        "torch's `conj_physical_` for complex numbers has no kernel for torch_npu's device",
    ),
    Deviation(
        "mode",
        "out: .*NPU raises RuntimeError: mode only supports CPU, CUDA and XPU",
        "torch's `mode` with out= names the devices that it accepts",
    ),
    Deviation(
        r"sparse\.mm\[reduce\]|sparse\.sampled_addmm",
        "NPU raises NotImplementedError: .*SparseCsrnpu",
        "torch_npu has no kernel for compressed sparse tensors here",
    ),
    Deviation(
        r"float_power",
        "out: .*NPU raises RuntimeError: the output given to float_power has dtype Float",
        _FLOAT64 + ": the output asked for cannot be made",
    ),
    Deviation(
        r"(index_reduce|scatter_reduce)\[prod\]|nn.functional.linear_cross_entropy\[chunked.*\]",
        "NPU raises RuntimeError: .*(same scalar type|self.dtype to be equal|to have same dtype)",
        _FLOAT64 + ", which then meets a float64 operand",
    ),
    Deviation(
        "linalg.det|linalg.slogdet|logdet",
        "non-contiguous( out)?: gradients: Tensor-likes are not close",
        "torch_npu's fallback factorises a contiguous copy, torch's derivative takes it for a "
        "factorisation of the strided matrix: the gradient is transposed",
    ),
)

_CONTROL = "torch_npu's own code, which computes nothing; "
# Kernels that no call of the comparison reaches.
NOT_REACHED: dict[str, str] = {
    "aten::quantize_per_channel": "raises: torch_npu has no `empty_quantized` for the result",
    "aten::quantize_per_tensor": "raises: torch_npu has no `empty_quantized` for the result",
    "aten::_copy_from_and_resize": "the fallback to the CPU calls it for out= arguments",
    "aten::set_.source_Storage_storage_offset": _CONTROL + "every operand is made with it",
    "aten::set_.source_Storage": _CONTROL + "takes a storage",
    "aten::_pin_memory": _CONTROL + "takes host memory",
    "aten::is_pinned": _CONTROL + "takes host memory",
    "aten::record_stream": _CONTROL + "takes a stream",
}
