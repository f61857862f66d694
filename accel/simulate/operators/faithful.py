"""`--faithful`: what a chip's documents say that it computes otherwise than a CPU.

- Float32 convolutions in HF32 (`torch.npu.conv.allow_hf32`, on by default), and float32 products
  where `torch.npu.matmul.allow_hf32` is on: operands rounded to 11 mantissa bits, products and sums
  in float32. The width is documented; that it rounds half to even is assumed.
- `gelu` by the tanh formula unless `use_compatible_impl` is on (torch_npu's page of that switch).
- On chips that saturate (910 and 310P; A2 and A3 under `INF_NAN_MODE_FORCE_DISABLE=1`), an infinite
  result is the dtype's largest number and NaN is 0 (torch_npu's page of `INF_NAN_MODE_ENABLE`), and
  the float status tells that it happened (`npu_get_float_status`).

What else differs is torch_npu's own code and therefore there in every mode: float64 that becomes
float32, and the rules its autocast lacks. How the chip itself rounds is not published and not
modelled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.simulate.machine import Machine
from accel.simulate.operators import memory
from accel.simulate.operators.generic import Kernel, Plan

_DROPPED_BITS = 12  # of float32's 23 mantissa bits HF32 keeps 11
_PRODUCTS = frozenset(
    {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addmv", "aten::mv"}
)  # fmt: skip
_HALF = (1 << (_DROPPED_BITS - 1)) - 1


def adapt(plan: Plan, run: Kernel, machine: Machine) -> Kernel:
    """`run` with the documented deviations of the machine's chip, if the operator has any."""
    name = plan.name.split(".")[0]
    if "conv" in name and name.startswith("aten::"):
        run = _narrowed(run, lambda: bool(memory.npu().conv.allow_hf32))
    elif name in _PRODUCTS:
        run = _narrowed(run, lambda: bool(memory.npu().matmul.allow_hf32))
    elif name in ("aten::gelu", "aten::gelu_", "aten::gelu_backward"):
        run = _by_tanh(run)
    return _saturating(plan, run) if saturates(machine) else run


def saturates(machine: Machine) -> bool:
    """Whether the chip has no infinities and NaN in the mode that the environment chooses."""
    if machine.profile.generation == "950":
        return False
    if machine.profile.saturates:
        return True
    return os.environ.get("INF_NAN_MODE_FORCE_DISABLE", "0") == "1"


def to_hf32(tensor: Tensor) -> Tensor:
    """A float32 tensor rounded to HF32: 8 exponent bits, 11 mantissa bits, half to even."""
    bits = tensor.contiguous().view(torch.int32)
    even = (bits >> _DROPPED_BITS) & 1
    rounded = (bits + _HALF + even) & -(1 << _DROPPED_BITS)
    finite = tensor.isfinite()
    return torch.where(finite, rounded.view(torch.float32), tensor)


def _narrowed(run: Kernel, is_on: Callable[[], bool]) -> Kernel:
    def narrow(value: Any) -> Any:
        is_float32 = isinstance(value, Tensor) and value.dtype == torch.float32
        return to_hf32(value) if is_float32 else value

    def compute(*args: Any, **kwargs: Any) -> Any:
        if not is_on():
            return run(*args, **kwargs)
        return run(*map(narrow, args), **{name: narrow(value) for name, value in kwargs.items()})

    return compute


def _by_tanh(run: Kernel) -> Kernel:
    def compute(*args: Any, **kwargs: Any) -> Any:
        if not memory.npu().are_compatible_impl_enabled():
            kwargs["approximate"] = "tanh"
        return run(*args, **kwargs)

    return compute


def _saturating(plan: Plan, run: Kernel) -> Kernel:
    places = [i for i, name in enumerate(plan.arguments) if name in plan.written | plan.outputs]
    written = plan.written | plan.outputs

    def compute(*args: Any, **kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        _saturate([args[i] for i in places if i < len(args)])
        _saturate([value for name, value in kwargs.items() if name in written])
        _saturate(result)
        return result

    return compute


def _saturate(value: Any) -> None:
    global _overflowed
    if isinstance(value, (list, tuple)):
        for item in value:
            _saturate(item)
    elif isinstance(value, Tensor) and value.is_floating_point():
        _overflowed = _overflowed or not bool(value.isfinite().all())
        torch.nan_to_num_(value, nan=0.0)


# The chip's float status: set by what saturates, until it is cleared.
_overflowed = False


def get_float_status(self: Tensor) -> Tensor:
    """A status of eight numbers, float32 `[8]`: the first is 1 after an overflow."""
    status = torch.zeros_like(self)
    status[0] = float(_overflowed)
    return status


def clear_float_status(self: Tensor) -> Tensor:
    """Forget overflows."""
    global _overflowed
    _overflowed = False
    return torch.zeros_like(self)


STATUS: dict[str, Kernel] = {
    "npu::npu_get_float_status": get_float_status,
    "npu::npu_clear_float_status": clear_float_status,
}
