"""Checking embeddings that are given by modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from accel.alignment.presence import Presence

SHOWN = 8  # rows that an error lists


def check_rows(
    embeddings: Mapping[str, Tensor],
    modalities: Collection[str],
    dim: int,
    what: str = "embeddings",
) -> None:
    """Refuse what is no `[B, dim]` of a known modality.

    Raises:
        TypeError: One is no floating tensor.
        ValueError: A modality is unknown, a shape does not fit, or there are no embeddings at all.
    """
    for name, rows in embeddings.items():
        if name not in modalities:
            raise ValueError(f"{what} has {name!r}, but the modalities are {', '.join(modalities)}")
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"{what} of {name!r} must be a floating tensor, not {kind}")
        if rows.dim() != 2 or rows.shape[1] != dim:
            raise ValueError(
                f"{what} of {name!r} must be [B, {dim}], as encode returns them, not "
                f"{tuple(rows.shape)}"
            )
    if what == "embeddings" and not embeddings:
        raise ValueError(f"the batch holds none of the modalities {', '.join(modalities)}")


def check_finite(embeddings: Mapping[str, Tensor], presence: Presence) -> None:
    """Refuse NaN and infinity; waits for the device.

    Args:
        embeddings: By modality, its present rows.
        presence: Which samples those are.

    Raises:
        ValueError: There are some; it names modality and samples.
    """
    for name, rows in embeddings.items():
        wrong = (~torch.isfinite(rows.detach()).all(1)).nonzero().squeeze(1).cpu()
        if len(wrong):
            samples = presence.samples[name][wrong].tolist()
            shown = ", ".join(map(str, samples[:SHOWN]))
            more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
            raise ValueError(
                f"embeddings of {name!r} are NaN or infinite for {len(samples)} of {len(rows)} "
                f"rows, samples {shown}{more} of the batch: look at these inputs and at the "
                "encoder's weights"
            )
