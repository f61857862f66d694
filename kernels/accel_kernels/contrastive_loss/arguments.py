"""Checking a contrastive loss, once, and reducing it to a request."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import DUPLICATES, Guide, Pairing
from accel_kernels.spec import Request

NAME = "contrastive_loss"
KINDS = ("softmax", "sigmoid")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FEATURES = frozenset({*KINDS, "groups", "guide", "hardness", "empty"})
"""All that a call may use; `request` speaks of no other."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What logits, sums and gradients are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def request(
    x: Tensor,
    y: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    pairing: Pairing | None = None,
    kind: str = "softmax",
) -> Request:
    """Check the arguments of a contrastive loss and say what a kernel must be able to do.

    Args:
        x: `[N, D]` embeddings, float64, float32, bfloat16 or float16.
        y: `[M, D]`, of the same dtype and device.
        scale: What products of rows are multiplied by: `[]` or a number.
        bias: What is then added, in the sigmoid loss only: `[]` or a number; None: nothing.
        pairing: Who belongs to whom; None: row i of x to row i of y.
        kind: "softmax" or "sigmoid".

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: Shapes, devices or numbers do not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    _check_embeddings(x, y)
    _check_number("scale", scale, x)
    if bias is not None:
        if kind == "softmax":
            raise ValueError(
                "a softmax loss does not depend on a bias: leave it out, or take kind='sigmoid'"
            )
        _check_number("bias", bias, x)
    if pairing is None:
        if x.shape[0] != y.shape[0]:
            raise ValueError(
                f"without a pairing row i of x belongs to row i of y, but there are {x.shape[0]} "
                f"and {y.shape[0]} rows: give a Pairing"
            )
    else:
        _check_pairing(pairing, x, y)
    given = [item for item in (x, y, scale, bias) if isinstance(item, Tensor)]
    return Request(
        NAME,
        x.device.type,
        x.dtype,
        _features(x, y, pairing, kind),
        (("rows", x.shape[0]), ("columns", y.shape[0]), ("depth", x.shape[1])),
        needs_grad=torch.is_grad_enabled() and any(item.requires_grad for item in given),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _features(x: Tensor, y: Tensor, pairing: Pairing | None, kind: str) -> frozenset[str]:
    features = {kind}
    if pairing is not None:
        if pairing.x_group is not None:
            features.add("groups")
        if pairing.guide is not None:
            features.add("guide")
        if pairing.hardness:
            features.add("hardness")
    if 0 in (*x.shape, y.shape[0]):
        features.add("empty")
    return frozenset(features)


def _check_embeddings(x: object, y: object) -> None:
    for name, item in (("x", x), ("y", y)):
        if not isinstance(item, Tensor):
            raise TypeError(f"{name} must be a tensor of embeddings, not {type(item).__name__}")
        if item.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise TypeError(f"{name} must be one of {allowed}, not {item.dtype}: convert it")
        if item.dim() != 2:
            raise ValueError(
                f"{name} must be [rows, dim], one embedding a row, not {list(item.shape)}: flatten "
                "or pool it first"
            )
    assert isinstance(x, Tensor)  # noqa: S101
    assert isinstance(y, Tensor)  # noqa: S101
    if x.dtype != y.dtype:
        raise TypeError(f"x and y must be of one dtype, not {x.dtype} and {y.dtype}: convert one")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, not {x.device} and {y.device}: move one")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x [N, D] and y [M, D] must agree in D, but are {list(x.shape)} and {list(y.shape)}: "
            "project one to the other's dimension"
        )


def _check_number(name: str, value: object, x: Tensor) -> None:
    if isinstance(value, Tensor):
        if value.shape != () or not value.dtype.is_floating_point:
            raise ValueError(
                f"{name} must be a floating tensor of shape [] or a number, not "
                f"{value.dtype} {list(value.shape)}: take value.float().squeeze()"
            )
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} and x on {x.device}: move one")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a tensor [] or a number, not {type(value).__name__}")
    elif not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")


def _check_pairing(pairing: object, x: Tensor, y: Tensor) -> None:
    if not isinstance(pairing, Pairing):
        raise TypeError(f"pairing must be a Pairing or None, not {type(pairing).__name__}")
    _check_vector("x_sample", pairing.x_sample, x, torch.int64)
    _check_vector("y_sample", pairing.y_sample, y, torch.int64)
    if (pairing.x_group is None) != (pairing.y_group is None):
        raise ValueError("groups must be given for both sides or neither: x_group and y_group")
    if pairing.x_group is not None:
        _check_vector("x_group", pairing.x_group, x, torch.int64)
        _check_vector("y_group", pairing.y_group, y, torch.int64)
    if pairing.duplicates not in DUPLICATES:
        raise ValueError(
            f"duplicates must be one of {', '.join(DUPLICATES)}, not {pairing.duplicates!r}"
        )
    if pairing.guide is not None:
        _check_guide(pairing.guide, x, y)
    hardness = pairing.hardness
    if isinstance(hardness, bool) or not isinstance(hardness, (int, float)):
        raise TypeError(f"hardness must be a number, not {type(hardness).__name__}")
    if not 0 <= hardness < math.inf:
        raise ValueError(f"hardness must be finite and at least 0, not {hardness}")


def _check_guide(guide: object, x: Tensor, y: Tensor) -> None:
    if not isinstance(guide, Guide):
        raise TypeError(f"guide must be a Guide, not {type(guide).__name__}")
    for name, item, rows in (("x", guide.x, x), ("y", guide.y, y)):
        if item.dim() != 2 or item.shape[0] != rows.shape[0] or item.dtype != rows.dtype:
            raise ValueError(
                f"guide.{name} must be [{rows.shape[0]}, E] of {rows.dtype}, one embedding for "
                f"each row of {name}, not {list(item.shape)} of {item.dtype}"
            )
        if item.device != rows.device:
            raise ValueError(f"guide.{name} is on {item.device}, {name} on {rows.device}: move one")
    if guide.x.shape[1] != guide.y.shape[1]:
        raise ValueError(
            f"guide.x [N, E] and guide.y [M, E] must agree in E, not {guide.x.shape[1]} and "
            f"{guide.y.shape[1]}"
        )
    wide = accumulation_dtype(x.dtype)
    _check_vector("guide.x_threshold", guide.x_threshold, x, wide)
    _check_vector("guide.y_threshold", guide.y_threshold, y, wide)


def _check_vector(name: str, value: Any, rows: Tensor, dtype: torch.dtype) -> None:
    """One value for each row, on the device of the rows."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of {dtype}, not {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be of {dtype}, not {value.dtype}: convert it")
    if value.shape != rows.shape[:1]:
        raise ValueError(
            f"{name} must be [{rows.shape[0]}], one for each row, not {list(value.shape)}"
        )
    if value.device != rows.device:
        raise ValueError(f"{name} is on {value.device}, the rows on {rows.device}: move one")
