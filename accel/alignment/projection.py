"""Heads that bring the outputs of different encoders to one width."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor, nn

from accel.alignment.options import check_choice

ProjectionKind = Literal["linear", "mlp"]
PROJECTIONS: tuple[ProjectionKind, ...] = ("linear", "mlp")


class LinearProjection(nn.Linear):
    """One matrix without bias, as in CLIP (arXiv 2103.00020, section 2.3).

    Args:
        features: Width of the encoder's output.
        dim: Width of the embedding.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__(features, dim, bias=False)


class MlpProjection(nn.Sequential):
    """Two matrices and a GELU between, as in SimCLR (arXiv 2002.05709, section 4.2; ReLU there).

    Args:
        features: Width of the encoder's output.
        dim: Width of the embedding.
        hidden: Width between; that of the encoder's output if None.
    """

    def __init__(self, features: int, dim: int, hidden: int | None = None) -> None:
        width = features if hidden is None else hidden
        super().__init__(nn.Linear(features, width), nn.GELU(), nn.Linear(width, dim, bias=False))


def make_projections(
    projection: ProjectionKind | Mapping[str, nn.Module] | None,
    modalities: Collection[str],
    features: Mapping[str, int] | None,
    dim: int,
) -> nn.ModuleDict:
    """The head of each modality; those that have none keep what their encoder returns.

    Raises:
        TypeError: A head is no module.
        ValueError: The kind is unknown, a modality is, or the width of an encoder's output is not
            given.
    """
    if projection is None or isinstance(projection, Mapping):
        if features is not None:
            raise ValueError(
                "features are the widths for projection='linear' or 'mlp'; leave them out"
            )
        return _given(projection or {}, modalities)
    check_choice("projection", projection, PROJECTIONS)
    missing = [name for name in modalities if name not in (features or {})]
    if missing or features is None:
        raise ValueError(
            f"projection={projection!r} needs the width of each encoder's output: give features="
            f"{{{', '.join(f'{name!r}: …' for name in missing)}}}"
        )
    make = LinearProjection if projection == "linear" else MlpProjection
    return nn.ModuleDict({name: make(features[name], dim) for name in modalities})


def _given(heads: Mapping[str, nn.Module], modalities: Collection[str]) -> nn.ModuleDict:
    for name, head in heads.items():
        if name not in modalities:
            raise ValueError(
                f"there is a projection for {name!r}, but the modalities are "
                f"{', '.join(modalities)}"
            )
        if not isinstance(head, nn.Module):
            raise TypeError(f"the projection of {name!r} must be an nn.Module, not {head!r}")
    return nn.ModuleDict(dict(heads))


def check_embedding(modality: str, embedding: object, dim: int) -> Tensor:
    """What encoder and head returned, if it is `[B, dim]`.

    Raises:
        TypeError: It is no floating tensor.
        ValueError: It has another shape.
    """
    if not isinstance(embedding, Tensor) or not embedding.is_floating_point():
        kind = embedding.dtype if isinstance(embedding, Tensor) else type(embedding).__name__
        raise TypeError(
            f"the encoder of {modality!r} must return a floating tensor [B, F], not {kind}; wrap "
            "it in a module that picks the tensor out"
        )
    if embedding.dim() != 2 or embedding.shape[1] != dim:
        raise ValueError(
            f"the embedding of {modality!r} must be [B, {dim}], not {tuple(embedding.shape)}; "
            "projection='linear' with features={...} brings every encoder to one width"
        )
    return embedding
