"""The switches of torch that change numbers, as data: how each is read and set.

They stand in the order in which they are set: a legacy setter before the finer ones that it
touches, a flag before what depends on it. `NumericsMode` (mode.py) says what each means.
"""

from __future__ import annotations

from typing import Any

import torch

from accel.devices import ascend, float32
from accel.devices.switch import Switch, attribute, pair


def _fp32(backend: str, operator: str) -> Switch:
    return Switch(
        lambda: float32.read(backend, operator),
        lambda value: float32.write(backend, operator, value),
    )


def _reduction(dtype: str, position: int) -> Switch:
    """One half of cuBLAS's pair (reduced precision allowed, split-K allowed)."""
    name = f"_cublas_allow_{dtype}_reduced_precision_reduction"

    def both() -> list[bool]:
        value = getattr(torch._C, f"_get{name}")()
        # Older torch answers with the first alone.
        return list(value) if isinstance(value, tuple) else [value]

    def read_half() -> bool | None:
        values = both()
        return values[position] if position < len(values) else None

    def set_half(value: bool) -> None:
        values = both()
        values[position] = value
        if position == 0 and value:
            values = [True for _ in values]  # torch refuses reduced precision without split-K
        getattr(torch._C, f"_set{name}")(*values)

    return Switch(read_half, set_half)


def _library(function: str) -> Switch:
    """A preferred library: its name in lower case."""

    def prefer(*name: str) -> Any:
        return getattr(torch.backends.cuda, function)(*name)

    def set_library(name: str) -> None:
        before = prefer()
        try:
            prefer(name)
        except RuntimeError:
            prefer(before.name.lower())  # torch stores the name before it finds it missing
            raise

    return Switch(lambda: prefer().name.lower(), set_library)


def _flush_denormal() -> bool:
    # torch has a setter and no getter. 1.2e-308 * 0.5 is denormal in float64.
    small = torch.tensor(1.2e-308, dtype=torch.float64, device="cpu")
    return bool(small.mul(0.5).item() == 0.0)


def _sdp_priority() -> str:
    names = {backend.value: name for name, backend in _sdp_backends().items()}
    return ",".join(names[value] for value in torch._C._get_sdp_priority_order())


def _set_sdp_priority(value: str) -> None:
    order = [int(_sdp_backends()[name]) for name in value.split(",")]
    torch._C._set_sdp_priority_order(order)


def _sdp_backends() -> dict[str, Any]:
    members = torch.nn.attention.SDPBackend.__members__
    return {name.lower(): backend for name, backend in members.items()}


def _set_flash_implementation(value: str) -> None:
    torch.nn.attention.restore_flash_attention_impl()
    if value != "default":
        torch.nn.attention.activate_flash_attention_impl(value)


def _opt_einsum() -> str:
    module = torch.backends.opt_einsum
    return str(module.strategy) if module.enabled else "off"


def _set_opt_einsum(value: str) -> None:
    module: Any = torch.backends.opt_einsum
    if value != "off" and not module.is_available():
        raise ValueError("the package opt_einsum is not installed")
    module.enabled = value != "off"
    if value != "off":
        module.strategy = value


def _native_disabled() -> str:
    native: Any = torch.backends.python_native
    return ",".join(sorted(dsl for dsl in native.all_dsls if native.is_dsl_disabled(dsl)))


def _set_native_disabled(value: str) -> None:
    native: Any = torch.backends.python_native
    for dsl in native.all_dsls:
        if (dsl in value.split(",")) != native.is_dsl_disabled(dsl):
            getattr(native, dsl).enabled = dsl not in value.split(",")


_DEBUG_MODES = ("off", "warn", "error")

SWITCHES: dict[str, Switch] = {
    "float32_matmul_precision": Switch(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "cudnn_allow_tf32": attribute("backends.cudnn", "allow_tf32"),
    "mkldnn_allow_tf32": attribute("backends.mkldnn", "allow_tf32"),
    "cuda_matmul_fp32": _fp32("cuda", "matmul"),
    "cudnn_conv_fp32": _fp32("cuda", "conv"),
    "cudnn_rnn_fp32": _fp32("cuda", "rnn"),
    "mkldnn_matmul_fp32": _fp32("mkldnn", "matmul"),
    "mkldnn_conv_fp32": _fp32("mkldnn", "conv"),
    "mkldnn_rnn_fp32": _fp32("mkldnn", "rnn"),
    "bf16_reduced_precision_reduction": _reduction("bf16", 0),
    "bf16_split_k": _reduction("bf16", 1),
    "fp16_reduced_precision_reduction": _reduction("fp16", 0),
    "fp16_split_k": _reduction("fp16", 1),
    "fp16_accumulation": attribute("backends.cuda.matmul", "allow_fp16_accumulation"),
    "cpu_fp16_reduced_precision_reduction": pair(
        "_C",
        "_get_cpu_allow_fp16_reduced_precision_reduction",
        "_set_cpu_allow_fp16_reduced_precision_reduction",
    ),
    "blas_library": _library("preferred_blas_library"),
    "linalg_library": _library("preferred_linalg_library"),
    "rocm_attention_library": _library("preferred_rocm_fa_library"),
    "deterministic_algorithms": Switch(
        lambda: _DEBUG_MODES[torch.get_deterministic_debug_mode()],
        lambda value: torch.set_deterministic_debug_mode(_DEBUG_MODES.index(value)),
    ),
    "fill_uninitialized_memory": attribute("utils.deterministic", "fill_uninitialized_memory"),
    "cudnn_enabled": attribute("backends.cudnn", "enabled"),
    "cudnn_benchmark": attribute("backends.cudnn", "benchmark"),
    "cudnn_deterministic": attribute("backends.cudnn", "deterministic"),
    "cudnn_depthwise_kernel": attribute("backends.cudnn", "depthwise_kernel"),
    "miopen_immediate": attribute("backends.miopen", "immediate"),
    "mkldnn_enabled": attribute("backends.mkldnn", "enabled"),
    "mkldnn_deterministic": attribute("backends.mkldnn", "deterministic"),
    "nnpack_enabled": pair("_C", "_get_nnpack_enabled", "_set_nnpack_enabled"),
    "quantized_engine": attribute("backends.quantized", "engine"),
    "opt_einsum": Switch(_opt_einsum, _set_opt_einsum),
    "native_dsls_disabled": Switch(_native_disabled, _set_native_disabled),
    "flash_sdp": pair("backends.cuda", "flash_sdp_enabled", "enable_flash_sdp"),
    "mem_efficient_sdp": pair(
        "backends.cuda", "mem_efficient_sdp_enabled", "enable_mem_efficient_sdp"
    ),
    "cudnn_sdp": pair("backends.cuda", "cudnn_sdp_enabled", "enable_cudnn_sdp"),
    "overrideable_sdp": pair("_C", "_get_overrideable_sdp_enabled", "_set_sdp_use_overrideable"),
    "math_sdp": pair("backends.cuda", "math_sdp_enabled", "enable_math_sdp"),
    "math_sdp_reduced_precision": pair(
        "backends.cuda",
        "fp16_bf16_reduction_math_sdp_allowed",
        "allow_fp16_bf16_reduction_math_sdp",
    ),
    "sdp_priority": Switch(_sdp_priority, _set_sdp_priority),
    "flash_implementation": Switch(
        lambda: torch.nn.attention.current_flash_attention_impl() or "default",
        _set_flash_implementation,
    ),
    "mha_fastpath": pair("backends.mha", "get_fastpath_enabled", "set_fastpath_enabled"),
    "num_threads": Switch(torch.get_num_threads, torch.set_num_threads),
    "default_dtype": Switch(
        lambda: str(torch.get_default_dtype()).removeprefix("torch."),
        lambda value: torch.set_default_dtype(getattr(torch, value)),
    ),
    "flush_denormal": Switch(_flush_denormal, torch.set_flush_denormal),
    **ascend.SWITCHES,
}
