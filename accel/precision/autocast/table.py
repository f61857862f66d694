"""The one operator table: in which dtype each operator computes under `portable_autocast`.

Its base is torch's list for CUDA (ATen/autocast_mode.h, torch 2.13). To it come the operators of
torch's list for the CPU, each with the treatment it has on CUDA, or float32 where not every device
computes it in 16 bits. Operators that are not here compute in the dtype of their operands.
"""

from __future__ import annotations

import enum


class Treatment(enum.Enum):
    """What happens to the floating-point operands of an operator; float64 is never changed.

    Attributes:
        LOWER: They become the dtype of the region.
        FLOAT32: They become float32.
        FLOAT32_RESULT: The operator is asked for a float32 result, unless the caller asked for a
            dtype.
        WIDEST: They become the widest of their dtypes and the region's.
        OPERANDS: Nothing: it computes in the dtype they have.
        REFUSED: The operator raises.
    """

    LOWER = "the region's dtype"
    FLOAT32 = "float32"
    FLOAT32_RESULT = "float32, unless a dtype is asked for"
    WIDEST = "the widest of its operands"
    OPERANDS = "as its operands"
    REFUSED = "refused"


_LOWER = """
_convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv
linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
_thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
_scaled_dot_product_flash_attention scaled_dot_product_attention
"""
_FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm
frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp
upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d
upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
_upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa
norm.Scalar norm.ScalarOpt_dim
"""
_FLOAT32_RESULT = """
prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
linalg_matrix_norm.str_ord sum sum.dim_IntList
"""
_WIDEST = """
addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
"""
_REFUSED = "binary_cross_entropy"

# From here on, what CUDA's list does not name and the CPU's does.
_LOWER_ELSEWHERE = """
conv1d.padding conv2d.padding conv3d.padding _addmm_activation mkldnn_rnn_layer
_native_multi_head_attention
"""
_RECURRENT = """
lstm.input lstm.data gru.input gru.data rnn_tanh.input rnn_tanh.data rnn_relu.input rnn_relu.data
"""
_FLOAT32_ELSEWHERE = """
avg_pool3d _grid_sampler_2d_cpu_fallback cross_entropy_loss multilabel_margin_loss_forward
ctc_loss.IntList ctc_loss.Tensor quantile quantile.scalar nanquantile nanquantile.scalar polar
view_as_complex stft stft.center
fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2
fft_rfftn fft_irfftn fft_hfft fft_ihfft
linalg_cond linalg_cond.p_str linalg_matrix_rank linalg_matrix_rank.tol_tensor
linalg_matrix_rank.atol_rtol_tensor linalg_matrix_rank.atol_rtol_float linalg_solve linalg_cholesky
linalg_cholesky_ex linalg_svdvals linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex
linalg_householder_product linalg_tensorinv linalg_tensorsolve linalg_qr linalg_svd linalg_eig
linalg_eigh linalg_lstsq linalg_matrix_exp cholesky cholesky_inverse cholesky_solve inverse
lu_solve orgqr ormqr pinverse qr svd geqrf triangular_solve _lu_with_info
"""
_WIDEST_ELSEWHERE = "index_copy"
_OPERANDS = """
cat stack max_pool3d adaptive_avg_pool3d adaptive_max_pool3d fractional_max_pool2d
fractional_max_pool3d max_unpool2d max_unpool3d reflection_pad1d reflection_pad2d replication_pad1d
replication_pad2d replication_pad3d trace grid_sampler_2d grid_sampler_3d
fake_quantize_per_tensor_affine
"""

_LISTS = (
    (Treatment.LOWER, _LOWER + _LOWER_ELSEWHERE + _RECURRENT),
    (Treatment.FLOAT32, _FLOAT32 + _FLOAT32_ELSEWHERE),
    (Treatment.FLOAT32_RESULT, _FLOAT32_RESULT),
    (Treatment.WIDEST, _WIDEST + _WIDEST_ELSEWHERE),
    (Treatment.OPERANDS, _OPERANDS),
    (Treatment.REFUSED, _REFUSED),
)

# By name of ATen's overload, `softmax.int`; `.default` is left out.
TABLE: dict[str, Treatment] = {
    name: treatment for treatment, names in _LISTS for name in names.split()
}

# Where a device's own kernel for autocast does something else than the table says. A kernel that is
# not named here, and is there, does what the table says: torch and the chips' plugins build their
# lists from the same macros. Every one of them is measured by the tests. Those of `WIDEST` and
# `OPERANDS` are replaced everywhere: torch's raise where float16 and bfloat16 meet, or cast.
DISAGREES: dict[str, frozenset[str]] = {
    "cpu": frozenset({"prod", "prod.dim_int", "binary_cross_entropy"}),
}
# What consists of operators of the table, which give it its treatment where it has no kernel.
# Not so cross_entropy_loss: it asks its log_softmax for the dtype of the logits, autocast or not.
COMPOSITES = frozenset({"conv1d.padding", "conv2d.padding", "conv3d.padding"})
# What a device treats as the table says without a kernel under the operator's own name.
BY_OTHER_MEANS: dict[str, frozenset[str]] = {
    # A kernel further inside casts the weights as one piece, as cuDNN wants them.
    "cuda": frozenset(_RECURRENT.split()),
}
# Kernels for autocast of operators that only that device has.
OF_ONE_DEVICE: dict[str, frozenset[str]] = {
    "cuda": frozenset({"cudnn_convolution", "cudnn_convolution_transpose"}),
    "npu": frozenset({"cudnn_convolution", "cudnn_convolution_transpose"}),
    "mps": frozenset({"_mps_convolution", "batch_norm"}),
}
