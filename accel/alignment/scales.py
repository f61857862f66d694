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
        """The number of every pair by name; of a shared module it is one tensor.

        A gradient of it is then whole before the clamp judges it.
        """
        if SHARED in self:
            number = self[SHARED]()
            return {pair_name(pair): number for pair in pairs}
        return {name: self[name]() for name in map(pair_name, pairs) if name in self}


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
