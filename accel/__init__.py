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
    from accel.devices.environment import getenv as getenv
    from accel.devices.environment import setenv as setenv
    from accel.devices.functions import Event as Event
    from accel.devices.functions import GradScaler as GradScaler
    from accel.devices.functions import Stream as Stream
    from accel.devices.functions import allow_tf32 as allow_tf32
    from accel.devices.functions import annotate as annotate
    from accel.devices.functions import autocast as autocast
    from accel.devices.functions import can_device_access_peer as can_device_access_peer
    from accel.devices.functions import current_device_index as current_device_index
    from accel.devices.functions import current_stream as current_stream
    from accel.devices.functions import custom_bwd as custom_bwd
    from accel.devices.functions import custom_fwd as custom_fwd
    from accel.devices.functions import ddp_device_ids as ddp_device_ids
    from accel.devices.functions import ddp_output_device as ddp_output_device
    from accel.devices.functions import default_device_type as default_device_type
    from accel.devices.functions import default_generators as default_generators
    from accel.devices.functions import default_stream as default_stream
    from accel.devices.functions import device as device
    from accel.devices.functions import device_count as device_count
    from accel.devices.functions import device_index as device_index
    from accel.devices.functions import device_of as device_of
    from accel.devices.functions import device_str as device_str
    from accel.devices.functions import dist_backend as dist_backend
    from accel.devices.functions import empty_cache as empty_cache
    from accel.devices.functions import fork_rng as fork_rng
    from accel.devices.functions import generator as generator
    from accel.devices.functions import get_device_capability as get_device_capability
    from accel.devices.functions import get_device_name as get_device_name
    from accel.devices.functions import get_device_properties as get_device_properties
    from accel.devices.functions import (
        get_per_process_memory_fraction as get_per_process_memory_fraction,
    )
    from accel.devices.functions import get_rng_state as get_rng_state
    from accel.devices.functions import get_rng_state_all as get_rng_state_all
    from accel.devices.functions import get_sync_debug_mode as get_sync_debug_mode
    from accel.devices.functions import init as init
    from accel.devices.functions import initial_seed as initial_seed
    from accel.devices.functions import ipc_collect as ipc_collect
    from accel.devices.functions import is_accelerator as is_accelerator
    from accel.devices.functions import is_accelerator_backend as is_accelerator_backend
    from accel.devices.functions import (
        is_accelerator_backend_available as is_accelerator_backend_available,
    )
    from accel.devices.functions import is_available as is_available
    from accel.devices.functions import is_bf16_supported as is_bf16_supported
    from accel.devices.functions import is_current_stream_capturing as is_current_stream_capturing
    from accel.devices.functions import is_initialized as is_initialized
    from accel.devices.functions import manual_seed as manual_seed
    from accel.devices.functions import manual_seed_all as manual_seed_all
    from accel.devices.functions import map_location as map_location
    from accel.devices.functions import mark as mark
    from accel.devices.functions import max_memory_allocated as max_memory_allocated
    from accel.devices.functions import max_memory_reserved as max_memory_reserved
    from accel.devices.functions import mem_get_info as mem_get_info
    from accel.devices.functions import memory_allocated as memory_allocated
    from accel.devices.functions import memory_reserved as memory_reserved
    from accel.devices.functions import memory_snapshot as memory_snapshot
    from accel.devices.functions import memory_stats as memory_stats
    from accel.devices.functions import memory_stats_as_nested_dict as memory_stats_as_nested_dict
    from accel.devices.functions import memory_summary as memory_summary
    from accel.devices.functions import on_accelerator as on_accelerator
    from accel.devices.functions import pin_memory as pin_memory
    from accel.devices.functions import profiler_activities as profiler_activities
    from accel.devices.functions import range_end as range_end
    from accel.devices.functions import range_pop as range_pop
    from accel.devices.functions import range_push as range_push
    from accel.devices.functions import range_start as range_start
    from accel.devices.functions import record_stream as record_stream
    from accel.devices.functions import (
        reset_accumulated_memory_stats as reset_accumulated_memory_stats,
    )
    from accel.devices.functions import reset_peak_memory_stats as reset_peak_memory_stats
    from accel.devices.functions import seed as seed
    from accel.devices.functions import seed_all as seed_all
    from accel.devices.functions import set_device as set_device
    from accel.devices.functions import (
        set_per_process_memory_fraction as set_per_process_memory_fraction,
    )
    from accel.devices.functions import set_rng_state as set_rng_state
    from accel.devices.functions import set_rng_state_all as set_rng_state_all
    from accel.devices.functions import set_stream as set_stream
    from accel.devices.functions import set_sync_debug_mode as set_sync_debug_mode
    from accel.devices.functions import stream as stream
    from accel.devices.functions import synchronize as synchronize
    from accel.devices.functions import tensor_type as tensor_type
    from accel.devices.functions import tensor_type_name as tensor_type_name
    from accel.devices.functions import to_accelerator as to_accelerator
    from accel.devices.functions import utilization as utilization
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
    "getenv": "accel.devices.environment",
    "setenv": "accel.devices.environment",
    "Event": "accel.devices.functions",
    "GradScaler": "accel.devices.functions",
    "Stream": "accel.devices.functions",
    "allow_tf32": "accel.devices.functions",
    "annotate": "accel.devices.functions",
    "autocast": "accel.devices.functions",
    "can_device_access_peer": "accel.devices.functions",
    "current_device_index": "accel.devices.functions",
    "current_stream": "accel.devices.functions",
    "custom_bwd": "accel.devices.functions",
    "custom_fwd": "accel.devices.functions",
    "ddp_device_ids": "accel.devices.functions",
    "ddp_output_device": "accel.devices.functions",
    "default_device_type": "accel.devices.functions",
    "default_generators": "accel.devices.functions",
    "default_stream": "accel.devices.functions",
    "device": "accel.devices.functions",
    "device_count": "accel.devices.functions",
    "device_index": "accel.devices.functions",
    "device_of": "accel.devices.functions",
    "device_str": "accel.devices.functions",
    "dist_backend": "accel.devices.functions",
    "empty_cache": "accel.devices.functions",
    "fork_rng": "accel.devices.functions",
    "generator": "accel.devices.functions",
    "get_device_capability": "accel.devices.functions",
    "get_device_name": "accel.devices.functions",
    "get_device_properties": "accel.devices.functions",
    "get_per_process_memory_fraction": "accel.devices.functions",
    "get_rng_state": "accel.devices.functions",
    "get_rng_state_all": "accel.devices.functions",
    "get_sync_debug_mode": "accel.devices.functions",
    "init": "accel.devices.functions",
    "initial_seed": "accel.devices.functions",
    "ipc_collect": "accel.devices.functions",
    "is_accelerator": "accel.devices.functions",
    "is_accelerator_backend": "accel.devices.functions",
    "is_accelerator_backend_available": "accel.devices.functions",
    "is_available": "accel.devices.functions",
    "is_bf16_supported": "accel.devices.functions",
    "is_current_stream_capturing": "accel.devices.functions",
    "is_initialized": "accel.devices.functions",
    "manual_seed": "accel.devices.functions",
    "manual_seed_all": "accel.devices.functions",
    "map_location": "accel.devices.functions",
    "mark": "accel.devices.functions",
    "max_memory_allocated": "accel.devices.functions",
    "max_memory_reserved": "accel.devices.functions",
    "mem_get_info": "accel.devices.functions",
    "memory_allocated": "accel.devices.functions",
    "memory_reserved": "accel.devices.functions",
    "memory_snapshot": "accel.devices.functions",
    "memory_stats": "accel.devices.functions",
    "memory_stats_as_nested_dict": "accel.devices.functions",
    "memory_summary": "accel.devices.functions",
    "on_accelerator": "accel.devices.functions",
    "pin_memory": "accel.devices.functions",
    "profiler_activities": "accel.devices.functions",
    "range_end": "accel.devices.functions",
    "range_pop": "accel.devices.functions",
    "range_push": "accel.devices.functions",
    "range_start": "accel.devices.functions",
    "record_stream": "accel.devices.functions",
    "reset_accumulated_memory_stats": "accel.devices.functions",
    "reset_peak_memory_stats": "accel.devices.functions",
    "seed": "accel.devices.functions",
    "seed_all": "accel.devices.functions",
    "set_device": "accel.devices.functions",
    "set_per_process_memory_fraction": "accel.devices.functions",
    "set_rng_state": "accel.devices.functions",
    "set_rng_state_all": "accel.devices.functions",
    "set_stream": "accel.devices.functions",
    "set_sync_debug_mode": "accel.devices.functions",
    "stream": "accel.devices.functions",
    "synchronize": "accel.devices.functions",
    "tensor_type": "accel.devices.functions",
    "tensor_type_name": "accel.devices.functions",
    "to_accelerator": "accel.devices.functions",
    "utilization": "accel.devices.functions",
}

__all__ = [
    "AttentionState",
    "BackendError",
    "Device",
    "DeviceError",
    "Event",
    "GradScaler",
    "NumericsMode",
    "Stream",
    "__version__",
    "alignment",
    "allow_tf32",
    "annotate",
    "attention",
    "attention_for_transformers",
    "attention_plan",
    "autocast",
    "available_devices",
    "backends",
    "can_device_access_peer",
    "current_device",
    "current_device_index",
    "current_stream",
    "custom_bwd",
    "custom_fwd",
    "ddp_device_ids",
    "ddp_output_device",
    "default_device_type",
    "default_generators",
    "default_stream",
    "device",
    "device_count",
    "device_index",
    "device_of",
    "device_str",
    "devices",
    "dispatch",
    "dist_backend",
    "empty_cache",
    "explain",
    "fork_rng",
    "generator",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_per_process_memory_fraction",
    "get_rng_state",
    "get_rng_state_all",
    "get_sync_debug_mode",
    "getenv",
    "init",
    "initial_seed",
    "ipc_collect",
    "is_accelerator",
    "is_accelerator_backend",
    "is_accelerator_backend_available",
    "is_available",
    "is_bf16_supported",
    "is_current_stream_capturing",
    "is_initialized",
    "load",
    "manual_seed",
    "manual_seed_all",
    "map_location",
    "mark",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "memory_stats_as_nested_dict",
    "memory_summary",
    "numerics",
    "numerics_mode",
    "on_accelerator",
    "pin_memory",
    "precision",
    "profiler_activities",
    "range_end",
    "range_pop",
    "range_push",
    "range_start",
    "record_stream",
    "register_device",
    "report",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "segmented_attention",
    "segmented_attention_decode",
    "segmented_attention_varlen",
    "set_device",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "set_sync_debug_mode",
    "setenv",
    "simulate",
    "stream",
    "synchronize",
    "tensor_type",
    "tensor_type_name",
    "testing",
    "to_accelerator",
    "use_backend",
    "use_device",
    "use_numerics_mode",
    "utilization",
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
