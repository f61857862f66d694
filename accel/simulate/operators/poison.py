"""Memory that was allocated and never written: NaN in floating point, 0x7f bytes elsewhere.

The runtime fills what it hands out; torch_npu's allocator hands a block out again and again, so
`torch.empty` and its kin fill theirs too. A kernel that reads what nobody wrote then shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.simulate.operators import memory

OPERATORS = (
    "aten::empty.memory_format", "aten::empty_strided", "aten::new_empty_strided",
    "aten::empty_like",
)  # fmt: skip
_BYTE = 0x7F


def make_kernel(operator: Any, key: str) -> Callable[..., Any]:
    """torch_npu's own kernel at `key`, and the filling of what it returns."""
    original = torch.library.get_kernel(operator, key)

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        result = original.call_boxed(keys, *args, **kwargs)
        if memory.is_device(result) and result.numel():
            fill(memory.host_view(result))
        return result

    return kernel


def fill(view: Tensor) -> None:
    """Fill a CPU tensor's elements."""
    if view.is_floating_point() or view.is_complex():
        view.fill_(torch.nan)
    elif view.dtype == torch.bool:
        view.view(torch.uint8).fill_(_BYTE)
    else:
        size = view.element_size()
        view.fill_(int.from_bytes(bytes([_BYTE] * size), "little"))
