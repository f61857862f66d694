"""Which modalities are trained against each other, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, TypeVar

from torch import nn

Pair = tuple[str, str]
Weights = Mapping[Pair, float] | Mapping[str, float] | Literal["count"] | None
T = TypeVar("T")
HUB = "hub:"


def check_modalities(names: Iterable[str]) -> tuple[str, ...]:
    """The names of modalities, if they can be told apart in the name of a pair.

    Raises:
        TypeError: A name is no string.
        ValueError: There are fewer than two, or a name is empty, has `-`, `.` or `:`,
            or is an attribute of `nn.ModuleDict`.
    """
    modalities = tuple(names)
    for name in modalities:
        if not isinstance(name, str):
            raise TypeError(f"a modality is named by a string, not {name!r}")
        if not name or set(name) & set("-.:") or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"a modality may not be called {name!r}: a name is not empty, has no '-', '.' or "
                "':', which names of pairs and of parameters are made with, and is no attribute of "
                "nn.ModuleDict"
            )
    if len(modalities) < 2:
        raise ValueError(f"an Aligner needs at least two encoders, not {len(modalities)}")
    return modalities


def pair_name(pair: Pair) -> str:
    """`text-image`."""
    return "-".join(pair)


def resolve_pairs(modalities: Sequence[str], pairs: str | Iterable[Pair]) -> tuple[Pair, ...]:
    """The pairs that are trained.

    Args:
        modalities: All there are.
        pairs: `all`; `hub:image`: those with this one; or the pairs themselves. Where they follow
            from a word, the modality that comes first in `modalities` is first in its pair.

    Raises:
        ValueError: A modality or the word is unknown, a pair is none, there twice, or there is no
            pair at all.
    """
    every = tuple(combinations(modalities, 2))
    if isinstance(pairs, str):
        if pairs == "all":
            return every
        hub = pairs.removeprefix(HUB)
        if hub == pairs or hub not in modalities:
            raise ValueError(
                f"pairs must be 'all', 'hub:NAME' with a NAME of {', '.join(modalities)}, or a "
                f"list of pairs such as {every[:1]}, not {pairs!r}"
            )
        return tuple(pair for pair in every if hub in pair)
    found: list[Pair] = []
    for given in pairs:
        pair = tuple(given)
        if isinstance(given, str) or len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"a pair is two different modalities, not {given!r}")
        for name in pair:
            if name not in modalities:
                raise ValueError(
                    f"{given!r} names {name!r}, but the modalities are {', '.join(modalities)}"
                )
        if pair in found or pair[::-1] in found:
            raise ValueError(f"the pair {pair_name(pair)} is given twice; weights weigh pairs")
        found.append(pair)
    if not found:
        raise ValueError("there is no pair to train: give at least one, or pairs='all'")
    return tuple(found)


def by_pair(
    what: str, pairs: Sequence[Pair], given: Mapping[Pair, T] | Mapping[str, T]
) -> dict[str, T]:
    """What a mapping says of pairs, by their names; keys are pairs, in either order, or names.

    Raises:
        ValueError: A key is none of the pairs, or two keys are the same.
    """
    names: dict[object, str] = {}
    for pair in pairs:
        for one in (pair, pair[::-1]):
            names[one] = names[pair_name(one)] = pair_name(pair)
    found: dict[str, T] = {}
    for key, value in given.items():
        if key not in names:
            raise ValueError(
                f"{what} names {key!r}, which is no pair that is trained; there are: "
                f"{', '.join(map(pair_name, pairs))}"
            )
        if names[key] in found:
            raise ValueError(f"{what} names the pair {names[key]} twice")
        found[names[key]] = value
    return found


def resolve_weights(pairs: Sequence[Pair], weights: Weights) -> dict[str, float] | None:
    """The weight of every pair by name, 1 where none is given; None: as often as it occurs.

    Raises:
        ValueError: A pair is unknown, a weight negative or not finite, or all are 0.
    """
    if isinstance(weights, str):
        if weights != "count":
            raise ValueError(
                f"weights must be 'count', a number for each pair, or None, not {weights!r}"
            )
        return None
    found = {pair_name(pair): 1.0 for pair in pairs}
    found.update(by_pair("weights", pairs, weights or {}))
    for name, weight in found.items():
        if not (math.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"the weight of {name} must be finite and at least 0, not {weight}")
    if not any(found.values()):
        raise ValueError("the weights of all pairs are 0: nothing is left to train")
    return found
