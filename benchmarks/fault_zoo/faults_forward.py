"""Faults of a forward value, and attributes that a kernel does not heed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.fault_zoo.arithmetic import first_share, wide, widened
from benchmarks.fault_zoo.faults import Call, Fault, Strength

PERCENT = (Strength(0.001, "0.1 %"), Strength(0.01, "1 %"), Strength(0.1, "10 %"))


def argument(call: Call, name: str) -> Any:
    """An argument by its name in the schema, its default if it was not given."""
    for place, declared in enumerate(call.func._schema.arguments):
        if declared.name == name:
            if place < len(call.args):
                return call.args[place]
            return call.kwargs.get(name, declared.default_value)
    raise ValueError(f"{call.func} has no argument {name!r}")


def with_arguments(call: Call, **changes: Any) -> Call:
    """The same call with other arguments, by their names in the schema."""
    args, kwargs = list(call.args), dict(call.kwargs)
    for place, declared in enumerate(call.func._schema.arguments):
        if declared.name in changes:
            if place < len(args):
                args[place] = changes[declared.name]
            else:
                kwargs[declared.name] = changes[declared.name]
    return Call(call.func, tuple(args), kwargs)


def scaled(call: Call, strength: float) -> Any:
    """The result times 1 + strength."""
    return wide(call) * (1 + strength)


def wrong_scale(call: Call, strength: float) -> Any:
    """Fused attention whose kernel scales the scores by another factor."""
    scale = argument(call, "scale") * (1 + strength)
    return wide(with_arguments(call, scale=scale))


EXACT = 3  # no approximation
GELU_FORMS = (
    Strength(0, "erf by a polynomial, 2.5e-5 off"),
    Strength(1, "tanh formula"),
    Strength(2, "sigmoid formula"),
)


def normal_cdf(x: Tensor, form: float) -> Tensor:
    """The normal distribution function, exact or by one of three approximations, in float64."""
    if form == 0:  # Abramowitz and Stegun, 7.1.25
        z = x.abs() / math.sqrt(2)
        t = 1 / (1 + 0.47047 * z)
        tail = t * (0.3480242 + t * (-0.0958798 + t * 0.7478556)) * torch.exp(-z * z)
        return torch.where(x >= 0, 1 - tail / 2, tail / 2)
    if form == EXACT:
        exact: Tensor = torch.special.ndtr(x)
        return exact
    if form == 1:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * (1 + torch.tanh(inner))
    logistic: Tensor = torch.sigmoid(1.702 * x)
    return logistic


def approximate_gelu(call: Call, strength: float) -> Any:
    """GELU by a cruder formula."""
    x = call.args[0].double()
    return x * normal_cdf(x, strength)


def one_element(call: Call, strength: float) -> Any:
    """One element of the result is off, relative to itself."""
    result = call.copied().right()
    flat = result.view(-1)
    largest = flat.abs().argmax()
    flat[largest] = flat[largest].double() * (1 + strength)
    return result


def crude_exponential(call: Call, strength: float) -> Any:
    """Softmax whose exponential reads its argument from a table of steps."""
    x = call.args[0].double()
    below = x - x.amax(call.args[1], keepdim=True)
    powers = torch.exp(torch.round(below / strength) * strength if strength else below)
    return powers / powers.sum(call.args[1], keepdim=True)


def layer_norm(call: Call, *, taken: float = 0, eps: float | None = None) -> Any:
    """Layer norm in float64 with `taken` less in the divisor of the variance, or another eps."""
    x, shape, weight, bias, given = widened(call.args)
    dims = tuple(range(-len(shape), 0))
    mean = x.mean(dims, keepdim=True)
    count = math.prod(shape)
    variance = (x - mean).square().sum(dims, keepdim=True) / (count - taken)
    scale = torch.rsqrt(variance + (given if eps is None else eps))
    result = (x - mean) * scale
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias), mean, scale


def batch_norm(call: Call, *, taken: float = 0, eps: float | None = None) -> Any:
    """The same over batch and places [B, C, H, W]; running statistics as torch keeps them."""
    x, weight, bias, running_mean, running_var, _, momentum, given = call.args
    wide_x = x.double()
    dims, shape = (0, 2, 3), (1, -1, 1, 1)
    count = x.numel() // x.shape[1]
    mean = wide_x.mean(dims)
    squares = (wide_x - mean.view(shape)).square().sum(dims)
    scale = torch.rsqrt(squares / (count - taken) + (given if eps is None else eps))
    result = (wide_x - mean.view(shape)) * scale.view(shape)
    result = result * weight.double().view(shape) + bias.double().view(shape)
    _track(running_mean, mean, momentum)
    _track(running_var, squares / (count - 1), momentum)
    return result, mean, scale


def _track(running: Tensor, new: Tensor, momentum: float) -> None:
    running.copy_(running.double() * (1 - momentum) + new * momentum)


def _batch_norm_divisor(call: Call, strength: float) -> Any:
    return batch_norm(call, taken=strength)


def _batch_norm_eps(call: Call, strength: float) -> Any:
    return batch_norm(call, eps=strength)


def _batch_norm_momentum(call: Call, strength: float) -> Any:
    return with_arguments(call, momentum=argument(call, "momentum") * (1 + strength)).right()


def _second(occurrence: int, call: Call) -> bool:
    return occurrence == 1


def _scores(occurrence: int, call: Call) -> bool:
    """The products query @ key of the forward: every other bmm of the first eight."""
    return occurrence == 2


FORWARD = (
    Fault(
        "scores scaled",
        "forward value",
        "gpt",
        "aten::bmm",
        "query @ key in the second block is too large",
        PERCENT,
        scaled,
        _scores,
        neutral=0,
    ),
    Fault(
        "attention scale",
        "forward value",
        "gpt-sdpa",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "the fused attention kernel scales its scores too much",
        PERCENT,
        wrong_scale,
        neutral=0,
    ),
    Fault(
        "approximate gelu",
        "forward value",
        "gpt",
        "aten::gelu",
        "the exact gelu is asked for, a cruder formula is given",
        GELU_FORMS,
        approximate_gelu,
        neutral=EXACT,
    ),
    Fault(
        "one element",
        "forward value",
        "gpt",
        "aten::addmm",
        "the largest element of one product is off",
        (Strength(0.01, "1 %"), Strength(0.1, "10 %"), Strength(1.0, "100 %")),
        one_element,
        _second,
    ),
    Fault(
        "variance divisor",
        "forward value",
        "gpt",
        "aten::native_layer_norm",
        "layer norm divides by less than the number of elements",
        (Strength(1, "n - 1"), Strength(4, "n - 4"), Strength(16, "n - 16")),
        lambda call, strength: layer_norm(call, taken=strength),
        neutral=0,
    ),
    Fault(
        "batch norm divisor",
        "forward value",
        "cnn",
        "aten::native_batch_norm",
        "batch norm divides by less than the number of elements",
        (Strength(8, "n - 8"), Strength(64, "n - 64"), Strength(256, "n - 256")),
        _batch_norm_divisor,
        neutral=0,
    ),
    Fault(
        "crude exponential",
        "forward value",
        "gpt",
        "aten::_softmax",
        "softmax reads its exponential from a table of steps",
        (Strength(2**-10, "2^-10"), Strength(2**-7, "2^-7"), Strength(2**-4, "2^-4")),
        crude_exponential,
        neutral=0,
    ),
)


def _layer_norm_eps(call: Call, strength: float) -> Any:
    return layer_norm(call, eps=strength)


def _ignores_approximate(call: Call, strength: float) -> Any:
    """The exact gelu, where the tanh formula is asked for, for the last share of the elements."""
    result = call.right()
    tail = first_share(result.numel(), strength)
    exact = torch.nn.functional.gelu(call.args[0].double())
    result.view(-1)[-tail:] = exact.reshape(-1)[-tail:].to(result.dtype)
    return result


def _wrong_dim(call: Call, strength: float) -> Any:
    """Softmax over the other dimension, for the last share of the batch."""
    result = call.right()
    flat, given = result.view(-1, *result.shape[-2:]), call.args[0].double()
    tail = first_share(len(flat), strength)
    other = given.reshape(flat.shape)[-tail:].softmax(-2)
    flat[-tail:] = other.to(result.dtype)
    return result


ATTRIBUTE = (
    Fault(
        "layer norm eps",
        "attribute",
        "gpt",
        "aten::native_layer_norm",
        "the kernel has an eps of its own instead of 1e-5",
        (Strength(1e-6, "1e-6"), Strength(1e-4, "1e-4"), Strength(1e-3, "1e-3")),
        _layer_norm_eps,
        neutral=1e-5,
    ),
    Fault(
        "batch norm eps",
        "attribute",
        "cnn",
        "aten::native_batch_norm",
        "the kernel has an eps of its own instead of 1e-5",
        (Strength(1e-4, "1e-4"), Strength(1e-3, "1e-3"), Strength(1e-2, "1e-2")),
        _batch_norm_eps,
        neutral=1e-5,
    ),
    Fault(
        "batch norm momentum",
        "attribute",
        "cnn",
        "aten::native_batch_norm",
        "the kernel tracks the running statistics with another momentum",
        PERCENT,
        _batch_norm_momentum,
    ),
    Fault(
        "gelu form",
        "attribute",
        "gpt-tanh",
        "aten::gelu",
        "the tanh formula is asked for, the exact one is given at the end of the tensor",
        (Strength(1 / 64, "1/64"), Strength(1 / 8, "1/8"), Strength(1.0, "all")),
        _ignores_approximate,
    ),
    Fault(
        "softmax dim",
        "attribute",
        "gpt",
        "aten::_softmax",
        "softmax over the other dimension, for the last matrices",
        (Strength(1 / 16, "1/16"), Strength(1 / 4, "1/4"), Strength(1.0, "all")),
        _wrong_dim,
    ),
)
