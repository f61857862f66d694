"""oneDNN's LSTM layer, which has no float64, as its formulas.

A call computes one direction of one layer, whatever its module has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Given, Results
from accel.numerics.replaying.references import Formula
from accel.numerics.replaying.refusals import CannotReplayError

_LSTM = 2  # torch's number of the mode


class _Step(NamedTuple):
    """One step of the recurrence: its place in time, what it was given and what it computed."""

    time: int
    hidden: Tensor  # before
    cell: Tensor
    gates: tuple[Tensor, ...]  # entry, forget, candidate, leave
    hidden_after: Tensor
    cell_after: Tensor


def _steps(given: Mapping[str, Given], weights: Sequence[Tensor], cell: Tensor) -> Iterator[_Step]:
    if given["mode"] != _LSTM:
        raise CannotReplayError("of oneDNN's recurrent layers only the LSTM has a formula here")
    inputs, hidden = given["input"], given["hx_"].reshape(-1, given["hidden_size"])
    cell = cell.reshape(hidden.shape)
    times = range(inputs.shape[0])
    for time in reversed(times) if given["reverse"] else times:
        sums = inputs[time] @ weights[0].t() + hidden @ weights[1].t()
        if given["has_biases"]:
            sums = sums + weights[2] + weights[3]
        entry, forget, candidate, leave = sums.chunk(4, -1)
        gates = (entry.sigmoid(), forget.sigmoid(), candidate.tanh(), leave.sigmoid())
        after = gates[1] * cell + gates[0] * gates[2]
        step = _Step(time, hidden, cell, gates, gates[3] * after.tanh(), after)
        yield step
        hidden, cell = step.hidden_after, step.cell_after


def _forward(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    steps = list(_steps(given, [given[f"weight{i}"] for i in range(4)], given["cx_"]))
    out = torch.stack([s.hidden_after for s in sorted(steps, key=lambda s: s.time)])
    hidden, cell = steps[-1].hidden_after, steps[-1].cell_after
    return [out, _like(hidden, recorded, 1), _like(cell, recorded, 2), None]


def _backward(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    weights, inputs = [given[f"weight{i}"] for i in range(1, 5)], given["input"]
    of_input, of_recurrent = torch.zeros_like(weights[0]), torch.zeros_like(weights[1])
    of_bias, of_inputs = torch.zeros_like(weights[0][:, 0]), torch.zeros_like(inputs)
    shape = given["hx_"].reshape(-1, given["hidden_size"])
    hidden, cell = (
        torch.zeros_like(shape) if given[name] is None else given[name].reshape(shape.shape)
        for name in ("grad_hy", "grad_cy")
    )
    for step in reversed(list(_steps(given, weights, given["cx_tmp"]))):
        if given["grad_output"] is not None:
            hidden = hidden + given["grad_output"][step.time]
        sums, cell = _of_sums(step, hidden, cell)
        of_inputs[step.time] = sums @ weights[0]
        of_input += sums.t() @ inputs[step.time]
        of_recurrent += sums.t() @ step.hidden
        of_bias += sums.sum(0)
        hidden = sums @ weights[1]
    found = [of_inputs, of_input, of_recurrent, of_bias, of_bias.clone(), hidden, cell]
    return [_like(gradient, recorded, index) for index, gradient in enumerate(found)]


def _of_sums(step: _Step, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a step's sums before its gates, and of the cell before it."""
    entry, forget, candidate, leave = step.gates
    state = step.cell_after.tanh()
    cell = cell + hidden * leave * (1 - state.square())
    sums = [
        cell * candidate * entry * (1 - entry),
        cell * step.cell * forget * (1 - forget),
        cell * entry * (1 - candidate.square()),
        hidden * state * leave * (1 - leave),
    ]
    return torch.cat(sums, -1), cell * forget


def _like(value: Tensor, recorded: Results, index: int) -> Tensor | None:
    """In the recorded shape; None if the run returned nothing there."""
    there = recorded.outputs[index] if index < len(recorded.outputs) else None
    if there is None or there.numel() != value.numel():
        return None
    return value.reshape(there.shape)


FORMULAS: Mapping[str, Formula] = {
    "aten::mkldnn_rnn_layer": _forward,
    "aten::mkldnn_rnn_layer_backward": _backward,
}
"""By name."""
