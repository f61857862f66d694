"""Readings of a collapse monitor: rows kept on their device, and what is measured of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel.alignment.evaluation.directions import directions
from accel.alignment.evaluation.health import (
    ModalityHealth,
    alignment_distance,
    modality_gap,
    modality_health,
)
from accel.alignment.pairs import pair_name


class Reading(NamedTuple):
    """What was measured of the embeddings since the reading before.

    Attributes:
        step: Number of the last step in it, from 0.
        modalities: By name.
        alignment: By pair, `text-image`; NaN where rows are not known to be partners.
        gap: By pair.
        center_cosine: By pair: the cosine between the mean directions of the two.
    """

    step: int
    modalities: dict[str, ModalityHealth]
    alignment: dict[str, float]
    gap: dict[str, float]
    center_cosine: dict[str, float]


class Kept(NamedTuple):
    """Rows of one step.

    Attributes:
        rows: `[k, D]` for each modality, on its device.
        samples: int64 `[k]` on the CPU: which samples they are, ascending. A modality whose samples
            are not known is not there.
    """

    rows: dict[str, Tensor]
    samples: dict[str, Tensor]


class Side(NamedTuple):
    """Rows of one modality and step that are there and have a direction, on the CPU.

    Attributes:
        units: Unit rows `[k, D]`.
        samples: int64 `[k]`; None: not known.
        invalid: How many more rows are there, without a direction.
    """

    units: Tensor
    samples: Tensor | None
    invalid: int


def sides_of(kept: Kept) -> dict[str, Side]:
    """The rows of one step on the CPU, by modality."""
    found = {}
    for name, rows in kept.rows.items():
        units, samples = directions(rows.cpu(), may_lack=True), kept.samples.get(name)
        directed = units.square().sum(1) > 0  # which NaN is not either
        samples = None if samples is None else samples[directed]
        found[name] = Side(units[directed], samples, int((~directed).sum()))
    return found


def reading_of(
    step: int, units: Mapping[str, Tensor], steps: Sequence[Mapping[str, Side]]
) -> Reading:
    """Measure.

    Args:
        step: Number of the last step.
        units: By modality, the unit rows of all steps `[k, D]`.
        steps: The same by step, from which partners follow.
    """
    modalities = {name: modality_health(rows) for name, rows in units.items()}
    means = {name: rows.double().mean(0) for name, rows in units.items()}
    reading = Reading(step, modalities, {}, {}, {})
    for a, b in combinations(units, 2):
        if units[a].shape[1] == units[b].shape[1]:  # else in no common space
            name = pair_name((a, b))
            reading.alignment[name] = _alignment(steps, a, b)
            reading.gap[name] = modality_gap(units[a], units[b])
            cosine = torch.cosine_similarity(means[a], means[b], dim=0)
            reading.center_cosine[name] = float(cosine)
    return reading


def distance_apart(reading: Reading, name: str) -> float:
    """How far the nearest other modality's center is, in spreads; NaN if there is none."""
    ratios = []
    for (a, b), cosine in (
        ((a, b), reading.center_cosine.get(pair_name((a, b)), math.nan))
        for a, b in combinations(reading.modalities, 2)
    ):
        if name in (a, b) and not math.isnan(cosine):
            cosines = (reading.modalities[one].mean_cosine for one in (a, b))
            # Below a millionth there is nothing but rounding.
            ratios.append((1.0 - cosine) / max(1e-6, *(1.0 - one for one in cosines)))
    return min(ratios, default=math.nan)


def _alignment(steps: Sequence[Mapping[str, Side]], a: str, b: str) -> float:
    x, y = [], []
    for one in steps:
        if a in one and b in one:
            (left, own, _), (right, other, _) = one[a], one[b]
            if own is not None and other is not None:
                x.append(left[torch.isin(own, other)])
                y.append(right[torch.isin(other, own)])
    return alignment_distance(torch.cat(x), torch.cat(y)) if x else math.nan


def kept_of(embeddings: Mapping[str, Tensor], presence: Tensor | None, share: int) -> Kept:
    """The first rows of each modality that are there.

    They are taken as slices: an index tensor would have to reach the device first.

    Args:
        embeddings: `[B, D]` for each modality, or only the rows that are present.
        presence: bool `[B, modalities]` on the CPU; None: all rows are there.
        share: How many rows of each, at most.

    Raises:
        ValueError: `presence` does not fit.
    """
    lengths = {name: len(rows) for name, rows in embeddings.items()}
    if presence is None:
        known = lengths if len(set(lengths.values())) == 1 else {}
        return Kept(
            {name: rows.detach()[:share].clone() for name, rows in embeddings.items()},
            {name: torch.arange(min(share, length)) for name, length in known.items()},
        )
    _check_presence(presence, lengths)
    found = Kept({}, {})
    for (name, rows), there in zip(embeddings.items(), presence.unbind(1), strict=True):
        numbers = there.nonzero().flatten()
        if len(rows) not in (len(there), len(numbers)):
            raise ValueError(
                f"{name!r} has {len(rows)} rows, and by presence {len(numbers)} of {len(there)} "
                "samples: give a row for each sample, or for each that has it"
            )
        places = numbers if len(rows) == len(there) else torch.arange(len(numbers))
        found.rows[name] = _copied(rows.detach(), places[:share].tolist())
        found.samples[name] = numbers[:share]
    return found


def _copied(rows: Tensor, places: Sequence[int]) -> Tensor:
    """Rows at ascending places, in a tensor of their own, from as few slices as there can be."""
    runs: list[tuple[int, int]] = []
    for place in places:
        start = runs.pop()[0] if runs and runs[-1][1] == place else place
        runs.append((start, place + 1))
    return torch.cat([rows[start:stop] for start, stop in runs] or [rows[:0]])


def _check_presence(presence: Tensor, lengths: Mapping[str, int]) -> None:
    if presence.ndim != 2 or presence.shape[1] != len(lengths) or presence.dtype != torch.bool:
        raise ValueError(
            f"presence must be bool [B, {len(lengths)}], a column for each of "
            f"{', '.join(lengths)}; got {presence.dtype} {list(presence.shape)}"
        )
    if presence.device.type != "cpu":
        raise ValueError(
            f"presence must be on the CPU, got {presence.device}: the monitor waits for no device"
        )


def plain(reading: Reading) -> dict[str, Any]:
    """A reading as mappings, lists and numbers."""
    modalities = {name: list(health) for name, health in reading.modalities.items()}
    return {**reading._asdict(), "modalities": modalities}


def restored(values: Mapping[str, Any]) -> Reading:
    """The reading of which `plain` made these."""
    modalities = {name: ModalityHealth(*health) for name, health in values["modalities"].items()}
    pairs = (dict(values[name]) for name in ("alignment", "gap", "center_cosine"))
    return Reading(int(values["step"]), modalities, *pairs)
