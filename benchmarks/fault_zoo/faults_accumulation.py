"""Faults of the accumulation dtype: sums, statistics or operands with too few bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.fault_zoo.arithmetic import matmul, summed, widened
from benchmarks.fault_zoo.faults import Call, Fault, Strength
from benchmarks.fault_zoo.roundings import BF16, Round, exact, to_bits

NEVER = 0  # rounded: the accumulator is float32
FULL = 52  # bits: not rounded at all
BITS = (Strength(10, "10 bits (TF32, fp16)"), Strength(9, "9 bits"), Strength(7, "7 bits (bf16)"))
PIECES = (Strength(32, "every 32"), Strength(16, "every 16"), Strength(4, "every 4"))


def _product(call: Call, strength: float) -> Any:
    """A product plus bias whose accumulator is bfloat16, rounded after each piece of K."""
    bias, a, b = widened(call.args, torch.float32)
    if strength == NEVER:
        return bias + a @ b
    return bias + matmul(a, b, int(strength), BF16)


def _row_sum(call: Call, strength: float) -> Any:
    """The sum over the tokens, in a bfloat16 accumulator."""
    x, dims, keepdim = call.args[0].float(), call.args[1], call.args[2]
    if strength == NEVER:
        return x.sum(dims, keepdim)
    total = summed(x, dims[0], int(strength), BF16)
    return total if keepdim else total.squeeze(dims[0])


def _layer_norm(call: Call, strength: float) -> Any:
    """Layer norm whose statistics have so many bits."""
    x, shape, weight, bias, eps = widened(call.args)
    rounded = to_bits(int(strength))
    dims = tuple(range(-len(shape), 0))
    mean = rounded(x.mean(dims, keepdim=True))
    scale = rounded(torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + eps))
    result = (x - mean) * scale * (1 if weight is None else weight)
    return (result if bias is None else result + bias), mean, scale


def _softmax(call: Call, strength: float) -> Any:
    """Softmax whose exponentials and their sum have so many bits."""
    x, dim = call.args[0].double(), call.args[1]
    rounded = to_bits(int(strength))
    powers = rounded(torch.exp(x - x.amax(dim, keepdim=True)))
    return powers / rounded(powers.sum(dim, keepdim=True))


def _narrow_operands(call: Call, strength: float) -> Any:
    """A product of operands with so many bits, accumulated in float32."""
    bias, a, b = call.args
    rounded = to_bits(int(strength))
    return torch.addmm(bias.float(), rounded(a.float()), rounded(b.float()))


def _convolution(call: Call, strength: float) -> Any:
    """A convolution of operands with so many bits, accumulated in float32."""
    rounded: Round = to_bits(int(strength))
    x, weight, *rest = call.args
    narrow = Call(call.func, (rounded(x.float()), rounded(weight.float()), *rest), call.kwargs)
    bias = rest[0]
    if isinstance(bias, Tensor):
        narrow = Call(call.func, (*narrow.args[:2], bias.float(), *rest[1:]), call.kwargs)
    return narrow.right()


def _batch_statistics(call: Call, strength: float) -> Any:
    """Batch norm whose sums run in a bfloat16 accumulator, rounded after each piece."""
    x, weight, bias, running_mean, running_var, _, momentum, eps = call.args
    shape = (1, -1, 1, 1)
    rows = x.float().transpose(0, 1).flatten(1)
    count = rows.shape[1]
    rounded = BF16 if strength else exact
    size = count // int(strength) if strength else count
    mean = summed(rows, 1, size, rounded) / count
    variance = summed((rows - mean).square(), 1, size, rounded) / count
    scale = torch.rsqrt(variance + eps)
    result = (x.float() - mean.view(shape)) * scale.view(shape)
    result = result * weight.float().view(shape) + bias.float().view(shape)
    unbiased = variance * (count / (count - 1))
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(running.float() * (1 - momentum) + new.flatten() * momentum)
    return result, mean.flatten(), scale.flatten()


def _long(occurrence: int, call: Call) -> bool:
    """Sums over the 256 tokens."""
    return bool(call.args[0].dim() == 2) and math.prod(call.args[0].shape) > 256


FAULTS = (
    Fault(
        "product accumulator",
        "accumulation dtype",
        "gpt",
        "aten::addmm",
        "the accumulator is bf16, rounded after so many of the K products",
        PIECES,
        _product,
        neutral=NEVER,
    ),
    Fault(
        "bias gradient accumulator",
        "accumulation dtype",
        "gpt",
        "aten::sum",
        "the sum over tokens runs in bf16, rounded after so many",
        PIECES,
        _row_sum,
        _long,
        neutral=NEVER,
    ),
    Fault(
        "layer norm statistics",
        "accumulation dtype",
        "gpt",
        "aten::native_layer_norm",
        "mean and scale are kept with fewer bits than float32's 23",
        BITS,
        _layer_norm,
        neutral=FULL,
    ),
    Fault(
        "softmax interior",
        "accumulation dtype",
        "gpt",
        "aten::_softmax",
        "exponentials and their sum are kept with fewer bits",
        BITS,
        _softmax,
        neutral=FULL,
    ),
    Fault(
        "product operands",
        "accumulation dtype",
        "gpt",
        "aten::addmm",
        "the operands are rounded first, as TF32 and HF32 do",
        (Strength(11, "11 bits (HF32)"), Strength(10, "10 bits (TF32)"), Strength(7, "7 bits")),
        _narrow_operands,
        neutral=FULL,
    ),
    Fault(
        "convolution operands",
        "accumulation dtype",
        "cnn",
        "aten::convolution",
        "the operands are rounded first, as TF32 and HF32 do",
        (Strength(11, "11 bits (HF32)"), Strength(10, "10 bits (TF32)"), Strength(7, "7 bits")),
        _convolution,
        neutral=FULL,
    ),
    Fault(
        "batch norm statistics",
        "accumulation dtype",
        "cnn",
        "aten::native_batch_norm",
        "sums of batch norm run in bf16, rounded so many times",
        (Strength(4, "4 times"), Strength(16, "16 times"), Strength(64, "64 times")),
        _batch_statistics,
        neutral=NEVER,
    ),
)
