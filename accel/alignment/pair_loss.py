"""One pair's part of a batch: its rows, and who belongs together among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel.alignment.pairing import (
    MarginStrategy,
    check_numbers,
    grouped,
    guided,
    matched_pairs,
    with_negatives,
)
from accel.alignment.pairs import Pair
from accel.alignment.presence import PairRows
from accel_kernels.contrastive_loss.pairing import Duplicates, Pairing


class PairOptions(NamedTuple):
    """How a pair's rows are related; as of `Aligner`.

    Attributes:
        duplicates: What samples of one group are to each other.
        hardness: See `Pairing`.
        margin: Of the guide.
        margin_strategy: Of the guide.
        first_sample: Number of this process's first sample among those of all ranks.
    """

    duplicates: Duplicates = "positive"
    hardness: float = 0.0
    margin: float = 0.0
    margin_strategy: MarginStrategy = "absolute"
    first_sample: int = 0


class Extras(NamedTuple):
    """What a batch says besides its embeddings.

    Attributes:
        groups: `[B]` int64; None: no sample is like another.
        guides: By modality, `[B, E]`; empty: there is none.
        negatives: By modality, `[K, dim]` embeddings that are nobody's partner.
    """

    groups: Tensor | None
    guides: Mapping[str, Tensor]
    negatives: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        size: int,
        modalities: Sequence[str],
        groups: Tensor | None,
        guides: Tensor | Mapping[str, Tensor] | None,
        negatives: Mapping[str, Tensor] | None,
    ) -> Extras:
        """What is given, if it fits a batch of `size` samples.

        Raises:
            TypeError: Groups are not int64.
            ValueError: There is not one row for each sample, a modality has no guide, or there are
                both guides and negatives.
        """
        if groups is not None:
            check_numbers("groups", groups)
            _check_size("groups", groups, size)
        if isinstance(guides, Tensor):
            guides = dict.fromkeys(modalities, guides)
        for name in modalities if guides else ():
            if guides is None or name not in guides:
                raise ValueError(f"guides has none for {name!r}; give one for every modality")
            _check_size(f"guides of {name!r}", guides[name], size)
        if guides and negatives:
            raise ValueError(
                "guides say nothing of negatives that are nobody's partner: give one of both, or "
                "call contrastive_loss with a pairing made by with_negatives and guided"
            )
        return cls(groups, guides or {}, negatives or {})


class PairBatch(NamedTuple):
    """The arguments of a pair's `contrastive_loss`."""

    x: Tensor
    y: Tensor
    pairing: Pairing | None


def pair_batch(
    pair: Pair,
    rows: PairRows,
    embeddings: Mapping[str, Tensor],
    extras: Extras,
    options: PairOptions,
) -> PairBatch:
    """The rows of a pair, and their pairing.

    Args:
        pair: The two modalities.
        rows: Which of their present rows.
        embeddings: By modality, `[P, dim]`, its present rows.
        extras: See there.
        options: See there.
    """
    x, y = (
        _take(embeddings[name], chosen) for name, chosen in zip(pair, (rows.x, rows.y), strict=True)
    )
    is_plain = rows.aligned and extras.groups is None and not extras.guides
    if is_plain and not options.hardness and not set(pair) & set(extras.negatives):
        return PairBatch(x, y, None)
    samples = [(one + options.first_sample).to(x.device) for one in (rows.x_sample, rows.y_sample)]
    pairing = matched_pairs(*samples)._replace(hardness=options.hardness)
    hard = [extras.negatives.get(name, x[:0]).to(x.dtype) for name in pair]
    if any(map(len, hard)):
        pairing = with_negatives(with_negatives(pairing, len(hard[0]), side="x"), len(hard[1]))
        x, y = torch.cat([x, hard[0]]), torch.cat([y, hard[1]])
    if extras.groups is not None:
        groups = [
            _padded(_take(extras.groups, one).to(x.device), len(more), -1)
            for one, more in zip((rows.x_sample, rows.y_sample), hard, strict=True)
        ]
        pairing = grouped(pairing, groups[0], groups[1], options.duplicates)
    if extras.guides:
        found = [
            _take(extras.guides[name], one).to(x.device, x.dtype)
            for name, one in zip(pair, (rows.x_sample, rows.y_sample), strict=True)
        ]
        pairing = guided(pairing, found[0], found[1], options.margin, options.margin_strategy)
    return PairBatch(x, y, pairing)


def _take(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor.index_select(0, rows.to(tensor.device))


def _padded(tensor: Tensor, count: int, value: int) -> Tensor:
    return torch.cat([tensor, tensor.new_full((count, *tensor.shape[1:]), value)])


def _check_size(what: str, tensor: Tensor, size: int) -> None:
    if len(tensor) != size:
        raise ValueError(
            f"{what} must have a row for each of {size} samples of the batch, absent ones too, not "
            f"{len(tensor)}"
        )
