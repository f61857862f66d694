"""The sketch of a tensor as a value: what can be read from it, distances and sums."""

from __future__ import annotations

import base64
import binascii
import functools
import math
import struct
from dataclasses import dataclass

from accel_kernels.sketch.layout import (
    BUCKETS,
    BYTES,
    COUNT,
    LARGEST,
    LEAST,
    NANS,
    NEGATIVE,
    NUMBERS,
    PLACE_BITS,
    PLACES,
    POSITIVE,
    SQUARES,
)

_FORMAT = struct.Struct(f"<{NUMBERS}d")


@dataclass(frozen=True)
class Sketch:
    """A linear, position-sensitive digest of a tensor in 576 bytes.

    Each element is added with a random sign to one of 64 float64 sums; sign and sum depend on its
    place in the whole tensor only (a count sketch: Charikar, Chen, Farach-Colton, Finding Frequent
    Items in Data Streams, 2002; its squares estimate the norm: Alon, Matias, Szegedy, The Space
    Complexity of Approximating the Frequency Moments, 1996). Sketches of two tensors therefore
    tell how far apart they are, and sketches of the parts of a tensor add up to that of the whole.

    Elements that are not finite count as 0 in the sums, in `least`, `largest` and `norm`.

    Args:
        raw: 72 little-endian float64, as `accel_kernels.sketch.layout` names them.

    Raises:
        ValueError: `raw` is not 576 bytes long.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != BYTES:
            raise ValueError(f"a sketch is {BYTES} bytes long, not {len(self.raw)}")

    @functools.cached_property
    def numbers(self) -> tuple[float, ...]:
        """All 72 numbers."""
        return _FORMAT.unpack(self.raw)

    @property
    def sums(self) -> tuple[float, ...]:
        """The 64 sums."""
        return self.numbers[:BUCKETS]

    @property
    def least(self) -> float:
        """The least finite element; infinity if there is none."""
        return self.numbers[LEAST]

    @property
    def largest(self) -> float:
        """The largest finite element; minus infinity if there is none."""
        return self.numbers[LARGEST]

    @property
    def norm(self) -> float:
        """The exact L2 norm of the finite elements; infinity if their squares overflow."""
        return math.sqrt(self.numbers[SQUARES])

    @property
    def nan(self) -> int:
        """How many elements are NaN."""
        return int(self.numbers[NANS])

    @property
    def positive_infinite(self) -> int:
        """How many elements are infinity."""
        return int(self.numbers[POSITIVE])

    @property
    def negative_infinite(self) -> int:
        """How many elements are minus infinity."""
        return int(self.numbers[NEGATIVE])

    @property
    def mask(self) -> tuple[int, int, int, int]:
        """Counts of NaN, infinity and minus infinity, and the hash of their places."""
        return self.nan, self.positive_infinite, self.negative_infinite, int(self.numbers[PLACES])

    @property
    def count(self) -> int:
        """How many real numbers were added: a complex element is two."""
        return int(self.numbers[COUNT])

    def distance(self, other: Sketch) -> float:
        """Estimated L2 norm of the difference of the two tensors.

        The estimate's square is unbiased; its spread is in docs/portable-rng.md. Elements that are
        not finite count as 0, so compare `mask` too. Returns infinity if a sum overflowed.
        """
        if self.sums == other.sums:
            return 0.0
        distance = math.dist(self.sums, other.sums)
        return distance if math.isfinite(distance) else math.inf

    def __add__(self, other: Sketch) -> Sketch:
        """The sketch of the tensor whose parts have these two sketches."""
        if not isinstance(other, Sketch):
            return NotImplemented
        ours, theirs = self.numbers, other.numbers
        added = [a + b for a, b in zip(ours, theirs, strict=True)]
        added[LEAST] = min(ours[LEAST], theirs[LEAST])
        added[LARGEST] = max(ours[LARGEST], theirs[LARGEST])
        added[PLACES] = float((int(ours[PLACES]) + int(theirs[PLACES])) % 2**PLACE_BITS)
        return Sketch(_FORMAT.pack(*added))

    def to_text(self) -> str:
        """The 576 bytes as base64."""
        return base64.b64encode(self.raw).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> Sketch:
        """The sketch that `to_text` wrote.

        Raises:
            ValueError: It is not base64, not 576 bytes, or the counts are no counts.
        """
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"a sketch is written as base64, and this is not: {error}") from error
        result = cls(raw)
        for index in (NANS, POSITIVE, NEGATIVE, PLACES, COUNT):
            number = result.numbers[index]
            if not (0 <= number <= 2.0**PLACE_BITS and number.is_integer()):
                raise ValueError(f"number {index} of a sketch is a count and not {number}")
        if any(math.isnan(number) for number in result.numbers[LEAST : SQUARES + 1]):
            raise ValueError("the least and largest element and the norm of a sketch are no NaN")
        if result.numbers[SQUARES] < 0:
            raise ValueError("the sum of squares of a sketch is not negative")
        return result
