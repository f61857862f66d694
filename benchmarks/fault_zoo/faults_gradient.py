"""Faults that only the gradient has: the forward is right to the last bit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.fault_zoo.arithmetic import first_share, wide, widened
from benchmarks.fault_zoo.faults import Call, Fault, Strength
from benchmarks.fault_zoo.faults_forward import EXACT, GELU_FORMS, PERCENT, normal_cdf, scaled

SHARES = (Strength(0.01, "1 %"), Strength(0.1, "10 %"), Strength(1.0, "all"))


def _gelu_form(call: Call, strength: float) -> Any:
    """The derivative of x * cdf(x) for a cruder cdf."""
    gradient, x = widened(call.args[:2])
    return gradient * (normal_cdf(x, strength) + x * _density(x, strength))


def _density(x: Tensor, form: float) -> Tensor:
    """The derivative of `normal_cdf`; for the polynomial that of what it approximates."""
    if form in (0, EXACT):
        return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if form == 1:
        factor = math.sqrt(2 / math.pi)
        inner = factor * (x + 0.044715 * x**3)
        return 0.5 / torch.cosh(inner).square() * factor * (1 + 3 * 0.044715 * x**2)
    return 1.702 * torch.sigmoid(1.702 * x) * torch.sigmoid(-1.702 * x)


def _without_mean_term(call: Call, strength: float) -> Any:
    """Layer norm's input gradient with a share of the mean of the gradient left in."""
    gradient, _, shape, _, scale, weight, *_ = call.args
    right = wide(call)
    dims = tuple(range(-len(shape), 0))
    weighted = gradient.double() * (1 if weight is None else weight.double())
    left_in = scale.double() * weighted.mean(dims, keepdim=True)
    return (right[0] + strength * left_in, *right[1:])


def _lost_tokens(call: Call, strength: float) -> Any:
    """A weight gradient that misses the last tokens."""
    a, b = widened(call.args)
    kept = len(b) - int(strength)
    return a[:, :kept] @ b[:kept]


def _lost_repeats(call: Call, strength: float) -> Any:
    """Embedding gradient in which some rows keep only the last of their tokens, as in a race."""
    gradient, indices, *_ = call.args
    right = wide(call)
    kept, counts = torch.unique(indices, return_counts=True)
    racing = kept[counts > 1]
    racing = racing[len(racing) - first_share(len(racing), strength) :] if strength else racing[:0]
    for row in racing.tolist():
        right[row] = gradient[indices == row][-1].double()
    return right


def _frozen_statistics(call: Call, strength: float) -> Any:
    """Batch norm's input gradient with a share of the terms through its statistics missing."""
    gradient, _, weight, _, _, _, scale, *_ = call.args
    right = wide(call)
    shape = (1, -1, 1, 1)
    frozen = gradient.double() * (weight.double() * scale.double()).view(shape)
    return (right[0] + strength * (frozen - right[0]), *right[1:])


def _weight_gradient(occurrence: int, call: Call) -> bool:
    """Products that sum over tokens: both sides are long in them."""
    return int(call.args[0].shape[1]) >= 256


FAULTS = (
    Fault(
        "gelu backward form",
        "gradient only",
        "gpt",
        "aten::gelu_backward",
        "the derivative of a cruder formula than the forward's",
        GELU_FORMS,
        _gelu_form,
        neutral=EXACT,
    ),
    Fault(
        "layer norm backward mean",
        "gradient only",
        "gpt",
        "aten::native_layer_norm_backward",
        "the mean of the gradient is not (or not all) subtracted",
        SHARES,
        _without_mean_term,
        neutral=0,
    ),
    Fault(
        "softmax backward scaled",
        "gradient only",
        "gpt",
        "aten::_softmax_backward_data",
        "the gradient is too large",
        PERCENT,
        scaled,
        neutral=0,
    ),
    Fault(
        "lost tokens",
        "gradient only",
        "gpt",
        "aten::mm",
        "a weight gradient does not count the last tokens",
        (Strength(1, "1 of 256"), Strength(16, "16 of 256"), Strength(64, "64 of 256")),
        _lost_tokens,
        _weight_gradient,
        neutral=0,
    ),
    Fault(
        "embedding race",
        "gradient only",
        "gpt",
        "aten::embedding_dense_backward",
        "rows that occur more than once keep only the last contribution",
        SHARES,
        _lost_repeats,
        neutral=0,
    ),
    Fault(
        "batch norm backward",
        "gradient only",
        "cnn",
        "aten::native_batch_norm_backward",
        "the statistics are taken for constants",
        SHARES,
        _frozen_statistics,
        neutral=0,
    ),
)
