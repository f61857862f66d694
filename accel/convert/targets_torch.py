"""The target `torch`: `torch.accelerator` and torch's generic objects, without this library.

Most of `torch.accelerator` raises on a machine that has only a CPU, where `torch.cuda` was silent;
each such function has a warning, which the finding carries.
"""

from __future__ import annotations

IMPORTS = ("torch",)
CLASSES = ""  # torch.FloatTensor and its like are the CPU's

_HERE = "torch.accelerator.current_accelerator()"
_TYPE = f'str({_HERE} or "cpu")'
# Autocast and the scaler stay disabled on a CPU, as torch.cuda's were there.
_ENABLED = "torch.accelerator.is_available()"
_BACKEND = "torch.distributed.get_default_backend_for_device"

# accel's name -> torch.accelerator's.
_ACCELERATOR = {
    "current_device_index": "current_device_index",
    "current_stream": "current_stream",
    "device_count": "device_count",
    "device_index": "device_index",
    "empty_cache": "empty_cache",
    "is_available": "is_available",
    "max_memory_allocated": "max_memory_allocated",
    "max_memory_reserved": "max_memory_reserved",
    "mem_get_info": "get_memory_info",
    "memory_allocated": "memory_allocated",
    "memory_reserved": "memory_reserved",
    "memory_stats": "memory_stats",
    "reset_accumulated_memory_stats": "reset_accumulated_memory_stats",
    "reset_peak_memory_stats": "reset_peak_memory_stats",
    "set_device": "set_device_index",
    "set_stream": "set_stream",
    "synchronize": "synchronize",
}
_SILENT = {"device_count", "device_index", "is_available", "set_stream"}

# What only the device's own module has; torch.cpu, which stands in on a CPU, lacks it.
_DEVICE_MODULE = (
    "can_device_access_peer", "get_device_capability", "get_device_name", "get_device_properties",
    "get_per_process_memory_fraction", "get_rng_state", "get_rng_state_all",
    "get_sync_debug_mode", "init", "initial_seed", "ipc_collect", "is_bf16_supported",
    "is_current_stream_capturing", "is_initialized", "manual_seed", "manual_seed_all",
    "memory_snapshot", "memory_stats_as_nested_dict", "memory_summary", "seed", "seed_all",
    "set_per_process_memory_fraction", "set_rng_state", "set_rng_state_all",
    "set_sync_debug_mode", "utilization",
)  # fmt: skip

SPELLINGS = {
    **{name: f"torch.accelerator.{theirs}" for name, theirs in _ACCELERATOR.items()},
    **{name: f"torch.get_device_module().{name}" for name in _DEVICE_MODULE},
    "Stream": "torch.Stream",
    "Event": "torch.Event",
    "annotate": "torch.profiler.record_function",
}

CALLS: dict[str, dict[int, str]] = {
    "device": {0: f'({_HERE} or torch.device("cpu"))', 1: "torch.device({0})"},
    "device_named": {1: "torch.device({0})"},
    "device_str": {0: f'str({_HERE} or "cpu")', 1: "str(torch.device({0}))"},
    "device_str_named": {1: "str(torch.device({0}))"},
    "default_device_type": {0: f'str({_HERE} or "cpu")'},
    "map_location": {0: f'({_HERE} or torch.device("cpu"))', 1: "torch.device({0})"},
    "is_accelerator": {1: '(torch.device({0}).type not in ("cpu", "meta"))'},
    "on_accelerator": {1: '({0}.device.type not in ("cpu", "meta"))'},
    "to_accelerator": {1: f'{{0}}.to({_HERE} or "cpu")', 2: "{0}.to({1})"},
    "pin_memory": {1: "{0}.pin_memory()"},
    "device_of": {1: "torch.accelerator.device_index({0}.device.index)"},
    "dist_backend": {0: f'{_BACKEND}({_HERE} or "cpu")'},
    "is_accelerator_backend": {1: '({0} in ("nccl", "hccl", "xccl", "mccl", "cncl"))'},
    "is_accelerator_backend_available": {
        0: "(torch.accelerator.is_available() and torch.distributed.is_backend_available("
        f"{_BACKEND}({_HERE})))"
    },
    "ddp_device_ids": {1: "([{0}] if torch.accelerator.is_available() else None)"},
    "ddp_output_device": {1: "({0} if torch.accelerator.is_available() else None)"},
    "autocast": {-1: f"torch.autocast({_TYPE}, enabled={{enabled {_ENABLED}}}{{*}})"},
    "GradScaler": {-1: f"torch.amp.GradScaler({_TYPE}, enabled={{enabled {_ENABLED}}}{{*}})"},
    "custom_fwd": {-1: f"torch.amp.custom_fwd(device_type={_TYPE}{{*}})"},
    "custom_bwd": {0: f"torch.amp.custom_bwd(device_type={_TYPE})"},
    "stream": {1: "{0}"},
    "record_stream": {2: "{0}.record_stream({1})"},
    "fork_rng": {
        0: f"torch.random.fork_rng(range(torch.accelerator.device_count()), device_type={_TYPE})",
        1: f"torch.random.fork_rng({{0}}, device_type={_TYPE})",
    },
    "generator": {0: f'torch.Generator({_HERE} or "cpu")', 1: "torch.Generator(torch.device({0}))"},
    "default_generators": {0: "torch.get_device_module().default_generators"},
    "profiler_activities": {0: "list(torch.profiler.supported_activities())"},
}

WARNINGS = {
    **{
        name: f"torch.accelerator.{theirs} raises on a machine that has only a CPU"
        for name, theirs in _ACCELERATOR.items()
        if name not in _SILENT
    },
    **{
        name: f"{name} is a function of the accelerator's own module: on a CPU it raises"
        for name in (*_DEVICE_MODULE, "default_generators")
    },
    "custom_fwd": "within autocast of a CPU it casts there as well",
    "custom_bwd": "within autocast of a CPU it casts there as well",
    "Event": "on a CPU an event measures no time",
    "pin_memory": "tensor.pin_memory() raises on a machine that has only a CPU",
}

_INDEX = "torch.device with an index raises on a machine that has only a CPU"
# By the number of arguments.
CALL_WARNINGS = {
    name: {1: _INDEX} for name in ("device", "device_str", "generator", "map_location")
}
