"""Operators that torch_npu starts from its own C++ through CANN's aclop interface.

There they have CANN's names and take plain memory. Those that a path of torch_npu needs past the
dispatcher are here; any other fails by name.
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.simulate.library import OperatorHandler, RuntimeTensor
from accel.simulate.operators import memory

_logger = logging.getLogger("accel")
# aclDataType of acl_base_rt.h.
DTYPES = {
    0: torch.float32, 1: torch.float16, 2: torch.int8, 3: torch.int32, 4: torch.uint8,
    6: torch.int16, 7: torch.uint16, 8: torch.uint32, 9: torch.int64, 10: torch.uint64,
    11: torch.float64, 12: torch.bool, 16: torch.complex64, 17: torch.complex128,
    27: torch.bfloat16, 35: torch.float8_e5m2, 36: torch.float8_e4m3fn,
}  # fmt: skip
_OK, _NOT_FOUND, _FAILED = 0, 100024, 500000

Attributes = dict[str, Any]
Operator = Callable[[Sequence[Tensor], Sequence[Tensor], Attributes], None]


def _identity(inputs: Sequence[Tensor], outputs: Sequence[Tensor], _: Attributes) -> None:
    outputs[0].copy_(inputs[0].reshape(outputs[0].shape))


def _cast(inputs: Sequence[Tensor], outputs: Sequence[Tensor], _: Attributes) -> None:
    outputs[0].copy_(inputs[0])


def _fill(inputs: Sequence[Tensor], outputs: Sequence[Tensor], _: Attributes) -> None:
    outputs[0].fill_(inputs[1].reshape(()))  # inputs: the shape, the value


def _transpose(inputs: Sequence[Tensor], outputs: Sequence[Tensor], _: Attributes) -> None:
    outputs[0].copy_(inputs[0].permute(inputs[1].tolist()))


def _pad(inputs: Sequence[Tensor], outputs: Sequence[Tensor], attributes: Attributes) -> None:
    """PadV3: paddings (before, after) per dimension from the first on; constant mode."""
    if attributes.get("mode", "constant") != "constant":
        raise ValueError(f"PadV3 with mode={attributes['mode']!r}")
    pairs = inputs[1].reshape(-1, 2).tolist()
    if not attributes.get("paddings_contiguous", True):
        half = inputs[1].numel() // 2
        flat = inputs[1].reshape(-1).tolist()
        pairs = list(zip(flat[:half], flat[half:], strict=True))
    value = inputs[2].item() if len(inputs) > 2 else 0
    flat_pairs = [side for pair in reversed(pairs) for side in pair]
    outputs[0].copy_(torch.nn.functional.pad(inputs[0], flat_pairs, value=value))


OPERATORS: dict[str, Operator] = {
    "Identity": _identity,
    "Cast": _cast,
    "Fill": _fill,
    "Transpose": _transpose,
    "PadV3": _pad,
}


def run(
    name: bytes, inputs: int, first_input: Any, outputs: int, first_output: Any, attributes: bytes
) -> int:
    """The handler: 0, or an error code with the error recorded for torch_npu to show."""
    called = name.decode()
    operator = OPERATORS.get(called)
    if operator is None:
        memory.runtime().set_error(
            f"operator {called} has no implementation; torch_npu started it from its own C++"
        )
        return _NOT_FOUND
    try:
        operator(
            [_tensor(first_input[i]) for i in range(inputs)],
            [_tensor(first_output[i]) for i in range(outputs)],
            json.loads(attributes),
        )
    # An exception cannot pass through C: it goes on as an error code and its message.
    except Exception as error:
        _logger.debug("operator %s failed", called, exc_info=True)
        memory.runtime().set_error(f"operator {called}: {type(error).__name__}: {error}")
        return _FAILED
    return _OK


def _tensor(raw: RuntimeTensor) -> Tensor:
    """The runtime's description as a CPU tensor on the same memory."""
    dtype = DTYPES.get(raw.dtype)
    if dtype is None:
        raise ValueError(f"a tensor of aclDataType {raw.dtype}")
    shape = [raw.sizes[i] for i in range(raw.dimensions)]
    if not raw.data:
        return torch.empty(shape, dtype=dtype, device=memory.CPU)
    buffer = (ctypes.c_char * raw.size).from_address(raw.data)
    count = 1
    for size in shape:
        count *= size
    return torch.frombuffer(buffer, dtype=dtype, count=count).reshape(shape)


# Kept for the life of the process: the runtime calls it.
HANDLER = OperatorHandler(run)
