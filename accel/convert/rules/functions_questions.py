"""ACC028: calls that raise without CUDA where the program catches that."""

from __future__ import annotations

import ast

from accel.convert.flow.questions import is_question
from accel.convert.module import Module

# Of torch.cuda's functions those that do not raise on a machine without CUDA.
SILENT = frozenset({
    "GradScaler", "StreamContext", "autocast", "custom_bwd", "custom_fwd", "device_count",
    "device_of", "empty_cache", "get_rng_state_all", "is_available", "is_bf16_supported",
    "is_initialized", "manual_seed", "manual_seed_all", "max_memory_allocated", "max_memory_cached",
    "max_memory_reserved", "memory_allocated", "memory_cached", "memory_reserved", "memory_stats",
    "memory_stats_as_nested_dict", "seed", "seed_all", "set_rng_state", "set_rng_state_all",
    "set_stream", "stream",
})  # fmt: skip


def asks(module: Module, node: ast.expr, name: str) -> bool:
    """Whether a function is called to find out whether there is CUDA."""
    call = module.parent(node)
    if name.rpartition(".")[2] in SILENT or not isinstance(call, ast.Call):
        return False
    return call.func is node and is_question(module, call)
