"""Operators whose float64 replay on the CPU is impossible or says nothing, as formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Given, Results
from accel.numerics.replaying.references import Formula
from accel.numerics.replaying.refusals import CannotReplayError

_MOST_DEVIATIONS = 8.0  # of the share a dropout keeps, in standard deviations


def _dropout(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """A dropout by the mask that it returned, whose share of ones must be plausible."""
    value, p = given["input"], float(given["p"])
    mask = recorded.outputs[1] if len(recorded.outputs) > 1 else None
    if given.get("train") is False:
        return [value, None if mask is None else torch.ones_like(value, dtype=torch.bool)]
    if mask is None:
        raise CannotReplayError("its mask was not recorded")
    kept = mask.detach().to("cpu").bool()
    keep = 1.0 - p
    spread = math.sqrt(max(p * keep * kept.numel(), 1e-300))
    surplus = abs(float(kept.double().sum()) - keep * kept.numel()) / spread
    if kept.numel() and surplus > _MOST_DEVIATIONS:
        # No random number generator draws this: what it should have drawn is not known.
        return [value * math.nan, mask]
    return [value * kept / keep if keep else value * 0.0, mask]


def _native_batch_norm(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """CuDNN's and MIOpen's batch norm: torch's own with other names, and a buffer of theirs."""
    momentum, eps = given["exponential_average_factor"], given["epsilon"]
    names = ("input", "weight", "bias", "running_mean", "running_var", "training")
    out, mean, inverse = torch.ops.aten.native_batch_norm.default(
        *(given[name] for name in names), momentum, eps
    )
    statistics = [mean, inverse] if given["training"] else [None, None]
    return [out, *statistics, *[None] * (len(recorded.outputs) - 3)]


def _native_batch_norm_backward(given: Mapping[str, Given], _: Results) -> list[Tensor | None]:
    names = ("grad_output", "input", "weight", "running_mean", "running_var", "save_mean")
    return list(
        torch.ops.aten.native_batch_norm_backward.default(
            *(given[name] for name in names), given["save_var"], True, given["epsilon"],
            [True, True, True],
        )
    )  # fmt: skip


def _scaled_mm(given: Mapping[str, Given], _: Results) -> list[Tensor | None]:
    if given.get("scale_result") is not None:
        raise CannotReplayError("its scale_result has no documented meaning")
    out = (given["self"] * given["scale_a"]) @ (given["mat2"] * given["scale_b"])
    bias = given.get("bias")
    return [out if bias is None else out + bias]


def _lstm_cell(given: Mapping[str, Given], _: Results) -> list[Tensor | None]:
    gates = given["input_gates"] + given["hidden_gates"]
    for name in ("input_bias", "hidden_bias"):
        if given.get(name) is not None:
            gates = gates + given[name]
    entry, forget, cell, exit_ = gates.chunk(4, 1)
    entry, forget, exit_ = entry.sigmoid(), forget.sigmoid(), exit_.sigmoid()
    cell = cell.tanh()
    state = forget * given["cx"] + entry * cell
    return [exit_ * state.tanh(), state, torch.cat([entry, forget, cell, exit_], 1)]


FORMULAS: Mapping[str, Formula] = {
    "aten::native_dropout": _dropout,
    "aten::_fused_dropout": _dropout,
    "aten::cudnn_batch_norm": _native_batch_norm,
    "aten::miopen_batch_norm": _native_batch_norm,
    "aten::cudnn_batch_norm_backward": _native_batch_norm_backward,
    "aten::miopen_batch_norm_backward": _native_batch_norm_backward,
    "aten::_scaled_mm": _scaled_mm,
    "aten::_thnn_fused_lstm_cell": _lstm_cell,
}
"""By name."""
