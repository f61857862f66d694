"""One small call of every operator of the table, to measure in which dtype it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operands:
    """Makes the operands of one call.

    Args:
        device: Where they are.
        dtype: Of the floating-point ones.
        requires_grad: Of the floating-point ones.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, *, requires_grad: bool = False
    ) -> None:
        self._device, self._dtype, self._requires_grad = device, dtype, requires_grad
        self.made: list[Tensor] = []

    def __call__(self, *shape: int) -> Tensor:
        """Different numbers between 0.2 and 0.8, of `shape`."""
        return self._keep(self._numbers(shape))

    def constant(self, *shape: int) -> Tensor:
        """The same, without a gradient."""
        return self._numbers(shape).to(self._device, self._dtype)

    def matrix(self, size: int) -> Tensor:
        """Symmetric, positive definite, `[size, size]`, with different eigenvalues."""
        ones = torch.ones(size, size)
        return self._keep(torch.diag(torch.arange(1.0, size + 1.0)) + 0.25 * ones)

    def indices(self, *values: Any) -> Tensor:
        """Integers, nested as `values`."""
        return torch.tensor(values, device=self._device)

    def _numbers(self, shape: tuple[int, ...]) -> Tensor:
        count = torch.Size(shape).numel()
        steps = (torch.arange(count) * 0.381966 + 0.1 * len(self.made)) % 1.0
        return (0.2 + 0.6 * steps).reshape(shape)

    def _keep(self, values: Tensor) -> Tensor:
        made = values.to(self._device, self._dtype).requires_grad_(self._requires_grad)
        self.made.append(made)
        return made


Make = Callable[[Operands], tuple[Any, ...]]


def _matrix(t: Operands) -> tuple[Any, ...]:
    return (t(2, 3),)


def _square(t: Operands) -> tuple[Any, ...]:
    return (t.matrix(3),)


def _two(t: Operands) -> tuple[Any, ...]:
    return (t(2, 3), t(2, 3))


def _series(t: Operands) -> tuple[Any, ...]:
    return (t(4, 4),)


def _signs(t: Operands) -> tuple[Any, ...]:
    return (t(2, 3), t.indices([1, -1, 1], [-1, 1, 1]))


def _convolution(dimensions: int, *more: Any) -> Make:
    size = (4,) * dimensions
    kernel = (2,) * dimensions
    return lambda t: (t(1, 2, *size), t(2, 2, *kernel), t(2), *more)


def _full_convolution(*more: Any) -> Make:
    ones, zeros = [1, 1], [0, 0]
    return _convolution(2, ones, zeros, ones, False, zeros, 1, *more)


def _volume(*more: Any) -> Make:
    return lambda t: (t(1, 1, 4, 4, 4), *more)


def _plane(*more: Any) -> Make:
    return lambda t: (t(1, 1, 4, 4), *more)


def _line(*more: Any) -> Make:
    return lambda t: (t(1, 1, 4), *more)


def _cell(gates: int) -> Make:
    return lambda t: (
        t(2, 3),
        t(2, 4),
        t(gates * 4, 3),
        t(gates * 4, 4),
        t(gates * 4),
        t(gates * 4),
    )


def _recurrent(gates: int, states: int, *, packed: bool = False) -> Make:
    def make(t: Operands) -> tuple[Any, ...]:
        state = [t(1, 2, 4) for _ in range(states)]
        weights = [t(gates * 4, 3), t(gates * 4, 4), t(gates * 4), t(gates * 4)]
        hidden = state if states > 1 else state[0]
        if packed:
            sizes = torch.tensor([2, 2, 1])  # on the CPU, whatever the device
            return (t(5, 3), sizes, hidden, weights, True, 1, 0.0, True, False)
        return (t(5, 2, 3), hidden, weights, True, 1, 0.0, True, False, False)

    return make


def _attention(t: Operands) -> tuple[Any, ...]:
    return (t(1, 1, 3, 8), t(1, 1, 3, 8), t(1, 1, 3, 8))


def _sampled(dimensions: int) -> Make:
    size = (4,) * dimensions
    return lambda t: (t(1, 1, *size), t(1, *size, dimensions), 0, 0, False)


def _lu(t: Operands) -> tuple[Any, ...]:
    return (t(3, 1), t.matrix(3), t.indices(1, 2, 3).int())


EXAMPLES: dict[str, Make] = {
    "_convolution": _full_convolution(False, False, True, True),
    "_convolution.deprecated": _full_convolution(False, False, True),
    "convolution": _full_convolution(),
    "conv1d": _convolution(1),
    "conv2d": _convolution(2),
    "conv3d": _convolution(3),
    "conv1d.padding": _convolution(1, [1], "same"),
    "conv2d.padding": _convolution(2, [1, 1], "same"),
    "conv3d.padding": _convolution(3, [1, 1, 1], "same"),
    "conv_tbc": lambda t: (t(4, 1, 2), t(2, 2, 3), t(3)),
    "conv_transpose1d": _convolution(1),
    "conv_transpose2d.input": _convolution(2),
    "conv_transpose3d.input": _convolution(3),
    "prelu": lambda t: (t(2, 3), t(3)),
    "addmm": lambda t: (t(2, 4), t(2, 3), t(3, 4)),
    "_addmm_activation": lambda t: (t(4), t(2, 3), t(3, 4)),
    "addmv": lambda t: (t(2), t(2, 3), t(3)),
    "addr": lambda t: (t(2, 3), t(2), t(3)),
    "matmul": lambda t: (t(2, 3), t(3, 4)),
    "einsum": lambda t: ("ij,jk->ik", [t(2, 3), t(3, 4)]),
    "mm": lambda t: (t(2, 3), t(3, 4)),
    "mv": lambda t: (t(2, 3), t(3)),
    "linalg_vecdot": _two,
    "linear": lambda t: (t(2, 3), t(4, 3), t(4)),
    "addbmm": lambda t: (t(3, 5), t(2, 3, 4), t(2, 4, 5)),
    "baddbmm": lambda t: (t(2, 3, 5), t(2, 3, 4), t(2, 4, 5)),
    "bmm": lambda t: (t(2, 3, 4), t(2, 4, 5)),
    "chain_matmul": lambda t: ([t(2, 3), t(3, 4), t(4, 5)],),
    "linalg_multi_dot": lambda t: ([t(2, 3), t(3, 4), t(4, 5)],),
    "_thnn_fused_lstm_cell": lambda t: (t(2, 16), t(2, 16), t(2, 4)),
    "_thnn_fused_gru_cell": lambda t: (t(2, 12), t(2, 12), t(2, 4)),
    "lstm_cell": lambda t: (t(2, 3), [t(2, 4), t(2, 4)], t(16, 3), t(16, 4), t(16), t(16)),
    "gru_cell": _cell(3),
    "rnn_tanh_cell": _cell(1),
    "rnn_relu_cell": _cell(1),
    "lstm.input": _recurrent(4, 2),
    "lstm.data": _recurrent(4, 2, packed=True),
    "gru.input": _recurrent(3, 1),
    "gru.data": _recurrent(3, 1, packed=True),
    "rnn_tanh.input": _recurrent(1, 1),
    "rnn_tanh.data": _recurrent(1, 1, packed=True),
    "rnn_relu.input": _recurrent(1, 1),
    "rnn_relu.data": _recurrent(1, 1, packed=True),
    "_scaled_dot_product_flash_attention": _attention,
    "scaled_dot_product_attention": _attention,
    "pow.Tensor_Scalar": lambda t: (t(2, 3), 1.5),
    "pow.Tensor_Tensor": _two,
    "pow.Scalar": lambda t: (1.5, t(2, 3)),
    "layer_norm": lambda t: (t(2, 3), [3], t(3), t(3)),
    "native_layer_norm": lambda t: (t(2, 3), [3], t(3), t(3), 1e-5),
    "rms_norm": lambda t: (t(2, 3), [3], t(3)),
    "group_norm": lambda t: (t(2, 4, 3), 2, t(4), t(4)),
    "frobenius_norm.dim": lambda t: (t(2, 3), [0, 1]),
    "nuclear_norm": _square,
    "nuclear_norm.dim": lambda t: (t.matrix(3), [0, 1]),
    "norm.Scalar": _matrix,
    "norm.ScalarOpt_dim": lambda t: (t(2, 3), 2, [1]),
    "cosine_similarity": _two,
    "poisson_nll_loss": lambda t: (t(2, 3), t(2, 3), True, False, 1e-8, 1),
    "cosine_embedding_loss": lambda t: (t(2, 3), t(2, 3), t.indices(1, -1)),
    "nll_loss": lambda t: (t(2, 3), t.indices(0, 2)),
    "nll_loss2d": lambda t: (t(1, 3, 1, 2), t.indices([[0, 2]])),
    "hinge_embedding_loss": _signs,
    "kl_div": _two,
    "l1_loss": _two,
    "smooth_l1_loss": _two,
    "huber_loss": _two,
    "mse_loss": _two,
    "margin_ranking_loss": lambda t: (t(3), t(3), t.indices(1, -1, 1)),
    "multilabel_margin_loss": lambda t: (t(2, 3), t.indices([0, -1, 0], [2, -1, 0])),
    "multilabel_margin_loss_forward": lambda t: (t(2, 3), t.indices([0, -1, 0], [2, -1, 0]), 1),
    "soft_margin_loss": _signs,
    "triplet_margin_loss": lambda t: (t(2, 3), t(2, 3), t(2, 3)),
    "multi_margin_loss": lambda t: (t(2, 3), t.indices(0, 2)),
    "binary_cross_entropy": _two,
    "binary_cross_entropy_with_logits": _two,
    "cross_entropy_loss": lambda t: (t(2, 3), t.indices(0, 2)),
    "ctc_loss.IntList": lambda t: (t(4, 1, 3), t.indices([1, 2]), [4], [2]),
    "ctc_loss.Tensor": lambda t: (t(4, 1, 3), t.indices([1, 2]), t.indices(4), t.indices(2)),
    "dist": _two,
    "pdist": _series,
    "cdist": lambda t: (t(2, 3), t(4, 3)),
    "renorm": lambda t: (t(2, 3), 2, 0, 0.5),
    "logsumexp": lambda t: (t(2, 3), [1]),
    "upsample_nearest1d": _line([8]),
    "_upsample_nearest_exact1d": _line([8]),
    "upsample_linear1d": _line([8], False),
    "upsample_nearest2d": _plane([8, 8]),
    "_upsample_nearest_exact2d": _plane([8, 8]),
    "upsample_bilinear2d": _plane([8, 8], False),
    "_upsample_bilinear2d_aa": _plane([8, 8], False),
    "upsample_bicubic2d": _plane([8, 8], False),
    "_upsample_bicubic2d_aa": _plane([8, 8], False),
    "upsample_nearest3d": _volume([8, 8, 8]),
    "_upsample_nearest_exact3d": _volume([8, 8, 8]),
    "upsample_trilinear3d": _volume([8, 8, 8], False),
    "prod.dim_int": lambda t: (t(2, 3), 1),
    "softmax.int": lambda t: (t(2, 3), 1),
    "log_softmax.int": lambda t: (t(2, 3), 1),
    "cumprod": lambda t: (t(2, 3), 1),
    "cumsum": lambda t: (t(2, 3), 1),
    "linalg_matrix_norm": lambda t: (t(2, 3), 1),
    "sum.dim_IntList": lambda t: (t(2, 3), [1]),
    "addcdiv": lambda t: (t(2, 3), t(2, 3), t(2, 3)),
    "addcmul": lambda t: (t(2, 3), t(2, 3), t(2, 3)),
    "atan2": _two,
    "bilinear": lambda t: (t(2, 3), t(2, 4), t(5, 3, 4), t(5)),
    "cross": _two,
    "dot": lambda t: (t(3), t(3)),
    "vdot": lambda t: (t(3), t(3)),
    "grid_sampler": _sampled(2),
    "grid_sampler_2d": _sampled(2),
    "grid_sampler_3d": _sampled(3),
    "index_put": lambda t: (t(3), [t.indices(0, 2)], t(2)),
    "tensordot": lambda t: (t(2, 3), t(3, 4), [1], [0]),
    "scatter_add": lambda t: (t(3), 0, t.indices(0, 2), t(2)),
    "cat": lambda t: ([t(2), t(3)],),
    "stack": lambda t: ([t(2), t(2)],),
    "index_copy": lambda t: (t(3), 0, t.indices(0, 2), t(2)),
    "quantile": lambda t: (t(2, 3), t(1)),
    "quantile.scalar": lambda t: (t(2, 3), 0.5),
    "nanquantile": lambda t: (t(2, 3), t(1)),
    "nanquantile.scalar": lambda t: (t(2, 3), 0.5),
    "polar": _two,
    "view_as_complex": lambda t: (t(3, 2),),
    "stft": lambda t: (t(8), 4, 2, 4, None, False, True, True),
    "stft.center": lambda t: (t(8), 4, 2, 4, None, True, "reflect", False, True, True),
    "linalg_cond.p_str": lambda t: (t.matrix(3), "fro"),
    "linalg_matrix_rank": lambda t: (t.matrix(3), 0.1),
    "linalg_matrix_rank.tol_tensor": lambda t: (t.matrix(3), t(1)),
    "linalg_solve": lambda t: (t.matrix(3), t(3)),
    "linalg_householder_product": lambda t: (t(3, 2), t(2)),
    "orgqr": lambda t: (t(3, 2), t(2)),
    "ormqr": lambda t: (t(3, 2), t(2), t(3, 3)),
    "linalg_tensorinv": lambda t: (t.matrix(3), 1),
    "linalg_tensorsolve": lambda t: (t.matrix(3), t(3)),
    "linalg_lstsq": lambda t: (t.matrix(3), t(3, 1)),
    "cholesky_solve": lambda t: (t(3, 1), t.matrix(3)),
    "lu_solve": _lu,
    "triangular_solve": lambda t: (t(3, 1), t.matrix(3)),
    "avg_pool3d": _volume([2, 2, 2]),
    "max_pool3d": _volume([2, 2, 2]),
    "adaptive_avg_pool3d": _volume([2, 2, 2]),
    "adaptive_max_pool3d": _volume([2, 2, 2]),
    "fractional_max_pool2d": lambda t: (t(1, 1, 4, 4), [2, 2], [2, 2], t.constant(1, 1, 2)),
    "fractional_max_pool3d": lambda t: (
        t(1, 1, 4, 4, 4), [2, 2, 2], [2, 2, 2], t.constant(1, 1, 3)
    ),
    "max_unpool2d": lambda t: (t(1, 1, 1, 2), t.indices([[[0, 3]]]), [2, 2]),
    "max_unpool3d": lambda t: (
        t(1, 1, 1, 1, 2), t.indices([[[[0, 3]]]]), [2, 2, 2], [2, 2, 2], [0, 0, 0]
    ),
    "reflection_pad1d": _line([1, 1]),
    "reflection_pad2d": _plane([1, 1, 1, 1]),
    "replication_pad1d": _line([1, 1]),
    "replication_pad2d": _plane([1, 1, 1, 1]),
    "replication_pad3d": _volume([1, 1, 1, 1, 1, 1]),
    "trace": _square,
    "fake_quantize_per_tensor_affine": lambda t: (t(2, 3), 0.1, 0, 0, 255),
}  # fmt: skip
_OF_A_MATRIX = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan softplus prod
linalg_vector_norm linalg_matrix_norm.str_ord sum
"""
_OF_A_SERIES = """
fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2
fft_rfftn fft_irfftn fft_hfft fft_ihfft
"""
_OF_A_SQUARE = """
linalg_cond linalg_matrix_rank.atol_rtol_tensor linalg_matrix_rank.atol_rtol_float linalg_cholesky
linalg_cholesky_ex linalg_svdvals linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex linalg_qr
linalg_svd linalg_eig linalg_eigh cholesky cholesky_inverse inverse pinverse qr svd geqrf
_lu_with_info linalg_matrix_exp
"""
EXAMPLES |= dict.fromkeys(_OF_A_MATRIX.split(), _matrix)
EXAMPLES |= dict.fromkeys(_OF_A_SERIES.split(), _series)
EXAMPLES |= dict.fromkeys(_OF_A_SQUARE.split(), _square)
# Inner operators of the CPU: no other device takes a call of them.
WITHOUT_EXAMPLE = frozenset(
    {"mkldnn_rnn_layer", "_native_multi_head_attention", "_grid_sampler_2d_cpu_fallback"}
)
