"""Reading and setting every switch of torch that changes numbers.

Two runs that should agree and do not are first asked whether their switches differ; so every
recording carries a `NumericsMode`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from accel.devices.float32 import Float32State, contradictions
from accel.devices.mode import NumericsMode
from accel.devices.switches import SWITCHES
from accel.errors import DeviceError

_logger = logging.getLogger("accel")

# Read by libraries at their start, so that they can be reported but not set.
_ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "PYTORCH_MPS_FAST_MATH",
    "PYTORCH_MPS_PREFER_METAL",
    "INF_NAN_MODE_ENABLE",
    "INF_NAN_MODE_FORCE_DISABLE",
    "HCCL_ALGO",
    "HCCL_DETERMINISTIC",
    "CLOSE_MATMUL_K_SHIFT",
    "TORCH_NPU_LEGACY_IMPL_LIST",
    "TORCH_NPU_USE_COMPATIBLE_IMPL",
    "ACCEL_SIMULATE",  # a simulated Ascend computes on the CPU
)

# Those whose state inherits (float32.py).
_FLOAT32 = frozenset(
    {
        "float32_matmul_precision",
        "cudnn_allow_tf32",
        "cuda_matmul_fp32",
        "cudnn_conv_fp32",
        "cudnn_rnn_fp32",
        "mkldnn_matmul_fp32",
        "mkldnn_conv_fp32",
        "mkldnn_rnn_fp32",
    }
)


def numerics_mode() -> NumericsMode:
    """Every switch that changes numbers, as it stands now."""
    environment = tuple((name, os.environ[name]) for name in _ENVIRONMENT if name in os.environ)
    return NumericsMode(**{name: _read(name) for name in SWITCHES}, environment=environment)


@contextlib.contextmanager
def use_numerics_mode(mode: NumericsMode) -> Iterator[None]:
    """Set every switch of `mode` inside the block and put all of them back after it.

    Switches that are None in `mode` keep their value: `NumericsMode(cudnn_benchmark=False)` sets
    one. A difference in `environment` cannot be set and is logged as a warning.

    Raises:
        TypeError: `mode` is not a `NumericsMode`.
        ValueError: `mode` changes an older float32 flag and repeats the newer switches that undo
            it; nothing has been changed then.
        DeviceError: `mode` sets a switch that is not here, such as Ascend's on a CPU, or to a value
            that torch does not take here; everything is as before then. Leave it out with
            `dataclasses.replace(mode, switch=None)`.
    """
    if not isinstance(mode, NumericsMode):
        raise TypeError(f"use_numerics_mode takes a NumericsMode, not {type(mode).__name__}")
    before = numerics_mode()
    changed = {
        name: getattr(mode, name)
        for name in SWITCHES
        if getattr(mode, name) not in (None, getattr(before, name))
    }
    _check(mode, before, changed)
    # Moving float32's entries to learn whether they inherit is left undone where none is changed.
    float32_state = Float32State.capture() if _FLOAT32 & changed.keys() else None
    try:
        _apply(mode)
        yield
    finally:
        if float32_state is not None:
            float32_state.restore()
        _apply(before)


def _check(mode: NumericsMode, before: NumericsMode, changed: dict[str, Any]) -> None:
    absent = [name for name in changed if getattr(before, name) is None and _is_absent(name)]
    if absent:
        raise DeviceError(
            f"these switches are not on this machine: {', '.join(absent)}; leave them out with "
            f"dataclasses.replace(mode, {'=None, '.join(absent)}=None)"
        )
    undone = contradictions(
        changed.get("float32_matmul_precision"),
        (mode.cuda_matmul_fp32, mode.mkldnn_matmul_fp32),
        changed.get("cudnn_allow_tf32"),
        (mode.cudnn_conv_fp32, mode.cudnn_rnn_fp32),
    )
    if undone:
        raise ValueError(
            f"the mode contradicts itself: {'; '.join(undone)}; the newer switches would undo the "
            "older one: set the newer ones to None or to what you mean"
        )
    if mode.environment not in (None, before.environment):
        _logger.warning(
            "environment variables that change numbers differ and cannot be set now: %s here, "
            "%s asked for",
            dict(before.environment or ()),
            dict(mode.environment or ()),
        )


def _apply(mode: NumericsMode) -> None:
    for name in SWITCHES:
        value = getattr(mode, name)
        # Only what differs: setting a switch to the value it inherits would pin it.
        if value is not None and _read(name) != value:
            _write(name, value)


# What readers raise where a switch does not exist (AttributeError), where torch refuses to tell a
# legacy switch that was mixed with newer ones, and where it refuses before a driver is there.
_UNREADABLE = (AttributeError, RuntimeError)


def _read(name: str) -> Any:
    """The switch's value; None where it is absent or torch refuses to tell it."""
    try:
        return SWITCHES[name].get()
    except _UNREADABLE:
        return None


def _is_absent(name: str) -> bool:
    """Whether the switch is missing, as against unreadable because torch saw a mix."""
    try:
        return SWITCHES[name].get() is None
    except AttributeError:
        return True
    except RuntimeError:
        return False


def _write(name: str, value: Any) -> None:
    try:
        SWITCHES[name].set(value)
    # Setters raise five kinds of exception for a value that this torch or machine does not take.
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceError(f"{name} cannot be {value!r} here: {line}") from error
    if _read(name) != value:
        raise DeviceError(f"{name} cannot be {value!r} here: torch keeps it at {_read(name)!r}")
