"""Operators whose float64 replay on the CPU is impossible or says nothing, as formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from accel.numerics.replaying import decompositions
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


def _of_first(recorded: Results) -> torch.dtype:
    """The dtype of a result; float64 if there is none."""
    return next((tensor.dtype for _, tensor in recorded.named()), torch.float64)


def _nan_to_num(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """Infinities become the largest numbers of the dtype that the run had."""
    limits, value = torch.finfo(_of_first(recorded)), given["self"]
    largest, least = given.get("posinf"), given.get("neginf")
    changed = torch.nan_to_num(
        value,
        given.get("nan") or 0.0,
        limits.max if largest is None else largest,
        limits.min if least is None else least,
    )
    if recorded.written:
        value.copy_(changed)
        return []
    return [changed]


def _nextafter(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """The neighbour in the dtype that the run had."""
    dtype = _of_first(recorded)
    return [torch.nextafter(given["self"].to(dtype), given["other"].to(dtype)).double()]


def _ctc_loss(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """Beyond each sequence's end the table of probabilities is uninitialised."""
    loss, table = torch.ops.aten._ctc_loss(**given)
    lengths, targets = (
        torch.as_tensor(given[name]) for name in ("input_lengths", "target_lengths")
    )
    time = torch.arange(table.shape[1])[None, :, None] < lengths[:, None, None]
    place = torch.arange(table.shape[2])[None, None] < 2 * targets[:, None, None] + 1
    actual = recorded.outputs[1]
    if actual is None or actual.shape != table.shape:
        return [loss, table]
    return [loss, torch.where(time & place, table, actual.detach().to("cpu", torch.float64))]


def _unique(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """The distinct elements; the tables that were not asked for are anything."""
    if not given.get("sorted", True):
        raise CannotReplayError("the order of its results is not determined (sorted=False)")
    values, inverse, counts = torch.ops.aten._unique2(
        given["self"], True, given.get("return_inverse", False), given.get("return_counts", False)
    )
    return [
        values,
        inverse if given.get("return_inverse") else None,
        counts if given.get("return_counts") else None,
    ]


_MEAN_OF_BAG, _MAX_OF_BAG = 1, 2


def _embedding_bag(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """Sums, means or maxima of rows; fast paths leave out the tables for the gradient."""
    found = torch.ops.aten._embedding_bag(**given)
    mode = given.get("mode", 0)
    wanted = (True, True, mode == _MEAN_OF_BAG, mode == _MAX_OF_BAG)
    return [
        right if asked and actual is not None and (index == 0 or actual.numel()) else None
        for index, (right, asked, actual) in enumerate(
            zip(found, wanted, recorded.outputs, strict=False)
        )
    ]


FORMULAS: Mapping[str, Formula] = {
    "aten::native_dropout": _dropout,
    "aten::_fused_dropout": _dropout,
    "aten::cudnn_batch_norm": _native_batch_norm,
    "aten::miopen_batch_norm": _native_batch_norm,
    "aten::cudnn_batch_norm_backward": _native_batch_norm_backward,
    "aten::miopen_batch_norm_backward": _native_batch_norm_backward,
    "aten::_scaled_mm": _scaled_mm,
    "aten::_thnn_fused_lstm_cell": _lstm_cell,
    "aten::nan_to_num": _nan_to_num,
    "aten::nan_to_num_": _nan_to_num,
    "aten::nextafter": _nextafter,
    "aten::_ctc_loss": _ctc_loss,
    "aten::_unique2": _unique,
    "aten::_embedding_bag": _embedding_bag,
    "aten::_embedding_bag_forward_only": _embedding_bag,
    **decompositions.FORMULAS,
}
"""By name."""
