"""Every switch of torch that changes numbers, read and set as one value.

Two runs that should agree and do not are first asked whether their switches differ; so every
recording carries a `NumericsMode`. The switches are data: one `_Switch` each, in the order in which
they are set (a legacy setter before the finer ones that it touches).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from accel.errors import DeviceError

_logger = logging.getLogger("accel")

# Read by libraries at their start, so that they can be reported but not set.
_ENVIRONMENT = (
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR",
    "INF_NAN_MODE_ENABLE",
    "INF_NAN_MODE_FORCE_DISABLE",
    "HCCL_DETERMINISTIC",
    "CLOSE_MATMUL_K_SHIFT",
    "TORCH_NPU_USE_COMPATIBLE_IMPL",
)


@dataclass(frozen=True)
class NumericsMode:
    """Every switch that changes numbers; None where the installed torch has no such switch.

    Attributes:
        float32_matmul_precision: `torch.set_float32_matmul_precision`: highest, high, medium.
            None while finer switches are mixed with it, when torch refuses to tell it.
        cudnn_allow_tf32: cuDNN's older TF32 switch; None under the same condition.
        cuda_matmul_fp32: Inner precision of float32 products on CUDA: ieee, tf32, none (default).
        cudnn_conv_fp32: The same for cuDNN's convolutions.
        cudnn_rnn_fp32: The same for cuDNN's recurrent layers.
        mkldnn_matmul_fp32: The same for oneDNN's products on the CPU: ieee, tf32, bf16, none.
        mkldnn_conv_fp32: The same for oneDNN's convolutions.
        mkldnn_rnn_fp32: The same for oneDNN's recurrent layers.
        bf16_reduced_precision_reduction: cuBLAS may add partial sums in bfloat16.
        fp16_reduced_precision_reduction: cuBLAS may add partial sums in float16.
        fp16_accumulation: cuBLAS may accumulate in float16.
        deterministic_algorithms: off, warn or error.
        fill_uninitialized_memory: Deterministic mode fills `torch.empty` with NaN.
        cudnn_enabled: Use cuDNN.
        cudnn_benchmark: Time cuDNN's algorithms and take the fastest: not the same each run.
        cudnn_deterministic: Take only deterministic ones.
        mkldnn_enabled: Use oneDNN on the CPU.
        mkldnn_deterministic: Take only its deterministic kernels.
        flash_sdp: `scaled_dot_product_attention` may take the flash kernel.
        mem_efficient_sdp: It may take the memory-efficient kernel.
        cudnn_sdp: It may take cuDNN's kernel.
        math_sdp: It may take the plain formula.
        math_sdp_reduced_precision: The plain formula may add in half precision.
        mha_fastpath: `nn.MultiheadAttention` may take its fused inference path.
        num_threads: Threads on the CPU: another number adds in another order.
        default_dtype: Of `torch.get_default_dtype()`.
        flush_denormal: The CPU replaces denormal numbers by zero, in this thread.
        npu_matmul_hf32: Ascend computes float32 products in HF32.
        npu_conv_hf32: Ascend computes float32 convolutions in HF32 (on by default there).
        environment: Variables that are set and change numbers, as (name, value); reported and
            compared, but not settable once libraries have read them.
    """

    float32_matmul_precision: str | None = None
    cudnn_allow_tf32: bool | None = None
    cuda_matmul_fp32: str | None = None
    cudnn_conv_fp32: str | None = None
    cudnn_rnn_fp32: str | None = None
    mkldnn_matmul_fp32: str | None = None
    mkldnn_conv_fp32: str | None = None
    mkldnn_rnn_fp32: str | None = None
    bf16_reduced_precision_reduction: bool | None = None
    fp16_reduced_precision_reduction: bool | None = None
    fp16_accumulation: bool | None = None
    deterministic_algorithms: str | None = None
    fill_uninitialized_memory: bool | None = None
    cudnn_enabled: bool | None = None
    cudnn_benchmark: bool | None = None
    cudnn_deterministic: bool | None = None
    mkldnn_enabled: bool | None = None
    mkldnn_deterministic: bool | None = None
    flash_sdp: bool | None = None
    mem_efficient_sdp: bool | None = None
    cudnn_sdp: bool | None = None
    math_sdp: bool | None = None
    math_sdp_reduced_precision: bool | None = None
    mha_fastpath: bool | None = None
    num_threads: int | None = None
    default_dtype: str | None = None
    flush_denormal: bool | None = None
    npu_matmul_hf32: bool | None = None
    npu_conv_hf32: bool | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `environment` becomes a dictionary."""
        return {**dataclasses.asdict(self), "environment": dict(self.environment)}

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


@dataclass(frozen=True)
class _Switch:
    get: Callable[[], Any]
    set: Callable[[Any], Any]


def _backend_switch(path: str, attribute: str) -> _Switch:
    """A switch that is an attribute below `torch.backends`."""

    def holder() -> Any:
        value: Any = torch.backends
        for part in path.split("."):
            value = getattr(value, part)
        return value

    def read() -> Any:
        value = getattr(holder(), attribute)
        # Newer torch answers the reduction switches with (allowed, split-K allowed).
        return value[0] if isinstance(value, tuple) else value

    return _Switch(read, lambda value: setattr(holder(), attribute, value))


def _npu_switch(kind: str) -> _Switch:
    def holder() -> Any:
        npu: Any = getattr(torch, "npu")  # noqa: B009 - AttributeError without torch_npu
        return getattr(npu, kind)

    return _Switch(lambda: bool(holder().allow_hf32), lambda v: setattr(holder(), "allow_hf32", v))


def _flush_denormal() -> bool:
    # torch has a setter and no getter. 1.1e-308 * 0.5 is denormal in float64.
    return bool(torch.tensor(1.2e-308, dtype=torch.float64).mul(0.5).item() == 0.0)


_DEBUG_MODES = ("off", "warn", "error")

_SWITCHES: dict[str, _Switch] = {
    "float32_matmul_precision": _Switch(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "cudnn_allow_tf32": _backend_switch("cudnn", "allow_tf32"),
    "cuda_matmul_fp32": _backend_switch("cuda.matmul", "fp32_precision"),
    "cudnn_conv_fp32": _backend_switch("cudnn.conv", "fp32_precision"),
    "cudnn_rnn_fp32": _backend_switch("cudnn.rnn", "fp32_precision"),
    "mkldnn_matmul_fp32": _backend_switch("mkldnn.matmul", "fp32_precision"),
    "mkldnn_conv_fp32": _backend_switch("mkldnn.conv", "fp32_precision"),
    "mkldnn_rnn_fp32": _backend_switch("mkldnn.rnn", "fp32_precision"),
    "bf16_reduced_precision_reduction": _backend_switch(
        "cuda.matmul", "allow_bf16_reduced_precision_reduction"
    ),
    "fp16_reduced_precision_reduction": _backend_switch(
        "cuda.matmul", "allow_fp16_reduced_precision_reduction"
    ),
    "fp16_accumulation": _backend_switch("cuda.matmul", "allow_fp16_accumulation"),
    "deterministic_algorithms": _Switch(
        lambda: _DEBUG_MODES[torch.get_deterministic_debug_mode()],
        lambda value: torch.set_deterministic_debug_mode(_DEBUG_MODES.index(value)),
    ),
    "fill_uninitialized_memory": _Switch(
        lambda: getattr(torch.utils.deterministic, "fill_uninitialized_memory"),  # noqa: B009
        lambda v: setattr(torch.utils.deterministic, "fill_uninitialized_memory", v),
    ),
    "cudnn_enabled": _backend_switch("cudnn", "enabled"),
    "cudnn_benchmark": _backend_switch("cudnn", "benchmark"),
    "cudnn_deterministic": _backend_switch("cudnn", "deterministic"),
    "mkldnn_enabled": _backend_switch("mkldnn", "enabled"),
    "mkldnn_deterministic": _backend_switch("mkldnn", "deterministic"),
    "flash_sdp": _Switch(
        torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp
    ),
    "mem_efficient_sdp": _Switch(
        torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp
    ),
    "cudnn_sdp": _Switch(
        torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp
    ),
    "math_sdp": _Switch(torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "math_sdp_reduced_precision": _Switch(
        torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed,
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp,
    ),
    "mha_fastpath": _Switch(
        torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled
    ),
    "num_threads": _Switch(torch.get_num_threads, torch.set_num_threads),
    "default_dtype": _Switch(
        lambda: str(torch.get_default_dtype()).removeprefix("torch."),
        lambda value: torch.set_default_dtype(getattr(torch, value)),
    ),
    "flush_denormal": _Switch(_flush_denormal, torch.set_flush_denormal),
    "npu_matmul_hf32": _npu_switch("matmul"),
    "npu_conv_hf32": _npu_switch("conv"),
}


def numerics_mode() -> NumericsMode:
    """Every switch that changes numbers, as it stands now."""
    values = {name: _read(switch) for name, switch in _SWITCHES.items()}
    environment = tuple((n, os.environ[n]) for n in _ENVIRONMENT if n in os.environ)
    return NumericsMode(**values, environment=environment)


@contextlib.contextmanager
def use_numerics_mode(mode: NumericsMode) -> Iterator[None]:
    """Set every switch of `mode` inside the block and put them back after it.

    Switches that are None in `mode` keep their value. A difference in `environment` cannot be set
    and is logged as a warning.

    Raises:
        TypeError: `mode` is not a `NumericsMode`.
        DeviceError: `mode` sets a switch that is not here, such as Ascend's on a CPU; nothing has
            been changed then. Leave it out with `dataclasses.replace(mode, switch=None)`.
    """
    if not isinstance(mode, NumericsMode):
        raise TypeError(f"use_numerics_mode takes a NumericsMode, not {type(mode).__name__}")
    before = numerics_mode()
    absent = [
        name
        for name, (new, old) in mode.differences(before).items()
        if name != "environment" and old is None and new is not None and _read_fails(name)
    ]
    if absent:
        raise DeviceError(
            f"these switches are not on this machine: {', '.join(absent)}; leave them out with "
            f"dataclasses.replace(mode, {'=None, '.join(absent)}=None)"
        )
    if mode.environment != before.environment:
        _logger.warning(
            "environment variables that change numbers differ and cannot be set now: %s here, "
            "%s asked for",
            dict(before.environment),
            dict(mode.environment),
        )
    try:
        _apply(mode)
        yield
    finally:
        _apply(before)


def _apply(mode: NumericsMode) -> None:
    for name, switch in _SWITCHES.items():
        value = getattr(mode, name)
        # Only what differs: setting a switch to the value it inherits would pin it.
        if value is not None and _read(switch) != value:
            switch.set(value)


# What the readers raise where a switch does not exist (AttributeError), where torch refuses to tell
# a legacy switch that was mixed with newer ones, and where it refuses before a driver is there.
_UNREADABLE = (AttributeError, RuntimeError)


def _read(switch: _Switch) -> Any:
    try:
        return switch.get()
    except _UNREADABLE:
        return None


def _read_fails(name: str) -> bool:
    """Whether the switch is missing, as against unreadable because torch saw a mix."""
    try:
        _SWITCHES[name].get()
    except AttributeError:
        return True
    except RuntimeError:
        return False
    return False
