"""What attention over some keys leaves behind, and merging it with that over other keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.segmented_attention.state import accumulation_dtype, merge_all

LSE_DTYPES = (torch.float32, torch.float64)


class AttentionState(NamedTuple):
    """The output of attention together with what is needed to merge it with more keys.

    Attributes:
        out: `[B, H, T, D_v]`, the attention output; zero for a query that saw no key.
        lse: `[B, H, T]`, natural logarithm of the sum of exponentiated scores, in float32 (float64
            for float64 inputs); -inf for a query that saw no key.
    """

    out: Tensor
    lse: Tensor


def merge(states: Iterable[AttentionState]) -> AttentionState:
    """Attention over the union of keys from the attention over its parts.

        half = key.shape[2] // 2
        parts = [
            attend(query, key[:, :, :half], value[:, :, :half]),
            attend(query, key[:, :, half:], value[:, :, half:]),
        ]
        out = finalize(merge(parts), query.dtype)

    Associative and commutative but for rounding; an empty state changes no bit. Differentiable any
    number of times in each `out` and `lse`; an empty row's gradients are zero (Rabe & Staats, arXiv
    2112.05682, section 2).

    Args:
        states: At least one, of the same queries over disjoint sets of keys, all of one shape
            `[..., T, D_v]` and on one device. Where a row's `lse` is -inf its `out` must be zero. A
            `lse` of +inf or NaN, or NaN in `out`, makes the row NaN: what other libraries leave in
            empty rows must go through `from_convention`.

    Returns:
        The state over all their keys, in float32, or float64 if any of the tensors is, also where
        the given outputs have 16 bits: round once, with `finalize`.

    Raises:
        TypeError: Not states, or of a dtype that a state cannot have.
        ValueError: None given, or shapes or devices that differ.
    """
    given = list(states)
    if not given:
        raise ValueError("merge needs at least one state; empty_state makes one without keys")
    for index, state in enumerate(given):
        check_state(state, f"state {index}")
        if state.out.shape != given[0].out.shape or state.out.device != given[0].out.device:
            raise ValueError(
                f"states to merge must be of the same queries, but state 0's out is "
                f"{tuple(given[0].out.shape)} on {given[0].out.device} and state {index}'s "
                f"{tuple(state.out.shape)} on {state.out.device}"
            )
    wide = any(t.dtype == torch.float64 for state in given for t in state)
    dtype = torch.float64 if wide else torch.float32
    return AttentionState(
        *merge_all([s.out.to(dtype) for s in given], [s.lse.to(dtype) for s in given])
    )


def finalize(state: AttentionState, dtype: torch.dtype | None = None) -> Tensor:
    """The attention output of a state.

    Args:
        state: Of the whole.
        dtype: Of the result; None: as the state has it.

    Returns:
        `[B, H, T, D_v]`, zero for queries that saw no key.

    Raises:
        TypeError: Not a state, or a dtype that is not floating.
    """
    check_state(state, "state")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"an attention output is of a floating dtype, not {dtype}")
    out = state.out.masked_fill((state.lse == -torch.inf).unsqueeze(-1), 0.0)
    return out if dtype is None else out.to(dtype)


def empty_state(query: Tensor, value_head_size: int | None = None) -> AttentionState:
    """The state of queries that have seen no key yet: what to merge the first part into.

    Args:
        query: `[B, H, T, D]`.
        value_head_size: `D_v`; None: `D`.

    Returns:
        Zeros `[B, H, T, D_v]` and -inf `[B, H, T]`, in float32 (float64 for float64), on the
        query's device.

    Raises:
        TypeError: The query is no floating tensor.
        ValueError: It has not four dimensions, or the size is not positive.
    """
    if not isinstance(query, Tensor) or not query.dtype.is_floating_point:
        kind = query.dtype if isinstance(query, Tensor) else type(query).__name__
        raise TypeError(f"query must be a floating tensor, not {kind}")
    width = query.shape[-1] if value_head_size is None else value_head_size
    if query.dim() != 4 or width < 1:
        raise ValueError(
            f"query must be [B, H, T, D] and the value's head size at least 1, not "
            f"{tuple(query.shape)} and {width}"
        )
    dtype, device = accumulation_dtype(query.dtype), query.device
    out = torch.zeros(*query.shape[:3], width, dtype=dtype, device=device)
    return AttentionState(out, torch.full(query.shape[:3], -torch.inf, dtype=dtype, device=device))


def check_state(state: object, what: str) -> None:
    """Check that something is a state.

    Raises:
        TypeError: Not one, or of dtypes that it cannot have.
        ValueError: Shapes or devices do not fit.
    """
    if not isinstance(state, AttentionState):
        raise TypeError(f"{what} must be an AttentionState, not {type(state).__name__}")
    out, lse = state
    for name, tensor in (("out", out), ("lse", lse)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what}'s {name} must be a tensor, not {type(tensor).__name__}")
    if not out.dtype.is_floating_point:
        raise TypeError(f"{what}'s out must be of a floating dtype, not {out.dtype}")
    if lse.dtype not in LSE_DTYPES:
        raise TypeError(
            f"{what}'s lse must be float32 or float64, not {lse.dtype}: rounded to 16 bits it "
            "scales the outputs by whole percents"
        )
    if lse.device != out.device:
        raise ValueError(f"{what}'s out is on {out.device} and its lse on {lse.device}")
    if out.dim() < 2 or lse.shape != out.shape[:-1]:
        raise ValueError(
            f"{what} must have out [..., T, D_v] and lse [..., T], not {tuple(out.shape)} and "
            f"{tuple(lse.shape)}"
        )
