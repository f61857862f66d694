"""References of Ascend's own operators (`torch.ops.npu.*`), by the names that torch gives them.

`REFERENCES` maps a name, with its overload unless that is the default, to a function of plain torch
with the parameters, in name, order and default, of the operator's schema in torch_npu 2.13, and its
results. Inputs of float64 are computed in float64; float16 and bfloat16 in float32, rounded once;
autocast changes nothing.

What no document of the vendor states is refused with an error that names the argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel_kernels.vendor.npu import (
    activation,
    arrangement,
    attention,
    float8_quantization,
    formats,
    inference,
    matmul,
    normalization,
    optimizer,
    quantization,
    quantized_matmul,
    ring,
    rotary,
    softmax,
)
from accel_kernels.vendor.npu.values import outside_autocast

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "npu_fusion_attention": attention.npu_fusion_attention,
    "npu_fusion_attention_grad": attention.npu_fusion_attention_grad,
    "npu_fusion_attention_v2": attention.npu_fusion_attention_v2,
    "npu_fusion_attention_grad_v2": attention.npu_fusion_attention_grad_v2,
    "npu_fusion_attention_v3": attention.npu_fusion_attention_v3,
    "npu_fusion_attention_grad_v3": attention.npu_fusion_attention_grad_v3,
    "npu_ring_attention_update": ring.npu_ring_attention_update,
    "npu_attention_update": ring.npu_attention_update,
    "npu_fused_infer_attention_score": inference.npu_fused_infer_attention_score,
    "npu_fused_infer_attention_score_v2": inference.npu_fused_infer_attention_score_v2,
    "npu_rms_norm": normalization.npu_rms_norm,
    "npu_rms_norm_backward": normalization.npu_rms_norm_backward,
    "npu_add_rms_norm": normalization.npu_add_rms_norm,
    "npu_deep_norm": normalization.npu_deep_norm,
    "npu_deep_norm_backward": normalization.npu_deep_norm_backward,
    "npu_layer_norm_eval": normalization.npu_layer_norm_eval,
    "npu_group_norm_silu": normalization.npu_group_norm_silu,
    "npu_swiglu": activation.npu_swiglu,
    "npu_swiglu_backward": activation.npu_swiglu_backward,
    "npu_gelu": activation.npu_gelu,
    "npu_gelu_backward": activation.npu_gelu_backward,
    "fast_gelu": activation.npu_fast_gelu,
    "npu_fast_gelu": activation.npu_fast_gelu,
    "npu_fast_gelu_backward": activation.npu_fast_gelu_backward,
    "npu_silu": activation.npu_silu,
    "npu_silu_": activation.npu_silu_,
    "npu_silu_backward": activation.npu_silu_backward,
    "npu_mish": activation.npu_mish,
    "npu_mish_backward": activation.npu_mish_backward,
    "npu_geglu": activation.npu_geglu,
    "npu_geglu_grad": activation.npu_geglu_grad,
    "npu_rotary_mul": rotary.npu_rotary_mul,
    "npu_rotary_mul_backward": rotary.npu_rotary_mul_backward,
    "npu_dtype_cast": formats.npu_dtype_cast,
    "npu_dtype_cast_backward": formats.npu_dtype_cast_backward,
    "_npu_dtype_cast": formats.private_npu_dtype_cast,
    "_npu_dtype_cast_backward": formats.private_npu_dtype_cast_backward,
    "npu_format_cast": formats.npu_format_cast,
    "npu_format_cast.Tensor": formats.npu_format_cast_tensor,
    "npu_format_cast_": formats.npu_format_cast_in_place,
    "npu_format_cast_.acl_format": formats.npu_format_cast_in_place_to,
    "_npu_format_cast": formats.private_npu_format_cast,
    "_npu_format_cast.aclnn": formats.private_npu_format_cast_aclnn,
    "_npu_format_cast.input_dtype": formats.private_npu_format_cast_input_dtype,
    "npu_dynamic_quant": quantization.npu_dynamic_quant,
    "npu_dynamic_block_quant": float8_quantization.npu_dynamic_block_quant,
    "npu_dynamic_mx_quant": float8_quantization.npu_dynamic_mx_quant,
    "npu_dynamic_mx_quant_with_dual_axis": (
        float8_quantization.npu_dynamic_mx_quant_with_dual_axis
    ),
    "npu_quantize": quantization.npu_quantize,
    "npu_anti_quant": quantization.npu_anti_quant,
    "npu_convert_weight_to_int4pack": quantization.npu_convert_weight_to_int4pack,
    "npu_trans_quant_param": quantization.npu_trans_quant_param,
    "npu_quant_matmul": quantized_matmul.npu_quant_matmul,
    "npu_weight_quant_batchmatmul": quantized_matmul.npu_weight_quant_batchmatmul,
    "npu_linear": matmul.npu_linear,
    "npu_linear_backward": matmul.npu_linear_backward,
    "npu_bmmV2": matmul.npu_bmmV2,
    "npu_bmm_v2_mat1_backward": matmul.npu_bmm_v2_mat1_backward,
    "npu_bmm_v2_mat2_backward": matmul.npu_bmm_v2_mat2_backward,
    "npu_scaled_masked_softmax": softmax.npu_scaled_masked_softmax,
    "npu_scaled_masked_softmax_backward": softmax.npu_scaled_masked_softmax_backward,
    "npu_cross_entropy_loss": softmax.npu_cross_entropy_loss,
    "npu_cross_entropy_loss_backward": softmax.npu_cross_entropy_loss_backward,
    "npu_one_hot": arrangement.npu_one_hot,
    "npu_confusion_transpose": arrangement.npu_confusion_transpose,
    "npu_confusion_transpose_backward": arrangement.npu_confusion_transpose_backward,
    "npu_apply_adam_w": optimizer.npu_apply_adam_w,
    "npu_apply_adam_w.out": optimizer.npu_apply_adam_w_out,
}

REFERENCES: dict[str, Callable[..., Any]] = {
    name: outside_autocast(function) for name, function in _FUNCTIONS.items()
}
"""Every operator that has a reference."""
