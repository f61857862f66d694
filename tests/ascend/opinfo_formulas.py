"""Kernels that torch has on accelerators only, and what they compute, in functions of a CPU.

Sizes: batch B, channels C, hidden H. Each entry gives operands and the function of the same
operands that the CPU calls instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ascend.opinfo_written import positive, values

EPS = 1e-5
_HALF = torch.bfloat16


class Formula(NamedTuple):
    """What a kernel is held to.

    Attributes:
        operands: Positional ones, and keyword ones in a dict at the end.
        compute: The reference.
        call: What the chip calls; by default the operator itself, without gradients.
    """

    operands: Callable[[], tuple[Any, ...]]
    compute: Callable[..., Any]
    call: Callable[..., Any] | None = None


def _half(*shape: int) -> Tensor:
    return values(*shape).to(_HALF)


def _into(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def with_output(*args: Any, out: Tensor) -> Tensor:
        value = compute(*args)
        return out.resize_(value.shape).copy_(value)

    return with_output


def _product(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.matmul(first.float(), second.float()).to(dtype)


def _sum(bias: Tensor, first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    return (bias.float() + torch.matmul(first.float(), second.float())).to(dtype)


def _depthwise(x: Tensor, weight: Tensor, kernel: Any, bias: Any, *geometry: Any) -> Tensor:
    del kernel
    return F.conv2d(x, weight, bias, *geometry, groups=x.shape[1])


def _gradients(compute: Callable[..., Any], leaves: list[Tensor], grads: list[Tensor]) -> Any:
    with torch.inference_mode(False), torch.enable_grad():
        fresh = [leaf.clone().requires_grad_() for leaf in leaves]
        outputs = compute(*fresh)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        return torch.autograd.grad(outputs, fresh, [grad.clone() for grad in grads])


def _matmul_backward(grad: Tensor, first: Tensor, second: Tensor, mask: list[bool]) -> Any:
    del mask
    return _gradients(torch.matmul, [first, second], [grad])


def _per_channel(statistic: Tensor) -> Tensor:
    return statistic.view(1, -1, 1, 1)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), 1 / (x.var((0, 2, 3), correction=0) + eps).sqrt()


def _elemt(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv: Tensor, eps: float
) -> Tensor:
    return F.batch_norm(x, mean, 1 / inv**2 - eps, weight, bias, training=False, eps=eps)


def _batch() -> Tensor:
    return values(4, 3, 2, 5)


def _parts() -> tuple[Tensor, Tensor]:
    """Statistics of two ranks with 2 and 2 of the 4 samples: `[world, C]`."""
    found = [_statistics(part, EPS) for part in _batch().split(2)]
    return torch.stack([mean for mean, _ in found]), torch.stack([inv for _, inv in found])


def _gather(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _statistics(x, EPS)


def _backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)

    found = _gradients(normalised, [x, weight, torch.zeros_like(weight)], [grad])
    return found[0], found[1], found[2]


def _reduce(grad: Tensor, x: Tensor, mean: Tensor, inv: Tensor, weight: Tensor, *_: bool) -> Any:
    _, weight_grad, bias_grad = _backward(grad, x, weight)
    centred = (grad * (x - _per_channel(mean))).sum((0, 2, 3))
    del inv
    return bias_grad, centred, weight_grad, bias_grad


def _backward_elemt(
    grad: Tensor, x: Tensor, mean: Any, inv: Any, weight: Tensor, *_: Any
) -> Tensor:
    del mean, inv
    return _backward(grad, x, weight)[0]


def _norm_operands() -> tuple[Tensor, ...]:
    x = _batch()
    return torch.flip(x, [0]) * 2, x, *_statistics(x, EPS), positive(3)


def _elemt_operands() -> tuple[Any, ...]:
    grad, x, mean, inv, weight = _norm_operands()
    sums = grad.sum((0, 2, 3)), (grad * (x - _per_channel(mean))).sum((0, 2, 3))
    return grad, x, mean, inv, weight, *sums, torch.tensor([20, 20], dtype=torch.int32)


def _leaf(*shape: int) -> Tensor:
    return values(*shape).requires_grad_()


def _lstm(entry: Tensor, hidden: Tensor, cx: Tensor) -> tuple[Tensor, Tensor]:
    """One step of torch's own cell whose gates are given, by weights that pick them."""
    size = cx.shape[1]
    gates = entry + hidden
    pick, none = torch.eye(4 * size), torch.zeros(4 * size, size)
    hy, cy = torch.lstm_cell(gates, (torch.zeros_like(cx), cx), pick, none)
    return hy, cy


def _fused_lstm(entry: Tensor, hidden: Tensor, cx: Tensor) -> tuple[Tensor, Tensor]:
    hy, cy, _ = torch.ops.aten._thnn_fused_lstm_cell(entry, hidden, cx)
    return hy, cy


def _gru(entry: Tensor, hidden: Tensor, hx: Tensor) -> Tensor:
    reset, update = (entry + hidden)[:, : 2 * hx.shape[1]].sigmoid().chunk(2, 1)
    new = (entry.chunk(3, 1)[2] + reset * hidden.chunk(3, 1)[2]).tanh()
    return (1 - update) * new + update * hx


def _fused_gru(entry: Tensor, hidden: Tensor, hx: Tensor) -> Tensor:
    return torch.ops.aten._thnn_fused_gru_cell(entry, hidden, hx)[0]


_LSTM = Formula(lambda: (_leaf(2, 16), _leaf(2, 16), _leaf(2, 4)), _lstm, _fused_lstm)
_GRU = Formula(lambda: (_leaf(2, 12), _leaf(2, 12), _leaf(2, 4)), _gru, _fused_gru)
_CONVOLUTION = Formula(
    lambda: (
        _leaf(2, 3, 6, 6), _leaf(4, 3, 3, 3), _leaf(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
    ),
    torch.convolution,
    torch.ops.aten.convolution_overrideable,
)  # fmt: skip
_DEPTHWISE = (
    lambda: values(2, 3, 6, 6), lambda: values(3, 1, 3, 3), lambda: values(3),
)  # fmt: skip


def _depthwise_operands(**out: Tensor) -> tuple[Any, ...]:
    x, weight, bias = (make() for make in _DEPTHWISE)
    return (x, weight, [3, 3], bias, [1, 1], [1, 1], [1, 1], *([out] if out else []))


def _out() -> dict[str, Tensor]:
    return {"out": torch.empty(0)}


def _products(name: str, *shapes: tuple[int, ...]) -> dict[str, Formula]:
    compute = _product if len(shapes) == 2 else _sum

    def operands() -> tuple[Any, ...]:
        return (*(_half(*shape) for shape in shapes), torch.float32)

    return {
        f"{name}.dtype": Formula(operands, compute),
        f"{name}.dtype_out": Formula(lambda: (*operands(), _out()), _into(compute)),
    }


FORMULAS: dict[str, Formula] = {
    **_products("mm", (3, 4), (4, 5)),
    **_products("bmm", (2, 3, 4), (2, 4, 5)),
    **_products("addmm", (3, 5), (3, 4), (4, 5)),
    **_products("baddbmm", (2, 3, 5), (2, 3, 4), (2, 4, 5)),
    "_masked_scale": Formula(
        lambda: (values(3, 4), (values(3, 4) > 0).to(torch.uint8), 2.5),
        lambda x, mask, scale: x * mask * scale,
    ),
    "_conv_depthwise2d": Formula(_depthwise_operands, _depthwise),
    "_conv_depthwise2d.out": Formula(lambda: _depthwise_operands(**_out()), _into(_depthwise)),
    "matmul_backward": Formula(
        lambda: (values(2, 3, 5), values(2, 3, 4), values(4, 5), [True, True]),
        _matmul_backward,
    ),
    "batch_norm_stats": Formula(lambda: (_batch(), EPS), _statistics),
    "batch_norm_elemt": Formula(
        lambda: (_batch(), positive(3), values(3), *_statistics(_batch(), EPS), EPS), _elemt
    ),
    "batch_norm_elemt.out": Formula(
        lambda: (_batch(), positive(3), values(3), *_statistics(_batch(), EPS), EPS, _out()),
        _into(_elemt),
    ),
    "batch_norm_gather_stats_with_counts": Formula(
        lambda: (_batch(), *_parts(), None, None, 0.1, EPS, torch.tensor([20.0, 20.0])), _gather
    ),
    "batch_norm_backward_reduce": Formula(lambda: (*_norm_operands(), True, True, True), _reduce),
    "batch_norm_backward_elemt": Formula(_elemt_operands, _backward_elemt),
    # With the backward of each, from the gradients.
    "_thnn_fused_lstm_cell": _LSTM,
    "_thnn_fused_lstm_cell_backward_impl": _LSTM,
    "_thnn_fused_gru_cell": _GRU,
    "_thnn_fused_gru_cell_backward": _GRU,
    "convolution_overrideable": _CONVOLUTION,
    "convolution_backward_overrideable": _CONVOLUTION,
}
