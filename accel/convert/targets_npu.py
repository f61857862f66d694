"""The target `npu`: torch_npu's own names, as vendors write them. It runs on Ascend only."""

from __future__ import annotations

IMPORTS = ("torch", "torch_npu")
CLASSES = "torch.npu"  # FloatTensor and its like

# Names that torch.npu shares with accel's flat functions.
_SAME = (
    "Event", "Stream", "can_device_access_peer", "current_stream", "default_stream",
    "device_count", "device_of", "empty_cache", "get_device_capability", "get_device_name",
    "get_device_properties", "get_per_process_memory_fraction", "get_rng_state",
    "get_rng_state_all", "get_sync_debug_mode", "init", "initial_seed", "ipc_collect",
    "is_available", "is_bf16_supported", "is_current_stream_capturing", "is_initialized",
    "manual_seed", "manual_seed_all", "max_memory_allocated", "max_memory_reserved",
    "mem_get_info", "memory_allocated", "memory_reserved", "memory_snapshot", "memory_stats",
    "memory_stats_as_nested_dict", "memory_summary", "reset_accumulated_memory_stats",
    "reset_peak_memory_stats", "seed", "seed_all", "set_device",
    "set_per_process_memory_fraction", "set_rng_state", "set_rng_state_all", "set_stream",
    "set_sync_debug_mode", "stream", "synchronize", "utilization",
)  # fmt: skip

SPELLINGS = {
    **{name: f"torch.npu.{name}" for name in _SAME},
    "current_device_index": "torch.npu.current_device",
    "device_index": "torch.npu.device",
    "autocast": "torch.npu.amp.autocast",
    "GradScaler": "torch.npu.amp.GradScaler",
    "custom_fwd": "torch.npu.amp.custom_fwd",
    "custom_bwd": "torch.npu.amp.custom_bwd",
    "range_push": "torch.npu.mstx.range_push",
    "range_pop": "torch.npu.mstx.range_pop",
    "range_start": "torch.npu.mstx.range_start",
    "range_end": "torch.npu.mstx.range_end",
    "mark": "torch.npu.mstx.mark",
    "is_accelerator_backend_available": "torch.distributed.is_hccl_available",
}

CALLS: dict[str, dict[int, str]] = {
    "device": {0: 'torch.device("npu")', 1: 'torch.device("npu", {0})'},
    "device_named": {},
    "device_str": {0: '"npu"', 1: 'str(torch.device("npu", {0}))'},
    "device_str_named": {},
    "default_device_type": {0: '"npu"'},
    "map_location": {0: '"npu"', 1: 'torch.device("npu", {0})'},
    "is_accelerator": {1: '(torch.device({0}).type == "npu")'},
    "on_accelerator": {1: "{0}.is_npu"},
    "to_accelerator": {1: "{0}.npu()", 2: "{0}.npu({1})"},
    "pin_memory": {1: "{0}.pin_memory()"},
    "dist_backend": {0: '"hccl"'},
    "is_accelerator_backend": {1: '({0} == "hccl")'},
    "ddp_device_ids": {1: "[{0}]"},
    "ddp_output_device": {1: "{0}"},
    "record_stream": {2: "{0}.record_stream({1})"},
    "fork_rng": {
        0: 'torch.random.fork_rng(device_type="npu")',
        1: 'torch.random.fork_rng({0}, device_type="npu")',
    },
    "generator": {0: 'torch.Generator("npu")', 1: 'torch.Generator(torch.device("npu", {0}))'},
    "annotate": {1: "torch.npu.mstx.annotate({0})"},
    "default_generators": {0: "torch.npu.default_generators"},
}

WARNINGS: dict[str, str] = {
    "get_device_capability": "torch.npu has no compute capability and gives None",
}

CALL_WARNINGS: dict[str, dict[int, str]] = {}
