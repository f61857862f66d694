"""The fused cells that torch's LSTM and GRU use on an accelerator; it has none for the CPU.

Sizes: B batch, H hidden. Gates are ordered as torch.nn.LSTM and torch.nn.GRU document them. The
workspace is private to the pair of forward and backward: the activated gates, and for the GRU also
the hidden part of the new gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def lstm_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    cx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step from gates `[B, 4H]` (input, forget, cell, output) and cell state `[B, H]`."""
    gates = _with_bias(input_gates, input_bias) + _with_bias(hidden_gates, hidden_bias)
    entry, forget, cell, exit_ = gates.chunk(4, 1)
    entry, forget, exit_ = entry.sigmoid(), forget.sigmoid(), exit_.sigmoid()
    cell = cell.tanh()
    cy = forget * cx + entry * cell
    return exit_ * cy.tanh(), cy, torch.cat([entry, forget, cell, exit_], 1)


def lstm_cell_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    cy: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for the gates `[B, 4H]`, the cell state and the bias."""
    entry, forget, cell, exit_ = workspace.chunk(4, 1)
    bent = cy.tanh()
    grad_hidden = torch.zeros_like(cy) if grad_hy is None else grad_hy
    grad_cell = grad_hidden * exit_ * (1 - bent * bent)
    if grad_cy is not None:
        grad_cell = grad_cell + grad_cy
    grad_gates = torch.cat(
        [
            grad_cell * cell * entry * (1 - entry),
            grad_cell * cx * forget * (1 - forget),
            grad_cell * entry * (1 - cell * cell),
            grad_hidden * bent * exit_ * (1 - exit_),
        ],
        1,
    )
    return grad_gates, grad_cell * forget, _bias_gradient(grad_gates, has_bias)


def gru_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    hx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step from gates `[B, 3H]` (reset, update, new) and hidden state `[B, H]`."""
    from_input = _with_bias(input_gates, input_bias).chunk(3, 1)
    from_hidden = _with_bias(hidden_gates, hidden_bias).chunk(3, 1)
    reset = (from_input[0] + from_hidden[0]).sigmoid()
    update = (from_input[1] + from_hidden[1]).sigmoid()
    new = (from_input[2] + reset * from_hidden[2]).tanh()
    hy = (hx - new) * update + new
    return hy, torch.cat([reset, update, new, hx, from_hidden[2]], 1)


def gru_cell_backward(
    grad_hy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for both gates `[B, 3H]`, the hidden state and both biases."""
    reset, update, new, hx, hidden_new = workspace.chunk(5, 1)
    grad_new = grad_hy * (1 - update) * (1 - new * new)
    grad_reset = grad_new * hidden_new * reset * (1 - reset)
    grad_update = grad_hy * (hx - new) * update * (1 - update)
    grad_input = torch.cat([grad_reset, grad_update, grad_new], 1)
    grad_hidden = torch.cat([grad_reset, grad_update, grad_new * reset], 1)
    return (
        grad_input,
        grad_hidden,
        grad_hy * update,
        _bias_gradient(grad_input, has_bias),
        _bias_gradient(grad_hidden, has_bias),
    )


def _with_bias(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias


def _bias_gradient(gates: Tensor, has_bias: bool) -> Tensor:
    return gates.sum(0) if has_bias else gates.new_empty(0)


COMPUTE: dict[str, Callable[..., Any]] = {
    "aten::_thnn_fused_lstm_cell": lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
    "aten::_thnn_fused_gru_cell": gru_cell,
    "aten::_thnn_fused_gru_cell_backward": gru_cell_backward,
}
