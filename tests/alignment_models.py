"""Small encoders and batches of three modalities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accel.alignment import Aligner

SIZES = {"text": 3, "image": 4, "audio": 5}
MODALITIES = tuple(SIZES)


def encoders(dim: int = 6) -> dict[str, nn.Module]:
    return {
        name: nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, dim))
        for name, size in SIZES.items()
    }


def aligner(**options: Any) -> Aligner:
    """Of three modalities, in float64."""
    options.setdefault("temperature", 8.0)
    return Aligner(encoders(), dim=6, **options).double()


def batch(size: int) -> dict[str, Tensor]:
    return {name: torch.randn(size, width, dtype=torch.float64) for name, width in SIZES.items()}


def some_presence(size: int) -> Tensor:
    """About two thirds present, and at least two samples of every pair."""
    presence = torch.rand(size, len(SIZES)) < 0.67
    presence[:2] = True
    return presence


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Of every parameter, zeros where the loss does not depend on it."""
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {
        name: torch.zeros_like(parameter) if one is None else one
        for (name, parameter), one in zip(parameters.items(), found, strict=True)
    }


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], **close: float) -> None:
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(
            one, expected[name], msg=lambda text, n=name: f"{n}: {text}", **close
        )
