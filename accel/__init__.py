"""One PyTorch program on NVIDIA, Ascend, other chips and CPUs, with numbers proved to agree.

Importing this package imports no torch: every name below is fetched from its home on first use
(PEP 562), so that `accel doctor` can run where `import torch` itself fails.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from accel._version import __version__ as __version__
from accel.errors import BackendError as BackendError
from accel.errors import DeviceError as DeviceError

if TYPE_CHECKING:
    from accel import alignment as alignment
    from accel import attention as attention
    from accel import devices as devices
    from accel import dispatch as dispatch
    from accel import numerics as numerics
    from accel import precision as precision
    from accel import report as report
    from accel import simulate as simulate
    from accel import testing as testing
    from accel.attention import AttentionState as AttentionState
    from accel.attention import attention_for_transformers as attention_for_transformers
    from accel.attention import attention_plan as attention_plan
    from accel.attention import segmented_attention as segmented_attention
    from accel.attention import segmented_attention_decode as segmented_attention_decode
    from accel.attention import segmented_attention_varlen as segmented_attention_varlen
    from accel.devices import Device as Device
    from accel.devices import NumericsMode as NumericsMode
    from accel.devices import available_devices as available_devices
    from accel.devices import current_device as current_device
    from accel.devices import load as load
    from accel.devices import numerics_mode as numerics_mode
    from accel.devices import register_device as register_device
    from accel.devices import use_device as use_device
    from accel.devices import use_numerics_mode as use_numerics_mode
    from accel.devices.functions import current_stream as current_stream
    from accel.devices.functions import device_count as device_count
    from accel.devices.functions import empty_cache as empty_cache
    from accel.devices.functions import is_available as is_available
    from accel.devices.functions import manual_seed as manual_seed
    from accel.devices.functions import manual_seed_all as manual_seed_all
    from accel.devices.functions import max_memory_allocated as max_memory_allocated
    from accel.devices.functions import memory_allocated as memory_allocated
    from accel.devices.functions import reset_peak_memory_stats as reset_peak_memory_stats
    from accel.devices.functions import set_device as set_device
    from accel.devices.functions import synchronize as synchronize
    from accel.dispatch import backends as backends
    from accel.dispatch import explain as explain
    from accel.dispatch import use_backend as use_backend

_SUBMODULES = frozenset(
    {
        "alignment",
        "attention",
        "devices",
        "dispatch",
        "numerics",
        "precision",
        "report",
        "simulate",
        "testing",
    }
)

# Where each public name lives. A structure test compares this with the imports above.
_HOMES = {
    "AttentionState": "accel.attention",
    "attention_for_transformers": "accel.attention",
    "attention_plan": "accel.attention",
    "segmented_attention": "accel.attention",
    "segmented_attention_decode": "accel.attention",
    "segmented_attention_varlen": "accel.attention",
    "Device": "accel.devices",
    "NumericsMode": "accel.devices",
    "available_devices": "accel.devices",
    "current_device": "accel.devices",
    "load": "accel.devices",
    "numerics_mode": "accel.devices",
    "register_device": "accel.devices",
    "use_device": "accel.devices",
    "use_numerics_mode": "accel.devices",
    "backends": "accel.dispatch",
    "explain": "accel.dispatch",
    "use_backend": "accel.dispatch",
    "current_stream": "accel.devices.functions",
    "device_count": "accel.devices.functions",
    "empty_cache": "accel.devices.functions",
    "is_available": "accel.devices.functions",
    "manual_seed": "accel.devices.functions",
    "manual_seed_all": "accel.devices.functions",
    "max_memory_allocated": "accel.devices.functions",
    "memory_allocated": "accel.devices.functions",
    "reset_peak_memory_stats": "accel.devices.functions",
    "set_device": "accel.devices.functions",
    "synchronize": "accel.devices.functions",
}

__all__ = [
    "AttentionState",
    "BackendError",
    "Device",
    "DeviceError",
    "NumericsMode",
    "__version__",
    "alignment",
    "attention",
    "attention_for_transformers",
    "attention_plan",
    "available_devices",
    "backends",
    "current_device",
    "current_stream",
    "device_count",
    "devices",
    "dispatch",
    "empty_cache",
    "explain",
    "is_available",
    "load",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "memory_allocated",
    "numerics",
    "numerics_mode",
    "precision",
    "register_device",
    "report",
    "reset_peak_memory_stats",
    "segmented_attention",
    "segmented_attention_decode",
    "segmented_attention_varlen",
    "set_device",
    "simulate",
    "synchronize",
    "testing",
    "use_backend",
    "use_device",
    "use_numerics_mode",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"accel.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'accel' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # the next access is a plain attribute look-up
    return value


def __dir__() -> list[str]:
    return list(__all__)
