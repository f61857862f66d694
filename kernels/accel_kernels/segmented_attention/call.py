"""What a call of segmented attention asks for besides its query, key and value.

Order of a score, as in FlashAttention: `softcap(scale * query·key) + bias`, then the mask, then
softmax, then dropout of the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import Mask, Sizes

# From query, key and value of one kind of plain call to its output; None where their values ask for
# another way.
Way = Callable[[Tensor, Tensor, Tensor], "Tensor | None"]
BIAS_KINDS = ("dense", "alibi", "relative")


class Bias(NamedTuple):
    """What is added to the scores, in at most `O(T + S)` numbers but for `dense`.

    Attributes:
        kind: `dense`: `tensor` broadcasts to `[B, H, T, S]`, with four dimensions. `alibi`:
            `tensor` holds slopes `[H]` or `[B, H]`, and `-slope * |p(i) - j|` is added
            (Press et al., arXiv 2108.12409; FlashAttention's definition). `relative`: `tensor` is
            `[H or 1, 2R + 1]`, and entry `clamp(j - p(i), -R, R) + R` is added.
        tensor: Of a floating dtype; differentiable.
        shift: `p(i) = i + shift`; None means `S - T`, aligned at the bottom right.
    """

    kind: Literal["dense", "alibi", "relative"]
    tensor: Tensor
    shift: int | None = None

    def place(self, sizes: Sizes) -> int:
        """`p(0)`."""
        return sizes.key_length - sizes.query_length if self.shift is None else self.shift


class Dropout(NamedTuple):
    """Dropout of probabilities, a function of seed and logical position alone.

    Attributes:
        p: Probability that an element is dropped; the others are divided by `1 - p`.
        seed: 64 bits; an int64 tensor without dimensions, on the CPU, lets compiled code serve any.
        sizes: Heads, query length and key length of the whole attention, of which this call may
            be a part; None means the call is the whole.
        first: Batch entry, head, query and key of the whole at which this call begins.
    """

    p: float
    seed: int | Tensor
    sizes: tuple[int, int, int] | None = None
    first: tuple[int, int, int, int] = (0, 0, 0, 0)


class Call(NamedTuple):
    """One call's arguments, checked; what every kernel of the operation receives.

    Attributes:
        mask: None: every query sees every key.
        scale: Of the scores, any finite number.
        softcap: `softcap * tanh(scaled score / softcap)`; None: no cap.
        bias: Added to the capped scores.
        dropout: None: none.
        segment_size: Keys per segment; None: the kernel's own choice.
        return_lse: Whether the caller will use the log-sum-exp.
    """

    mask: Mask | None
    scale: float
    softcap: float | None = None
    bias: Bias | None = None
    dropout: Dropout | None = None
    segment_size: int | None = None
    return_lse: bool = False


def sizes_of(query: Tensor, key: Tensor) -> Sizes:
    """Batch, query heads, query length and key length of a call."""
    return Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def alibi(slopes: Tensor) -> Bias:
    """Attention with linear biases: `-slope * |p(i) - j|` is added to each score of a head.

    Args:
        slopes: `[H]` or `[B, H]`, of a floating dtype; learnable if it requires a gradient.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: Another number of dimensions.
    """
    _check(slopes, "alibi's slopes", (1, 2), "[H] or [B, H]")
    return Bias("alibi", slopes)


def relative_bias(table: Tensor) -> Bias:
    """A bias by distance: `table[h, clamp(j - p(i), -R, R) + R]` is added to each score.

    The learnable biases of T5 (arXiv 1910.10683, section 2.1) and Swin without a `[T, S]` tensor;
    buckets become a table by indexing with the bucket of each distance.

    Args:
        table: `[H, 2R + 1]` or `[1, 2R + 1]`: distances from `-R` (keys before) to `R`.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: Another number of dimensions, or an even number of distances.
    """
    _check(table, "relative_bias's table", (2,), "[H or 1, 2R + 1]")
    if table.shape[1] % 2 == 0:
        raise ValueError(
            f"relative_bias's table needs an odd number of distances, -R to R, not {table.shape[1]}"
        )
    return Bias("relative", table)


def _check(tensor: Any, what: str, dims: tuple[int, ...], form: str) -> None:
    if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{what} must be a floating tensor {form}, not {kind}")
    if tensor.dim() not in dims:
        raise ValueError(f"{what} must be {form}, not {tuple(tensor.shape)}")
