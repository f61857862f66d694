"""What attention over some keys leaves behind, so that other keys can be added later."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionState(NamedTuple):
    """The output of attention together with what is needed to merge it with more keys.

    Attributes:
        out: `[B, H, T, D_v]`, the attention output; zero for a query that saw no key.
        lse: `[B, H, T]`, natural logarithm of the sum of exponentiated scores, in float32 (float64
            for float64 inputs); -inf for a query that saw no key.
    """

    out: Tensor
    lse: Tensor
