"""Whether a function is backward stable: as close to float64 as its inputs' rounding warrants.

For tests of kernels, in place of an atol and an rtol. The limits and the yardstick are those of
`accel.numerics.replay`; see `accel.numerics.replaying.yardstick`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.numerics.replaying.calls import wide
from accel.numerics.replaying.limits import badness, why_out
from accel.numerics.replaying.responses import is_inexact, real, with_noise
from accel.numerics.replaying.yardstick import SIXTEEN_BIT, Measured, measured
from accel.testing.shaking import Shaking

_DRAWS = 8
Function = Callable[..., Any]


@dataclass(frozen=True)
class Stability:
    """One result of a function against its float64 truth.

    Attributes:
        name: `output 0`, `gradient of argument 1`, …
        measured: R, M, misrounding and the rest.
        strict: Whether it is held to the limits of computing wider than 16 bits.
        reason: Why it is out of the limits; None if it is within.
    """

    name: str
    measured: Measured
    strict: bool
    reason: str | None

    @property
    def share(self) -> float:
        """The part of the limits that it uses up; 1 is at one."""
        return badness(self.measured, self.strict)


def assert_backward_stable(
    fn: Function,
    *args: Any,
    reference: Function | None = None,
    compute: torch.dtype | None = None,
    gradients: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Assert that outputs and gradients of `fn` are those of slightly wrong inputs, rounded.

    `fn` is run as given and in float64 on the CPU, there also with inputs and the results of every
    operator inside wrong by the roundoff of the precision that it computes in; its error is held to
    the response to that. There is no tolerance to choose.

        assert_backward_stable(my_attention, query, key, value, is_causal=True)

    Args:
        fn: A deterministic function of tensors and other values to a tensor or a (nested) list,
            tuple or dict of them.
        *args: Its arguments; tensors of any dtype and device, and lists of them.
        reference: What stands for `fn` in float64 on the CPU, if that cannot run there.
        compute: The precision that `fn` computes in. If None: float64 and float32 for inputs of
            those dtypes, and for 16-bit inputs their dtype, as for a function of several operators
            that each round. Give float32 for a kernel that rounds once at its end: that finds far
            smaller faults.
        gradients: Whether to check gradients too, against random ones of the outputs: of the
            floating-point tensors that require them, or of all if none does.
        seed: Of the noise and of the outputs' gradients.
        **kwargs: Its named arguments.

    Raises:
        AssertionError: A result is out of the limits; the message names it and gives R, M, the
            share of misrounded elements and the limit.
        ValueError: There is no floating-point tensor among the arguments, or outputs differ in
            number or shape between `fn` and its float64 run.
    """
    found = measure_stability(
        fn, args, kwargs, reference=reference, compute=compute, gradients=gradients, seed=seed
    )
    worst = max(found, key=lambda one: one.share)
    if worst.reason is not None:
        m = worst.measured
        raise AssertionError(
            f"{worst.name} is not backward stable: {worst.reason} (R {m.rms:.3g}, M {m.worst:.3g}, "
            f"misrounded {m.misrounding:.3%} in {str(m.dtype).removeprefix('torch.')})"
        )


def measure_stability(
    fn: Function,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    reference: Function | None = None,
    compute: torch.dtype | None = None,
    gradients: bool = True,
    seed: int = 0,
) -> list[Stability]:
    """Measure what `assert_backward_stable` asserts; see there.

    Returns:
        One entry per floating-point output and gradient.
    """
    given = _Given(args, kwargs)
    if not given.inexact:
        raise ValueError("no argument is a floating-point tensor: there is nothing to measure")
    unit, strict = _precision(given, compute)
    asked = given.differentiable if gradients else []
    actual, cotangents = _results(fn, given.values, given, asked, seed)
    there = [t.detach().to("cpu", wide(t.dtype)) for t in given.tensors]
    exact_cotangents = [None if c is None else c.to("cpu", wide(c.dtype)) for c in cotangents]
    truth, _ = _results(reference or fn, there, given, asked, seed, exact_cotangents)
    _check_alike(actual, truth)
    squares = {name: torch.zeros_like(real(value)) for name, value in truth.items()}
    for draw in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed + draw)
        inputs = [with_noise(t, unit, generator) if is_inexact(t) else t for t in there]
        shaken = [None if c is None else with_noise(c, unit, generator) for c in exact_cotangents]
        with Shaking(unit, generator):
            noisy, _ = _results(reference or fn, inputs, given, asked, seed, shaken)
        for name, value in noisy.items():
            squares[name] += (real(value) - real(truth[name])).square_() / _DRAWS
    return [
        _stability(name, value, truth[name], squares[name], unit, strict)
        for name, value in actual.items()
    ]


def _stability(
    name: str, actual: Tensor, truth: Tensor, squares: Tensor, unit: float, strict: bool
) -> Stability:
    # A function may take another way than the one that was shaken (the inner product of gradient
    # and output in place of that of weights and their gradients), and cancel where that does not.
    found = measured(real(actual.detach().cpu()), real(truth), squares, unit, of_all=1.0)
    return Stability(name, found, strict, why_out(found, strict))


class _Given:
    """The tensors among nested arguments, and how to give others in their places."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._args, self._kwargs = list(args), dict(kwargs)
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        for name, value in [*enumerate(self._args), *self._kwargs.items()]:
            for path, tensor in _leaves(value, str(name)):
                self.names.append(path)
                self.tensors.append(tensor)
        self.values = self.tensors
        self.inexact = [i for i, t in enumerate(self.tensors) if is_inexact(t)]
        required = [i for i in self.inexact if self.tensors[i].requires_grad]
        self.differentiable = required or self.inexact

    def call(self, fn: Function, tensors: Sequence[Tensor]) -> Any:
        """Call `fn` with other tensors."""
        left = iter(tensors)
        args = [_replaced(value, left) for value in self._args]
        return fn(*args, **{name: _replaced(value, left) for name, value in self._kwargs.items()})


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")


def _replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: _replaced(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_replaced(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _precision(given: _Given, compute: torch.dtype | None) -> tuple[float, bool]:
    """Unit roundoff of the noise, and whether the limits of wide computing hold."""
    dtypes = [given.tensors[i].dtype for i in given.inexact]
    if compute is None:
        real_dtypes = [torch.finfo(dtype) for dtype in dtypes]
        coarsest = max(real_dtypes, key=lambda limits: limits.eps)
        return coarsest.eps / 2, coarsest.bits > 16
    if not compute.is_floating_point:
        raise TypeError(f"compute must be a floating-point dtype, not {compute}")
    return torch.finfo(compute).eps / 2, compute not in SIXTEEN_BIT


def _results(
    fn: Function,
    tensors: Sequence[Tensor],
    given: _Given,
    asked: Sequence[int],
    seed: int,
    cotangents: Sequence[Tensor | None] | None = None,
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """Outputs and gradients by name, and the gradients of the outputs that were used."""
    leaves = [tensor.detach() for tensor in tensors]
    for index in asked:
        leaves[index] = leaves[index].clone().requires_grad_()
    with torch.enable_grad() if asked else torch.no_grad():
        returned = given.call(fn, leaves)
    outputs = [(name, t) for name, t in _leaves(returned, "output") if is_inexact(t)]
    if isinstance(returned, Tensor):
        outputs = [("output 0", returned)] if is_inexact(returned) else []
    results = {name.replace("output.", "output "): t.detach() for name, t in outputs}
    if cotangents is None:
        cotangents = _cotangents([t for _, t in outputs], seed)
    pairs = list(_pairs([t for _, t in outputs], cotangents))
    if asked and pairs:
        grads = torch.autograd.grad(
            [t for t, _ in pairs], [leaves[i] for i in asked], [c for _, c in pairs],
            allow_unused=True,
        )  # fmt: skip
        results.update(
            (f"gradient of argument {given.names[i]}", grad)
            for i, grad in zip(asked, grads, strict=True)
            if grad is not None
        )
    return results, list(cotangents)


def _pairs(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The outputs that can be differentiated, each with its gradient."""
    if len(outputs) != len(cotangents):
        raise ValueError(f"the float64 run has {len(outputs)} outputs and not {len(cotangents)}")
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if cotangent is None or not output.requires_grad:
            continue
        if output.shape != cotangent.shape:
            raise ValueError(
                f"an output has shape {list(cotangent.shape)}, and in float64 {list(output.shape)}"
            )
        yield output, cotangent


def _cotangents(outputs: Sequence[Tensor], seed: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype)
        if t.requires_grad
        else None
        for t in outputs
    ]


def _check_alike(actual: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    if actual.keys() != truth.keys():
        different = sorted(actual.keys() ^ truth.keys())
        raise ValueError(f"only one of the function and its float64 run gives {different[0]}")
    for name, value in actual.items():
        if value.shape != truth[name].shape:
            raise ValueError(
                f"{name} has shape {list(value.shape)}, and in float64 {list(truth[name].shape)}"
            )
