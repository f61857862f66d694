"""How an operator's results respond to inputs wrong by the roundoff it computes with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Call, Given, Results, mapped, tensors_in, widened
from accel.numerics.replaying.operators import SCALAR_OPERANDS, is_pointwise, short_name
from accel.numerics.replaying.refusals import CannotReplayError
from accel_kernels.references import NAMESPACE, operand_of

_OWN = f"{NAMESPACE}::"
Replayed = Callable[[Mapping[str, Given]], Results]

_DRAWS = 4
_FEW_DRAWS = 2  # for large tensors, where no few elements decide
_LARGE = 1_000_000  # elements
_SEED = 20_240_401

# Sums of products of their float arguments, each product once: with every argument squared they
# give the variance of the response itself. The number is how many noisy factors a product has.
_MULTILINEAR = {
    "mm": 2, "bmm": 2, "addmm": 2, "baddbmm": 2, "mv": 2, "addmv": 2, "dot": 2, "vdot": 2,
    "linear": 2, "matmul": 2, "convolution": 2, "convolution_backward": 2, "sum": 1, "cumsum": 1,
    "embedding_dense_backward": 1, "index_add": 1, "index_add_": 1, "scatter_add": 1,
    "scatter_add_": 1, "index_put": 1, "index_put_": 1, "_index_put_impl_": 1,
}  # fmt: skip
_INTERPOLATIONS = re.compile(
    r"aten::upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d)(_backward)?"
)
_SQUARED_SCALARS = frozenset({"alpha", "beta"})


def roundoff(call: Call) -> float:
    """Unit roundoff of the precision an operator computes in: of float64, or else of float32."""
    operand = operand_of(call.name.partition("::")[2]) if call.name.startswith(_OWN) else None
    if (found := call.arguments.get(operand or "")) is not None:
        dtype = found.dtype if isinstance(found, Tensor) else found
        return 2.0**-53 if dtype == torch.float64 else 2.0**-24
    floats = [t.dtype for t in call.tensors if t.is_floating_point() or t.is_complex()]
    tensors = [t for t in call.tensors if t.dim()] or call.tensors
    if any(t.dtype in (torch.float64, torch.complex128) for t in tensors) or not floats:
        return 2.0**-53
    return 2.0**-24


def widened_squares(
    call: Call,
    replay: Replayed,
    truth: Results,
    squares: Mapping[str, Tensor],
    unit: float,
    coarse: float,
) -> dict[str, Tensor]:
    """The mean squares if the noise were `coarse` and not `unit`.

    Args:
        call: The call, as of `mean_squares`.
        replay: Makes it in float64.
        truth: What it gave without noise.
        squares: Of noise of `unit`.
        unit: Unit roundoff that they were measured with.
        coarse: Unit roundoff that is wanted.
    """
    if _INTERPOLATIONS.fullmatch(call.name):  # its coordinates are not as coarse as its elements
        return mean_squares(call, replay, truth, coarse)
    return {name: value * (coarse / unit) ** 2 for name, value in squares.items()}


def with_fast_exponentials(call: Call, squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean squares of a log-sum-exp by torch's CPU kernel for attention in 16 bits.

    Where all scores are zero, inputs that are slightly wrong change none of them.

    Args:
        call: The call.
        squares: Of noise.
    """
    if "backward" in call.name or "1" not in squares:
        return dict(squares)
    return {**squares, "1": squares["1"] + _FAST_EXPONENTIALS**2}


# By how much its exponentials are wrong, relatively: up to 381 roundoffs of float32 were measured
# of sums of 2,048.
_FAST_EXPONENTIALS = 2.0**-13


def mean_squares(call: Call, replay: Replayed, truth: Results, unit: float) -> dict[str, Tensor]:
    """The mean square response of each result, by name as in `Results.named`.

    Args:
        call: The call.
        replay: Makes it in float64.
        truth: What it gave without noise.
        unit: Unit roundoff of the noise.

    Raises:
        CannotReplayError: The operator refuses what is only slightly different.
    """
    factors = _MULTILINEAR.get(short_name(call.name)) if call.name.startswith("aten::") else None
    if factors is not None and not any(t.is_complex() for t in call.tensors):
        squared = replay(_squared(call))
        return {name: value.abs_().mul_(factors * unit**2) for name, value in _real(squared)}
    draws = _single_draws(call) if is_pointwise(call.name, call.overload) else _joint_draws(call)
    exact = dict(_real(truth))
    total = {name: torch.zeros_like(value) for name, value in exact.items()}
    for seed, names in enumerate(draws):
        generator = torch.Generator().manual_seed(_SEED + seed)
        noisy = replay(_perturbed(call, unit, generator, names))
        for name, value in _real(noisy):
            if name not in exact or value.shape != exact[name].shape:
                raise CannotReplayError("the shapes of its results depend on its inputs' last bits")
            total[name] += (value - exact[name]).square_()
    many = 1 if is_pointwise(call.name, call.overload) else len(draws)
    return {name: value.div_(many) for name, value in total.items()}


def _real(results: Results) -> list[tuple[str, Tensor]]:
    return [(name, real(value)) for name, value in results.named() if is_inexact(value)]


def is_inexact(tensor: Tensor) -> bool:
    """Whether a tensor holds real or complex floating-point numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as real and imaginary parts."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _single_draws(call: Call) -> list[frozenset[str]]:
    """Each tensor argument by itself: an elementwise response then is never small by luck."""
    names = [
        name
        for name, value in call.arguments.items()
        if any(is_inexact(tensor) for tensor in tensors_in(value))
    ]
    return [frozenset({name}) for name in names]


def _joint_draws(call: Call) -> list[frozenset[str]]:
    count = _FEW_DRAWS if sum(t.numel() for t in call.tensors) > _LARGE else _DRAWS
    return [frozenset(call.arguments)] * count


def with_noise(value: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """A float64 (or complex128) tensor with each element wrong by `unit`, up or down."""
    parts = real(value)
    signs = torch.empty(parts.shape, dtype=torch.float64)
    noisy = parts * signs.bernoulli_(0.5, generator=generator).mul_(2 * unit).add_(1 - unit)
    return torch.view_as_complex(noisy) if value.is_complex() else noisy


def _perturbed(
    call: Call, unit: float, generator: torch.Generator, names: frozenset[str]
) -> dict[str, Given]:
    def perturb(value: Given) -> Given:
        is_noisy = isinstance(value, Tensor) and is_inexact(value)
        return with_noise(value, unit, generator) if is_noisy else value

    given = {
        name: mapped(value, perturb) if name in names else value
        for name, value in widened(call).items()
    }
    return {**given, **_noisy_scales(call, min(unit, _COORDINATES), generator)}


_COORDINATES = 2.0**-24  # their roundoff: float32 for 16-bit tensors too


def _noisy_scales(call: Call, unit: float, generator: torch.Generator) -> dict[str, Given]:
    """Scales of an interpolation, wrong by `unit`: kernels compute coordinates from them."""
    size = call.arguments.get("output_size")
    if not _INTERPOLATIONS.fullmatch(call.name) or not isinstance(size, (list, tuple)):
        return {}
    whole = call.arguments.get("input_size")
    before = call.tensors[0].shape if whole is None else whole
    names = ("scales",) if len(size) == 1 else ("scales_d", "scales_h", "scales_w")[-len(size) :]
    noisy: dict[str, Given] = {}
    for name, there, here in zip(names, size, before[2:], strict=True):
        scale = call.arguments.get(name) or there / here
        up = bool(torch.rand((), generator=generator) < 0.5)
        noisy[name] = scale * (1 + unit if up else 1 - unit)
    return noisy


def _squared(call: Call) -> dict[str, Given]:
    def square(value: Given) -> Given:
        if isinstance(value, Tensor) and is_inexact(value):
            return value.square()
        return value

    given = {name: mapped(value, square) for name, value in widened(call).items()}
    return {
        name: value**2 if name in _SQUARED_SCALARS and isinstance(value, (int, float)) else value
        for name, value in given.items()
    }


def with_rounded_scalars(call: Call, dtype: torch.dtype) -> Call:
    """The call with the Python scalars that take part in its arithmetic rounded to `dtype`."""

    def rounded(value: Given) -> Given:
        if isinstance(value, float) and math.isfinite(value):
            return float(torch.tensor(value, dtype=torch.float64).to(dtype))
        return value

    arguments = {
        name: mapped(value, rounded) if name in SCALAR_OPERANDS else value
        for name, value in call.arguments.items()
    }
    return replace(call, arguments=arguments)
