"""The kernels of segmented attention for a part of an attention, below the public call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from accel import dispatch
from accel.errors import BackendError
from accel_kernels.segmented_attention.arguments import NAME, request
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.differentiable import Implementation

if TYPE_CHECKING:
    from accel_kernels.spec import Request

Kernel = Callable[..., "tuple[Tensor, Tensor | None]"]


def of_length(tensor: Tensor, length: int, heads: int | None = None) -> Tensor:
    """Like `tensor` but for its length and heads, and without memory: for choices and checks."""
    batch, _, _, size = tensor.shape
    row = tensor.new_empty(size).requires_grad_(tensor.requires_grad)
    return row.expand(batch, tensor.shape[1] if heads is None else heads, length, size)


def kernel_for_call(
    query: Tensor, key: Tensor, value: Tensor, call: Call, backend: str | None
) -> Kernel:
    """The kernel that dispatch gives a call.

    Raises:
        BackendError: None can serve it, or not the one named.
    """
    return dispatch.kernel_for(_request(query, key, value, call), backend)


def attend(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, call: Call
) -> tuple[Tensor, Tensor | None]:
    """Compute a call, differentiably.

    Returns:
        `out` and, if the call returns it, `lse`.
    """
    return kernel(
        query, key, value, mask=call.mask, scale=call.scale, dropout=call.dropout,
        softcap=call.softcap, bias=call.bias, segment_size=call.segment_size,
        return_lse=call.return_lse,
    )  # fmt: skip


def implementation_for(
    query: Tensor, key: Tensor, value: Tensor, call: Call, backend: str | None
) -> Implementation:
    """Forward and backward of the kernel that dispatch gives a call, each by itself.

    A ring needs them apart: its backward is called with the output and log-sum-exp of the whole.

    Raises:
        BackendError: No kernel can serve the call, or the one named brings its own autograd.
    """
    asked = _request(query, key, value, call)
    kernel = dispatch.kernel_for(asked, backend)
    found = _apart(kernel)
    if found is not None:
        return found
    how = dispatch.explain(NAME, query, key, value, backend=backend).how
    specs = [] if how != "automatic" else dispatch.backends(NAME)
    for spec in specs:
        if not spec.why_not(asked) and not spec.not_proven(asked):
            found = _apart(spec.load())
            if found is not None:
                return found
    raise BackendError(
        f"ring attention needs a kernel's forward and backward apart, and {kernel.__module__} "
        f"(chosen by {how}) has none; choose another backend, or method='ulysses'"
    )


def _apart(kernel: Callable[..., Any]) -> Implementation | None:
    """What the module of a kernel declares beside it."""
    found = getattr(sys.modules[kernel.__module__], "IMPLEMENTATION", None)
    return found if isinstance(found, Implementation) else None


def _request(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Request:
    return request(
        query,
        key,
        value,
        mask=call.mask,
        scale=call.scale,
        dropout_p=0.0 if call.dropout is None else call.dropout.p,
        softcap=call.softcap,
        bias=call.bias,
        segment_size=call.segment_size,
        return_lse=call.return_lse,
    )
