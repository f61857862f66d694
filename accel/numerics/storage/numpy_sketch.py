"""The sketch of a NumPy array in NumPy, where there is neither torch nor a C compiler.

It computes what `accel_kernels.sketch` does; sums may differ in their last bits, because the order
of additions does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel_kernels.sketch import Sketch
from accel_kernels.sketch.layout import (
    BUCKETS,
    COUNT,
    GAMMA,
    LARGEST,
    LEAST,
    MIX,
    NAN_PLACES,
    NANS,
    NEGATIVE,
    NEGATIVE_PLACES,
    NUMBERS,
    PLACE_BITS,
    PLACES,
    POSITIVE,
    POSITIVE_PLACES,
    ROTATIONS,
    SIGNS,
    SQUARES,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 2**16  # elements at a time, a multiple of BUCKETS: some 3 MiB of temporary arrays


def numpy_sketch(array: NDArray[Any]) -> Sketch:
    """The sketch of an array.

    Args:
        array: Of any shape, of real or complex numbers; complex ones count as pairs of real ones.
    """
    import numpy as np

    numbers = np.zeros(NUMBERS)
    numbers[LEAST], numbers[LARGEST] = np.inf, -np.inf
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    places = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, flat.size, _CHUNK):
            places += _add(numbers, flat[begin : begin + _CHUNK].astype(np.float64), begin)
    numbers[PLACES] = places % 2**PLACE_BITS
    numbers[COUNT] = flat.size
    return Sketch(numbers.astype("<f8").tobytes())


def _add(numbers: NDArray[np.float64], x: NDArray[np.float64], begin: int) -> int:
    """Add the elements from index `begin` on; returns the sum of the hashes of strange places."""
    import numpy as np

    finite = np.isfinite(x)
    places = 0
    if not finite.all():
        places = _strange(numbers, x, begin)
        x = np.where(finite, x, 0.0)
    if finite.any():
        numbers[LEAST] = min(numbers[LEAST], x[finite].min())
        numbers[LARGEST] = max(numbers[LARGEST], x[finite].max())
    numbers[SQUARES] += np.square(x).sum()
    rows = np.zeros((-(-x.size // BUCKETS), BUCKETS))
    rows.reshape(-1)[: x.size] = x
    lanes = np.arange(BUCKETS, dtype=np.uint64)
    block = np.arange(begin // BUCKETS, begin // BUCKETS + len(rows), dtype=np.uint64)[:, None]
    negative = (_mixed(block, SIGNS) >> lanes) & np.uint64(1)
    bucket = lanes ^ (_mixed(block, ROTATIONS) >> np.uint64(58))
    signed = np.where(negative == 1, -rows, rows)
    numbers[:BUCKETS] += np.bincount(
        bucket.reshape(-1).astype(np.intp), weights=signed.reshape(-1), minlength=BUCKETS
    )
    return places


def _strange(numbers: NDArray[np.float64], x: NDArray[np.float64], begin: int) -> int:
    """Count the elements that are not finite; returns the sum of the hashes of their places."""
    import numpy as np

    total = 0
    for place, start, found in (
        (NANS, NAN_PLACES, np.isnan(x)),
        (POSITIVE, POSITIVE_PLACES, np.isposinf(x)),
        (NEGATIVE, NEGATIVE_PLACES, np.isneginf(x)),
    ):
        numbers[place] += found.sum()
        index = np.flatnonzero(found).astype(np.uint64) + np.uint64(begin)
        hashes = _mixed(index, start) >> np.uint64(64 - PLACE_BITS)
        total += int(hashes.sum(dtype=np.uint64))  # wraps at 2**64, of which 2**53 is a divisor
    return total


def _mixed(number: NDArray[np.uint64], start: int) -> NDArray[np.uint64]:
    """64 well mixed bits for each number; products wrap around as in C."""
    import numpy as np

    z: NDArray[np.uint64] = number * np.uint64(GAMMA) + np.uint64(start)
    for shift, factor in MIX:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z
