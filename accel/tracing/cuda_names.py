"""What the public names of `torch.cuda` become: data."""

from __future__ import annotations

# Functions and blocks that have the same name and parameters in `accel.devices.functions`.
SAME = frozenset({
    "can_device_access_peer", "current_stream", "default_stream", "device_of", "empty_cache",
    "get_device_capability", "get_device_name", "get_device_properties",
    "get_per_process_memory_fraction", "get_rng_state", "get_rng_state_all",
    "get_sync_debug_mode", "init", "initial_seed", "ipc_collect", "is_bf16_supported",
    "is_current_stream_capturing", "is_initialized", "manual_seed", "manual_seed_all",
    "max_memory_allocated", "max_memory_reserved", "mem_get_info", "memory_allocated",
    "memory_reserved", "memory_snapshot", "memory_stats", "memory_stats_as_nested_dict",
    "memory_summary", "reset_accumulated_memory_stats", "reset_peak_memory_stats", "seed",
    "seed_all", "set_device", "set_per_process_memory_fraction", "set_rng_state",
    "set_rng_state_all", "set_stream", "set_sync_debug_mode", "stream", "synchronize",
    "utilization",
})  # fmt: skip
RENAMED = {
    "current_device": "current_device_index",
    "max_memory_cached": "max_memory_reserved",
    "memory_cached": "memory_reserved",
    "reset_max_memory_allocated": "reset_peak_memory_stats",
    "reset_max_memory_cached": "reset_peak_memory_stats",
}
FUNCTIONS = {**{name: name for name in SAME}, **RENAMED}
# They stay classes: torch's own modules write `torch.cuda.Stream | None` when they are imported.
CLASSES = {
    "Event": "Event",
    "Stream": "Stream",
    "StreamContext": "stream",
    "device": "device_index",
}
# What a CPU that passes for a GPU answers, and every accelerator by itself.
CLAIMS: dict[str, object] = {"is_available": True, "device_count": 1}
NVTX = {
    "mark": "mark",
    "range": "annotate",
    "range_end": "range_end",
    "range_pop": "range_pop",
    "range_push": "range_push",
    "range_start": "range_start",
}
# Modules below torch.cuda that show the same functions again, with those of their own that have no
# equivalent. `amp` is done where torch.amp is.
SUBMODULES = ("memory", "random", "streams", "nvtx", "graphs", "profiler", "nccl", "comm")
# Names that mean the same whatever is here.
NEUTRAL = frozenset({
    "AcceleratorError", "CudaError", "DeferredCudaCallError", "OutOfMemoryError", "amp",
    "cudaStatus", "graphs", "jiterator", "memory", "nccl", "nvtx", "profiler", "random", "sparse",
    "streams", "tunable",
})  # fmt: skip
