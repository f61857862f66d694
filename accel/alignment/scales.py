"""The temperatures and biases of an aligner: one for each pair, or one for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

from torch import Tensor, nn

from accel.alignment.pairs import Pair, by_pair, pair_name
from accel.alignment.temperature import Bias, Temperature

SHARED = "shared"
M = TypeVar("M", Temperature, Bias)
Given: TypeAlias = "float | M | Mapping[Pair, float | M] | Mapping[str, float | M] | None"


class PairNumbers(nn.ModuleDict):
    """A temperature or bias for every pair.

    It holds one module under the name of each pair, `text-image`, a single one under `shared`, or
    none.
    """

    def of(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """The number of every pair by name; pairs that share a module share one tensor.

        A gradient of it is then whole before the clamp judges it.
        """
        keys = {name: SHARED if SHARED in self else name for name in map(pair_name, pairs)}
        found: dict[str, Tensor] = {}
        for name, key in keys.items():
            if key not in self:
                continue
            twins = (other for other in found if self[keys[other]] is self[key])
            twin = next(twins, None)
            found[name] = self[key]() if twin is None else found[twin]
        return found


def pair_numbers(
    what: str,
    kind: type[M],
    pairs: Sequence[Pair],
    given: Given[M],
    init: float,
) -> PairNumbers:
    """The modules of all pairs.

    Args:
        what: The argument, for messages.
        kind: Temperature or Bias.
        pairs: All pairs.
        given: A number, at which each pair's own begins; a module, which all pairs share; for each
            pair one or the other, by pair or name; None: `init`.
        init: Where those begin that nothing is said of.

    Raises:
        TypeError: What is given is none of these.
        ValueError: A pair is unknown, or a number out of bounds.
    """
    if isinstance(given, kind):
        return PairNumbers({SHARED: given})
    found: dict[str, float | M] = {}
    if isinstance(given, Mapping):
        found = by_pair(what, pairs, given)
    elif isinstance(given, (int, float)):
        init = given
    elif given is not None:
        raise TypeError(
            f"{what} must be a number, a {kind.__name__}, or a mapping of pairs to those, not "
            f"{type(given).__name__}"
        )
    return PairNumbers(
        {name: _module(kind, found.get(name, init)) for name in map(pair_name, pairs)}
    )


def _module(kind: type[M], given: float | M) -> M:
    return kind(given) if isinstance(given, (int, float)) else given
