"""How many floating-point operations a call takes, for `torch.utils.flop_counter`.

Registered when a counter may be about: torch's module of counters imports Triton where there is
one, which a program that counts nothing should not wait for.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from accel_kernels.masks import Visibility, visible_pairs
from accel_kernels.segmented_attention.call import sizes_of


@functools.cache
def register_flops() -> None:
    """Teach torch's FLOP counters our operators, those that are counting already too."""
    from torch.utils import flop_counter
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    formulas: dict[Any, Any] = {
        torch.ops.accel_kernels.segmented_attention: _forward,
        torch.ops.accel_kernels.segmented_attention_backward: _backward,
    }
    for operator, formula in formulas.items():
        registering: Any = flop_counter.register_flop_formula(operator, get_raw=True)
        registering(formula)
        for mode in _get_current_dispatch_mode_stack():
            # A counter copies the formulas that are known when it is made.
            known = getattr(getattr(mode, "counter", None), "flop_registry", None)
            if known is not None:
                known[operator] = flop_counter.flop_registry[operator]


def _forward(
    query: Any, key: Any, value: Any, intervals: Any, dense: Any, causal: bool, *rest: Any, **_: Any
) -> int:
    """Two products of the visible scores, two operations a multiplication."""
    pairs = _pairs(query, key, intervals, dense, causal)
    return int(2 * pairs * (query.shape[3] + value.shape[3]))


def _backward(
    grad_out: Any, grad_lse: Any, query: Any, key: Any, value: Any, out: Any, lse: Any,
    intervals: Any, dense: Any, causal: bool, *rest: Any, **_: Any,
) -> int:  # fmt: skip
    """Five products: the scores again, and two each for the values' and the scores' gradients."""
    pairs = _pairs(query, key, intervals, dense, causal)
    return int(2 * pairs * (3 * query.shape[3] + 2 * value.shape[3]))


def _pairs(query: Any, key: Any, intervals: Any, dense: Any, causal: bool) -> int:
    """How many scores are seen; of masks whose values cannot be read, all that they might show."""
    unreadable = torch._subclasses.fake_tensor.FakeTensor
    if any(
        isinstance(mask, Tensor) and isinstance(mask, unreadable) for mask in (intervals, dense)
    ):
        batch, heads, queries, keys = sizes_of(query, key)
        return int(batch * heads * queries * keys)
    return visible_pairs(Visibility(intervals, dense, causal), sizes_of(query, key))
