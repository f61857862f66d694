"""Which samples of a batch have which modalities, and the rows of each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from accel.alignment.pairs import Pair

Unpaired = Literal["ignore", "negative"]
UNPAIRED: tuple[Unpaired, ...] = ("ignore", "negative")


class PairRows(NamedTuple):
    """The rows that a pair's loss is made of.

    Attributes:
        both: How many samples have both modalities.
        x: Numbers of rows among the present ones of the first modality, int64 on the CPU; None:
            all of them, in order.
        y: The same of the second.
        x_sample: Number of each of those rows in the batch.
        y_sample: The same of the second.
        aligned: Row i of x and row i of y are one sample, whoever is present.
    """

    both: int
    x: Tensor | None
    y: Tensor | None
    x_sample: Tensor
    y_sample: Tensor
    aligned: bool


class Presence(NamedTuple):
    """The samples of a batch.

    Attributes:
        size: B, how many there are.
        samples: By modality, the numbers of the samples that have it, int64 on the CPU, ascending.
    """

    size: int
    samples: dict[str, Tensor]

    def rows_of(self, pair: Pair, unpaired: Unpaired) -> PairRows:
        """The rows of a pair: of samples that have both, or all that either has."""
        a, b = (self.samples[name] for name in pair)
        if a is b:  # everyone, which traced code can tell without looking at values
            return PairRows(len(a), None, None, a, b, aligned=unpaired == "ignore")
        in_a, in_b = torch.isin(a, b), torch.isin(b, a)
        both = int(in_a.sum())
        if unpaired == "negative":
            # Never called aligned, not even where it is: ranks must agree on it.
            return PairRows(both, None, None, a, b, aligned=False)
        x, y = _rows(in_a), _rows(in_b)
        return PairRows(both, x, y, a[in_a], b[in_b], aligned=True)


def _rows(chosen: Tensor) -> Tensor | None:
    return None if bool(chosen.all()) else chosen.nonzero().squeeze(1)


def find_presence(
    modalities: Sequence[str], presence: Tensor | None, counts: Mapping[str, int | None]
) -> Presence:
    """Who is there, of what a batch holds.

    Args:
        modalities: All there are, in the order of the columns of `presence`.
        presence: bool `[B, M]` on the CPU. None: every sample has every modality that the batch
            holds.
        counts: How many rows the batch holds of each modality; None where that is not known. A
            modality that is not there is absent.

    Raises:
        TypeError: `presence` is not bool, or not on the CPU.
        ValueError: A modality is unknown, shapes do not fit, or batch sizes differ.
    """
    for name in counts:
        if name not in modalities:
            raise ValueError(
                f"the batch holds {name!r}, but the modalities are {', '.join(modalities)}"
            )
    if presence is None:
        return _all_present(modalities, counts)
    _check(presence, modalities)
    size = len(presence)
    samples = {}
    for column, name in enumerate(modalities):
        samples[name] = presence[:, column].nonzero().squeeze(1)
        there = len(samples[name])
        if name not in counts and there:
            raise ValueError(
                f"presence says that {there} samples have {name!r}, but the batch holds none of it"
            )
        count = counts.get(name, 0)
        if count is not None and count not in (size, there) and name in counts:
            raise ValueError(
                f"{name!r} has {count} rows; give one for each of {size} samples, or only for the "
                f"{there} that have it by presence"
            )
    return Presence(size, samples)


def _all_present(modalities: Sequence[str], counts: Mapping[str, int | None]) -> Presence:
    sizes = {name: count for name, count in counts.items() if count is not None}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in sizes.items())
        raise ValueError(
            f"the modalities have different batch sizes: {listed}; where samples lack modalities, "
            "say which in presence, bool [B, M]"
        )
    size = next(iter(sizes.values()), 0)
    everyone = torch.arange(size)
    nobody = everyone[:0]
    return Presence(size, {name: everyone if name in counts else nobody for name in modalities})


def _check(presence: object, modalities: Sequence[str]) -> None:
    if not isinstance(presence, Tensor) or presence.dtype != torch.bool:
        kind = presence.dtype if isinstance(presence, Tensor) else type(presence).__name__
        raise TypeError(f"presence must be a bool tensor [B, {len(modalities)}], not {kind}")
    if presence.device.type != "cpu":
        raise TypeError(
            f"presence must be on the CPU, not on {presence.device}: it decides which rows are "
            "computed, and reading it from a device would wait for it; keep it where the batch is "
            "made"
        )
    if presence.dim() != 2 or presence.shape[1] != len(modalities):
        raise ValueError(
            f"presence must be [B, {len(modalities)}], columns in the order {', '.join(modalities)}"
            f", not {tuple(presence.shape)}"
        )
