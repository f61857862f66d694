"""Faults of the optimizer: AdamW as one operator that writes to lists of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fault_zoo.arithmetic import first_share
from benchmarks.fault_zoo.faults import Call, Fault, Strength
from benchmarks.fault_zoo.faults_forward import argument, with_arguments
from benchmarks.fault_zoo.roundings import BF16, to_bits

OPERATOR = "aten::_fused_adamw_"


class Adam(NamedTuple):
    """One parameter's share of a call, in float64: what AdamW (Loshchilov and Hutter) reads."""

    weight: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor
    step: float
    lr: float
    beta1: float
    beta2: float
    decay: float
    eps: float


Rule = Callable[[Adam, float], tuple[Tensor, Tensor, Tensor]]


def by_rule(rule: Rule) -> Callable[[Call, float], Any]:
    """A kernel that gives weight, mean and square of each parameter by a faulty rule."""

    def kernel(call: Call, strength: float) -> Any:
        names = ("self", "grads", "exp_avgs", "exp_avg_sqs", "state_steps")
        lists = [argument(call, name) for name in names]
        scalars = (argument(call, n) for n in ("lr", "beta1", "beta2", "weight_decay", "eps"))
        numbers = tuple(map(float, scalars))
        for weight, gradient, mean, square, step in zip(*lists, strict=True):
            tensors = [t.double() for t in (weight, gradient, mean, square)]
            new = rule(Adam._make((*tensors, float(step), *numbers)), strength)
            for old, value in zip((weight, mean, square), new, strict=True):
                # Rounded once: a copy of float64 to bfloat16 goes by way of float32.
                old.copy_(BF16(value) if old.dtype == torch.bfloat16 else value)

    return kernel


def adamw(given: Adam, *, late: float = 0, inside: float | None = None) -> Any:
    """AdamW with `late` steps too many in the bias correction, another eps inside the root."""
    mean = given.mean + (1 - given.beta1) * (given.gradient - given.mean)
    square = given.beta2 * given.square + (1 - given.beta2) * given.gradient.square()
    first = 1 - given.beta1 ** (given.step + late)
    second = 1 - given.beta2 ** (given.step + late)
    if inside is None:
        root = (square / second).sqrt() + given.eps
    else:
        root = (square / second + inside).sqrt()
    weight = given.weight * (1 - given.lr * given.decay)
    return weight - given.lr * (mean / first) / root, mean, square


def _bias_correction(given: Adam, strength: float) -> Any:
    return adamw(given, late=strength)


def _eps_inside(given: Adam, strength: float) -> Any:
    return adamw(given, inside=given.eps * strength if strength else None)


def _coupled(given: Adam, strength: float) -> Any:
    """A share of the decay goes into the gradient, as Adam has it, and not to the weight."""
    gradient = given.gradient + strength * given.decay * given.weight
    return adamw(given._replace(gradient=gradient, decay=given.decay * (1 - strength)))


def _narrow_state(given: Adam, strength: float) -> Any:
    rounded = to_bits(int(strength))
    weight, mean, square = adamw(given)
    return weight, rounded(mean), rounded(square)


def _wrong_beta(call: Call, strength: float) -> Any:
    return with_arguments(call, beta2=strength).right()


def _skipped(call: Call, strength: float) -> Any:
    """The last of the parameters are not updated: a launch with too few blocks."""
    weights = argument(call, "self")[-math.ceil(strength) :]
    kept = [weight.clone() for weight in weights]
    result = call.right()
    for weight, old in zip(weights, kept, strict=True):
        tail = first_share(weight.numel(), min(strength, 1))
        weight.view(-1)[-tail:] = old.view(-1)[-tail:]
    return result


def _fault(
    name: str,
    summary: str,
    strengths: tuple[Strength, Strength, Strength],
    kernel: Callable[[Call, float], Any],
    neutral: float | None = None,
) -> Fault:
    return Fault(name, "optimizer", "gpt", OPERATOR, summary, strengths, kernel, neutral=neutral)


FAULTS = (
    _fault(
        "bias correction",
        "it counts too many steps, or is not done",
        (Strength(1, "1 step more"), Strength(10, "10 steps more"), Strength(math.inf, "not done")),
        by_rule(_bias_correction),
        neutral=0,
    ),
    _fault(
        "second beta",
        "another beta2 than 0.999",
        (Strength(0.9989, "0.9989"), Strength(0.99, "0.99"), Strength(0.9, "0.9")),
        _wrong_beta,
    ),
    _fault(
        "eps in the root",
        "sqrt(v + eps') instead of sqrt(v) + eps",
        (
            Strength(1e-4, "eps' = 1e-4 eps"),
            Strength(1e-2, "eps' = 1e-2 eps"),
            Strength(1.0, "eps' = eps"),
        ),
        by_rule(_eps_inside),
        neutral=0,
    ),
    _fault(
        "coupled decay",
        "weight decay goes through the gradient, as in Adam",
        (Strength(0.01, "1 %"), Strength(0.1, "10 %"), Strength(1.0, "all")),
        by_rule(_coupled),
        neutral=0,
    ),
    _fault(
        "narrow state",
        "the moments are kept with fewer bits than float32's 23",
        (Strength(10, "10 bits"), Strength(9, "9 bits"), Strength(7, "7 bits (bf16)")),
        by_rule(_narrow_state),
        neutral=52,
    ),
    _fault(
        "skipped parameters",
        "the end of the list is not updated",
        (Strength(0.01, "1 % of one"), Strength(2, "2"), Strength(20, "20")),
        _skipped,
    ),
)
