"""Flat functions in the shape of `torch.cuda`'s, for the current device, whatever it is.

`torch.accelerator` raises on a CPU-only machine in most of its functions, so that programs guard
every call. These do not: on a CPU they return what `torch.cuda` returned there where it was silent
(0, False, nothing), and do nothing or return a neutral value where it raised. On an accelerator
they give the device's own answer. docs/functions.md has them all.

They are the targets of the source converter. Two of torch.cuda's have another name here:
`current_device` is `current_device_index`, and `device`, the block, is `device_index`.
"""

from __future__ import annotations

from accel.devices.amp_functions import GradScaler as GradScaler
from accel.devices.amp_functions import autocast as autocast
from accel.devices.amp_functions import custom_bwd as custom_bwd
from accel.devices.amp_functions import custom_fwd as custom_fwd
from accel.devices.device_functions import current_device_index as current_device_index
from accel.devices.device_functions import default_device_type as default_device_type
from accel.devices.device_functions import device as device
from accel.devices.device_functions import device_count as device_count
from accel.devices.device_functions import device_index as device_index
from accel.devices.device_functions import device_of as device_of
from accel.devices.device_functions import device_str as device_str
from accel.devices.device_functions import is_available as is_available
from accel.devices.device_functions import set_device as set_device
from accel.devices.device_functions import synchronize as synchronize
from accel.devices.distributed_functions import ddp_device_ids as ddp_device_ids
from accel.devices.distributed_functions import ddp_output_device as ddp_output_device
from accel.devices.distributed_functions import dist_backend as dist_backend
from accel.devices.distributed_functions import is_accelerator_backend as is_accelerator_backend
from accel.devices.distributed_functions import (
    is_accelerator_backend_available as is_accelerator_backend_available,
)
from accel.devices.driver_functions import can_device_access_peer as can_device_access_peer
from accel.devices.driver_functions import get_device_capability as get_device_capability
from accel.devices.driver_functions import get_device_name as get_device_name
from accel.devices.driver_functions import get_device_properties as get_device_properties
from accel.devices.driver_functions import get_sync_debug_mode as get_sync_debug_mode
from accel.devices.driver_functions import init as init
from accel.devices.driver_functions import is_bf16_supported as is_bf16_supported
from accel.devices.driver_functions import is_initialized as is_initialized
from accel.devices.driver_functions import set_sync_debug_mode as set_sync_debug_mode
from accel.devices.driver_functions import utilization as utilization
from accel.devices.environment import getenv as getenv
from accel.devices.environment import setenv as setenv
from accel.devices.memory_functions import empty_cache as empty_cache
from accel.devices.memory_functions import (
    get_per_process_memory_fraction as get_per_process_memory_fraction,
)
from accel.devices.memory_functions import ipc_collect as ipc_collect
from accel.devices.memory_functions import max_memory_allocated as max_memory_allocated
from accel.devices.memory_functions import max_memory_reserved as max_memory_reserved
from accel.devices.memory_functions import mem_get_info as mem_get_info
from accel.devices.memory_functions import memory_allocated as memory_allocated
from accel.devices.memory_functions import memory_reserved as memory_reserved
from accel.devices.memory_functions import memory_snapshot as memory_snapshot
from accel.devices.memory_functions import memory_stats as memory_stats
from accel.devices.memory_functions import (
    memory_stats_as_nested_dict as memory_stats_as_nested_dict,
)
from accel.devices.memory_functions import memory_summary as memory_summary
from accel.devices.memory_functions import (
    reset_accumulated_memory_stats as reset_accumulated_memory_stats,
)
from accel.devices.memory_functions import reset_peak_memory_stats as reset_peak_memory_stats
from accel.devices.memory_functions import (
    set_per_process_memory_fraction as set_per_process_memory_fraction,
)
from accel.devices.profiling_functions import annotate as annotate
from accel.devices.profiling_functions import mark as mark
from accel.devices.profiling_functions import profiler_activities as profiler_activities
from accel.devices.profiling_functions import range_end as range_end
from accel.devices.profiling_functions import range_pop as range_pop
from accel.devices.profiling_functions import range_push as range_push
from accel.devices.profiling_functions import range_start as range_start
from accel.devices.seed_functions import default_generators as default_generators
from accel.devices.seed_functions import fork_rng as fork_rng
from accel.devices.seed_functions import generator as generator
from accel.devices.seed_functions import get_rng_state as get_rng_state
from accel.devices.seed_functions import get_rng_state_all as get_rng_state_all
from accel.devices.seed_functions import initial_seed as initial_seed
from accel.devices.seed_functions import manual_seed as manual_seed
from accel.devices.seed_functions import manual_seed_all as manual_seed_all
from accel.devices.seed_functions import seed as seed
from accel.devices.seed_functions import seed_all as seed_all
from accel.devices.seed_functions import set_rng_state as set_rng_state
from accel.devices.seed_functions import set_rng_state_all as set_rng_state_all
from accel.devices.stream_functions import Event as Event
from accel.devices.stream_functions import Stream as Stream
from accel.devices.stream_functions import current_stream as current_stream
from accel.devices.stream_functions import default_stream as default_stream
from accel.devices.stream_functions import (
    is_current_stream_capturing as is_current_stream_capturing,
)
from accel.devices.stream_functions import record_stream as record_stream
from accel.devices.stream_functions import set_stream as set_stream
from accel.devices.stream_functions import stream as stream
from accel.devices.tensor_functions import is_accelerator as is_accelerator
from accel.devices.tensor_functions import map_location as map_location
from accel.devices.tensor_functions import on_accelerator as on_accelerator
from accel.devices.tensor_functions import pin_memory as pin_memory
from accel.devices.tensor_functions import tensor_type as tensor_type
from accel.devices.tensor_functions import tensor_type_name as tensor_type_name
from accel.devices.tensor_functions import to_accelerator as to_accelerator
from accel.devices.tf32_functions import allow_tf32 as allow_tf32

__all__ = [
    "Event",
    "GradScaler",
    "Stream",
    "allow_tf32",
    "annotate",
    "autocast",
    "can_device_access_peer",
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
    "dist_backend",
    "empty_cache",
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
    "on_accelerator",
    "pin_memory",
    "profiler_activities",
    "range_end",
    "range_pop",
    "range_push",
    "range_start",
    "record_stream",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "set_sync_debug_mode",
    "setenv",
    "stream",
    "synchronize",
    "tensor_type",
    "tensor_type_name",
    "to_accelerator",
    "utilization",
]
