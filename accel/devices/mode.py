"""`NumericsMode`: every switch of torch that changes numbers, as one value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NumericsMode:
    """Every switch that changes numbers; None where the installed torch has no such switch.

    Attributes:
        float32_matmul_precision: `torch.set_float32_matmul_precision`: highest, high, medium.
            None while finer switches are mixed with it, when torch refuses to tell it.
        cudnn_allow_tf32: cuDNN's older TF32 switch; None under the same condition.
        mkldnn_allow_tf32: oneDNN may use TF32 on Intel GPUs.
        cuda_matmul_fp32: Inner precision of float32 products on CUDA: ieee, tf32, none (default).
        cudnn_conv_fp32: The same for cuDNN's convolutions.
        cudnn_rnn_fp32: The same for cuDNN's recurrent layers.
        mkldnn_matmul_fp32: The same for oneDNN's products on the CPU: ieee, tf32, bf16, none.
        mkldnn_conv_fp32: The same for oneDNN's convolutions.
        mkldnn_rnn_fp32: The same for oneDNN's recurrent layers.
        bf16_reduced_precision_reduction: cuBLAS may add partial sums in bfloat16.
        bf16_split_k: cuBLAS may split such a product along the summed dimension.
        fp16_reduced_precision_reduction: cuBLAS may add partial sums in float16.
        fp16_split_k: As `bf16_split_k`.
        fp16_accumulation: cuBLAS may accumulate in float16.
        cpu_fp16_reduced_precision_reduction: The CPU may add float16 products in float16 (Arm).
        blas_library: Preferred on a GPU: default, cublas, cublaslt or ck.
        linalg_library: Preferred on a GPU: default, cusolver or magma.
        rocm_attention_library: Of flash attention on AMD: default, aotriton or ck.
        deterministic_algorithms: off, warn or error.
        fill_uninitialized_memory: Deterministic mode fills `torch.empty` with NaN.
        cudnn_enabled: Use cuDNN.
        cudnn_benchmark: Time cuDNN's algorithms and take the fastest: not the same each run.
        cudnn_deterministic: Take only deterministic ones.
        cudnn_depthwise_kernel: For depthwise convolutions: auto, cudnn or native.
        miopen_immediate: MIOpen takes its algorithms without timing them.
        mkldnn_enabled: Use oneDNN on the CPU.
        mkldnn_deterministic: Take only its deterministic kernels.
        nnpack_enabled: Convolutions on the CPU may take NNPACK.
        quantized_engine: The library of quantized operators: x86, fbgemm, onednn, qnnpack, …
        opt_einsum: How `torch.einsum` orders its products: off, auto, greedy, optimal, …
        native_dsls_disabled: Kernel languages whose replacements of torch's kernels are off, by
            name, separated by commas.
        flash_sdp: `scaled_dot_product_attention` may take the flash kernel.
        mem_efficient_sdp: It may take the memory-efficient kernel.
        cudnn_sdp: It may take cuDNN's kernel.
        overrideable_sdp: It may take a kernel that a chip's plugin brings.
        math_sdp: It may take the plain formula.
        math_sdp_reduced_precision: The plain formula may add in half precision.
        sdp_priority: In which order it tries them, separated by commas.
        flash_implementation: Which flash kernels it takes: default, FA3, FA4, …
        mha_fastpath: `nn.MultiheadAttention` may take its fused inference path.
        num_threads: Threads on the CPU: another number adds in another order.
        default_dtype: Of `torch.get_default_dtype()`.
        flush_denormal: The CPU replaces denormal numbers by zero, in this thread.
        npu_matmul_hf32: Ascend computes float32 products in HF32.
        npu_conv_hf32: Ascend computes float32 convolutions in HF32 (on by default there).
        npu_cube_math_type: How Ascend's matrix unit computes float32, over the other switches:
            unset, keep_dtype, allow_fp32_down_precision, use_fp16, use_hf32, use_fp32_add.
        npu_precision_mode: `allow_fp32_to_fp16` (the default before the A2 generation) or
            `must_keep_origin_dtype`.
        npu_jit_compile: Ascend compiles operators at run time instead of taking prebuilt ones.
        npu_internal_format: Ascend may keep tensors in memory layouts of its own between operators.
        npu_compatible_impl: torch_npu takes the implementations that follow torch more closely,
            such as the exact GELU.
        npu_deterministic_level: Where `deterministic_algorithms` is on: 0 or 1, what torch asks
            for; 2, also equal results for equal data at different positions; 3, also for any batch
            size.
        environment: Variables that are set and change numbers, as (name, value); reported and
            compared, but not settable once libraries have read them. None asks for nothing.
    """

    float32_matmul_precision: str | None = None
    cudnn_allow_tf32: bool | None = None
    mkldnn_allow_tf32: bool | None = None
    cuda_matmul_fp32: str | None = None
    cudnn_conv_fp32: str | None = None
    cudnn_rnn_fp32: str | None = None
    mkldnn_matmul_fp32: str | None = None
    mkldnn_conv_fp32: str | None = None
    mkldnn_rnn_fp32: str | None = None
    bf16_reduced_precision_reduction: bool | None = None
    bf16_split_k: bool | None = None
    fp16_reduced_precision_reduction: bool | None = None
    fp16_split_k: bool | None = None
    fp16_accumulation: bool | None = None
    cpu_fp16_reduced_precision_reduction: bool | None = None
    blas_library: str | None = None
    linalg_library: str | None = None
    rocm_attention_library: str | None = None
    deterministic_algorithms: str | None = None
    fill_uninitialized_memory: bool | None = None
    cudnn_enabled: bool | None = None
    cudnn_benchmark: bool | None = None
    cudnn_deterministic: bool | None = None
    cudnn_depthwise_kernel: str | None = None
    miopen_immediate: bool | None = None
    mkldnn_enabled: bool | None = None
    mkldnn_deterministic: bool | None = None
    nnpack_enabled: bool | None = None
    quantized_engine: str | None = None
    opt_einsum: str | None = None
    native_dsls_disabled: str | None = None
    flash_sdp: bool | None = None
    mem_efficient_sdp: bool | None = None
    cudnn_sdp: bool | None = None
    overrideable_sdp: bool | None = None
    math_sdp: bool | None = None
    math_sdp_reduced_precision: bool | None = None
    sdp_priority: str | None = None
    flash_implementation: str | None = None
    mha_fastpath: bool | None = None
    num_threads: int | None = None
    default_dtype: str | None = None
    flush_denormal: bool | None = None
    npu_matmul_hf32: bool | None = None
    npu_conv_hf32: bool | None = None
    npu_cube_math_type: str | None = None
    npu_precision_mode: str | None = None
    npu_jit_compile: bool | None = None
    npu_internal_format: bool | None = None
    npu_compatible_impl: bool | None = None
    npu_deterministic_level: int | None = None
    environment: tuple[tuple[str, str], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `environment` becomes a dictionary."""
        environment = None if self.environment is None else dict(self.environment)
        return {**dataclasses.asdict(self), "environment": environment}

    def differences(self, other: NumericsMode) -> dict[str, tuple[Any, Any]]:
        """The switches that differ: name to (value here, value in `other`)."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def as_deterministic(self) -> NumericsMode:
        """This mode with deterministic algorithms required and cuDNN's timing runs off."""
        return dataclasses.replace(
            self,
            deterministic_algorithms="error",
            fill_uninitialized_memory=True,
            cudnn_benchmark=False,
            cudnn_deterministic=True,
            mkldnn_deterministic=True,
        )
