"""The operators of a chip's quality card, over sizes: forward, backward and long sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.devices import Device
from accel.numerics.replaying.calls import flattened, mapped
from accel.numerics.replaying.judging import judge_call
from accel.testing.checks import Check, of_judged, raised

LENGTHS = (63, 1023, 8192)


@dataclass(frozen=True)
class OperatorCase:
    """One operator and what it is given.

    Attributes:
        name: The operator and its size: `mm 1023`.
        op: The operator.
        args: Its arguments, on the CPU.
    """

    name: str
    op: torch._ops.OpOverload
    args: tuple[Any, ...]


def operator_cases(dtype: torch.dtype) -> Iterator[OperatorCase]:
    """Every case in one dtype, with inputs that depend on nothing but it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    for length in LENGTHS:
        yield from _of_length(length, draw)
    for rows in LENGTHS:
        yield from _of_rows(rows, draw)
    yield from _elementwise(draw)


def _of_length(k: int, draw: Any) -> Iterator[OperatorCase]:
    """Products of `k` addends, rows of `k` elements."""
    aten = torch.ops.aten
    a, b, rows = draw(65, k), draw(k, 33), draw(33, k)
    gradient, weight, bias = draw(33, k), draw(k), draw(k)
    yield OperatorCase(f"mm {k}", aten.mm.default, (a, b))
    yield OperatorCase(f"addmm {k}", aten.addmm.default, (draw(33), a, b))
    yield OperatorCase(f"bmm {k}", aten.bmm.default, (a[None], b[None]))
    yield OperatorCase(f"softmax {k}", aten._softmax.default, (4 * rows, -1, False))
    yield OperatorCase(f"log_softmax {k}", aten._log_softmax.default, (4 * rows, -1, False))
    weights = torch.softmax(rows.double(), -1).to(rows.dtype)
    yield OperatorCase(
        f"softmax backward {k}",
        aten._softmax_backward_data.default,
        (gradient, weights, -1, rows.dtype),
    )
    norm = (rows, [k], weight, bias, 1e-5)
    yield OperatorCase(f"layer_norm {k}", aten.native_layer_norm.default, norm)
    yield OperatorCase(f"rms_norm {k}", aten._fused_rms_norm.default, (rows, [k], weight, 1e-6))
    yield OperatorCase(f"sum of a row {k}", aten.sum.dim_IntList, (rows, [-1]))


def _of_rows(rows: int, draw: Any) -> Iterator[OperatorCase]:
    """Sums over `rows` rows, as gradients of weights and biases are."""
    aten = torch.ops.aten
    x, gradient, weight = draw(rows, 64), draw(rows, 64), draw(64)
    mean, rstd = _statistics(x)
    yield OperatorCase(f"sum over rows {rows}", aten.sum.dim_IntList, (gradient, [0]))
    yield OperatorCase(f"norm {rows}", aten.linalg_vector_norm.default, (gradient,))
    yield OperatorCase(
        f"layer_norm backward {rows}",
        aten.native_layer_norm_backward.default,
        (gradient, x, [64], mean, rstd, weight, weight, [True, True, True]),
    )
    tokens = torch.randint(50, (rows,), generator=torch.Generator().manual_seed(rows))
    yield OperatorCase(
        f"embedding backward {rows}",
        aten.embedding_dense_backward.default,
        (gradient, tokens, 50, -1, False),
    )


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    exact = x.double()
    variance = exact.var(-1, keepdim=True, unbiased=False)
    return (
        exact.mean(-1, keepdim=True).to(x.dtype),
        (variance + 1e-5).rsqrt().to(x.dtype),
    )


def _elementwise(draw: Any) -> Iterator[OperatorCase]:
    aten = torch.ops.aten
    x, y = draw(65, 257), draw(65, 257)
    for name in ("gelu", "silu", "tanh", "sigmoid", "exp", "erf", "relu"):
        yield OperatorCase(name, getattr(aten, name).default, (3 * x,))
    for name in ("gelu_backward", "silu_backward"):
        yield OperatorCase(name.replace("_", " "), getattr(aten, name).default, (y, 3 * x))
    for name in ("add", "mul", "div"):
        yield OperatorCase(name, getattr(aten, name).Tensor, (x, y))
    image, kernel = draw(5, 9, 17, 17), draw(13, 9, 3, 3)
    window = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    yield OperatorCase("conv2d", aten.convolution.default, (image, kernel, draw(13), *window))
    yield OperatorCase(
        "conv2d backward",
        aten.convolution_backward.default,
        (draw(5, 13, 17, 17), image, kernel, [13], *window, [True, True, True]),
    )


def check_operator(case: OperatorCase, device: Device, dtype: torch.dtype) -> Check:
    """Run one case on a device and judge it."""
    engine = f"{device}/aten"

    def moved(value: Any) -> Any:
        return value.to(device.torch_device) if isinstance(value, Tensor) else value

    try:
        there = tuple(mapped(value, moved) for value in case.args)
        outputs = [
            output if isinstance(output, Tensor) else None for output in flattened(case.op(*there))
        ]
    # A vendor's kernel may fail in any way; the other checks go on.
    except Exception as error:
        return raised(case.name, engine, dtype, error)
    return of_judged(case.name, engine, dtype, judge_call(case.op, case.args, {}, outputs))
