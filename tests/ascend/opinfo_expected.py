"""Where the simulated Ascend may differ from the CPU on OpInfo's samples, each with its reason."""

from __future__ import annotations

# Another algorithm than on the CPU: held to the dtype's usual tolerances.
ROUNDED: dict[str, str] = {}

_EMPTY = "allocates without writing"
# Results that hold unwritten memory: held to shape and dtype.
UNWRITTEN: dict[str, str] = {
    "empty": _EMPTY,
    "empty_like": _EMPTY,
    "empty_permuted": _EMPTY,
    "empty_strided": _EMPTY,
    "new_empty": _EMPTY,
    "new_empty_strided": _EMPTY,
    "resize_": _EMPTY,
    "resize_as_": _EMPTY,
}

# torch itself writes out of bounds for an `out=` tensor that is not contiguous.
STRIDED_OUT_BREAKS_TORCH: dict[str, str] = {
    "linalg.lu": "memory is overwritten on the CPU too",
    "lu_unpack": "memory is overwritten on the CPU too",
    "nn.functional.gelu": "the result is not written on the CPU either",
    "linalg.matrix_rank": "the result is not written on the CPU either",
    "linalg.matrix_rank[hermitian]": "the result is not written on the CPU either",
}

FALLS_BACK: dict[str, str] = {
    "_batch_norm_with_update": "",
    "hypot": "",
    "igamma": "",
    "nn.functional.huber_loss": "",
}
