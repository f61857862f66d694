"""Embeddings of all modalities in the plane: principal components, the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from accel.alignment.evaluation.directions import directions

Center = Literal["joint", "modality"]


class ProjectionMap(NamedTuple):
    """Rows in the plane.

    Attributes:
        places: By modality, float64 `[N, components]` on the CPU.
        explained: The share of the variance along each component.
    """

    places: dict[str, Tensor]
    explained: tuple[float, ...]


def principal_map(
    embeddings: Mapping[str, Tensor], *, components: int = 2, center: Center = "joint"
) -> ProjectionMap:
    """Project the rows of all modalities on their common principal components.

    They are computed in float64 on the CPU from the `[D, D]` covariance of the unit rows. Of each
    component the sign is that which makes its largest element positive, so that two runs on the
    same embeddings draw the same map.

    Args:
        embeddings: `[N, D]` for each modality, floating point; numbers of rows may differ.
        components: How many, from 1 to `D`.
        center: Take off the mean of all rows (`joint`), which shows the gap between modalities; or
            of each modality's own (`modality`), which hides it and shows what they have in common.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`; or there are no rows, several depths, or too many components.
    """
    if center not in ("joint", "modality"):
        raise ValueError(f"center must be 'joint' or 'modality', got {center!r}")
    rows = {name: directions(one, name).cpu().double() for name, one in embeddings.items()}
    depths = {one.shape[1] for one in rows.values()}
    if len(depths) != 1 or not any(len(one) for one in rows.values()):
        raise ValueError(
            f"a map needs rows of one depth, got {[list(one.shape) for one in rows.values()]}"
        )
    (depth,) = depths
    if not 1 <= components <= depth:
        raise ValueError(f"components must be from 1 to {depth}, got {components}")
    whole = torch.cat(list(rows.values()))
    centred = {
        name: one - (whole if center == "joint" else one).mean(0) if len(one) else one
        for name, one in rows.items()
    }
    whole = torch.cat(list(centred.values()))
    values, vectors = torch.linalg.eigh(whole.T @ whole)
    axes = vectors.flip(1)[:, :components]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0).double()
    total = float(values.clamp(min=0).sum())
    shares = values.flip(0)[:components].clamp(min=0)
    explained = tuple(float(value) / total if total > 0 else 0.0 for value in shares)
    return ProjectionMap({name: one @ axes for name, one in centred.items()}, explained)
