"""Every name of `torch.cuda`, and what says the same thing for any device, if anything does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# How a name is used: a `class` may stand in annotations and `isinstance`; a `call` is a class of
# torch's that is a plain function here, so that it may only be called; a `type` is a tensor class.
Kind = Literal["call", "class", "function", "none", "torch", "type"]


@dataclass(frozen=True)
class Known:
    """What is known of a name.

    Attributes:
        rule: The rule that speaks of it.
        kind: How it may be used.
        function: What takes its place: one of the target's functions, or a name of torch's.
        dtype: Of a tensor class, as torch names it.
        is_called: What was a value is a call here.
        message: Why it stops other devices; for names without an equivalent.
        advice: What to do about them.
        effort: Who has work with them.
    """

    rule: str
    kind: Kind
    function: str = ""
    dtype: str = ""
    is_called: bool = False
    message: str = ""
    advice: str = ""
    effort: Literal["review", "rewrite"] = "review"


_SAME = """
can_device_access_peer device_count empty_cache get_device_capability get_device_name
get_device_properties get_per_process_memory_fraction get_sync_debug_mode init is_available
is_bf16_supported is_initialized ipc_collect max_memory_allocated max_memory_reserved mem_get_info
memory_allocated memory_reserved memory_snapshot memory_stats memory_stats_as_nested_dict
memory_summary reset_accumulated_memory_stats reset_peak_memory_stats set_device
set_per_process_memory_fraction set_sync_debug_mode synchronize utilization
"""
_RENAMED = {
    "_lazy_init": "init",
    "current_device": "current_device_index",
    "max_memory_cached": "max_memory_reserved",
    "memory_cached": "memory_reserved",
    "reset_max_memory_allocated": "reset_peak_memory_stats",
    "reset_max_memory_cached": "reset_peak_memory_stats",
}
_STREAM_FUNCTIONS = "current_stream default_stream is_current_stream_capturing set_stream stream"
_RNG = """
get_rng_state get_rng_state_all initial_seed manual_seed manual_seed_all seed seed_all set_rng_state
set_rng_state_all
"""
_NVTX = "mark range_end range_pop range_push range_start"
_AMP_FUNCTIONS = "custom_bwd custom_fwd"
DTYPES = {
    "BFloat16Tensor": "bfloat16",
    "BoolTensor": "bool",
    "ByteTensor": "uint8",
    "CharTensor": "int8",
    "DoubleTensor": "float64",
    "FloatTensor": "float32",
    "HalfTensor": "float16",
    "IntTensor": "int32",
    "LongTensor": "int64",
    "ShortTensor": "int16",
}
_STORAGES = """
BFloat16Storage BoolStorage ByteStorage CharStorage ComplexDoubleStorage ComplexFloatStorage
DoubleStorage FloatStorage HalfStorage IntStorage LongStorage ShortStorage
"""
# Submodules whose names torch.cuda has too, or that are named for what they hold.
_HOMES = (
    "torch.cuda.amp.autocast_mode",
    "torch.cuda.amp.grad_scaler",
    "torch.cuda.graphs",
    "torch.cuda.memory",
    "torch.cuda.random",
    "torch.cuda.streams",
)
MODULES = frozenset(
    {"torch.cuda", "torch.cuda.amp", "torch.cuda.amp.common", "torch.cuda.nvtx", *_HOMES}
)

_HOST_MEMORY = "Only <CUDA>'s allocator of page-locked memory counts what it holds."
_GRAPH = (
    "It records <CUDA> graphs; on an Ascend they serve inference only.",
    "Run the step without a graph elsewhere: put this behind a test for <CUDA>, or compile it.",
)
# By name: what is wrong, and what to do instead.
_NONE: dict[str, tuple[str, str]] = {
    "CUDAPluggableAllocator": (
        "It loads an allocator that is compiled for <CUDA>.",
        "Leave it out on other devices; PYTORCH_ALLOC_CONF tunes the allocator of each.",
    ),
    "CudaError": (
        "It is raised by calls of the <CUDA> runtime only.",
        "Catch RuntimeError, or torch.OutOfMemoryError where memory is meant.",
    ),
    "DeferredCudaCallError": (
        "It is raised while <CUDA> starts.",
        "Catch RuntimeError.",
    ),
    "GreenContext": (
        "It splits the multiprocessors of an NVIDIA GPU.",
        "Leave it out on other devices.",
    ),
    "MemPool": (
        "Memory pools of one's own are <CUDA>'s.",
        "Leave the pool out on other devices.",
    ),
    "caching_allocator_alloc": (
        "It asks <CUDA>'s allocator for raw memory.",
        "Allocate a tensor: torch.empty(size, dtype=torch.uint8, device=...).",
    ),
    "caching_allocator_delete": (
        "It gives raw memory back to <CUDA>'s allocator.",
        "Let a tensor own the memory.",
    ),
    "caching_allocator_disabled": (
        "It switches <CUDA>'s allocator off.",
        "Leave it out on other devices.",
    ),
    "caching_allocator_enable": (
        "It switches <CUDA>'s allocator.",
        "Leave it out on other devices.",
    ),
    "change_current_allocator": (
        "It loads an allocator that is compiled for <CUDA>.",
        "Leave it out on other devices.",
    ),
    "check_error": ("It reads <CUDA>'s codes.", "Errors of other devices are raised by torch."),
    "clock_rate": ("It asks NVIDIA's management library.", "On an Ascend: npu-smi info."),
    "cudaStatus": ("It lists <CUDA>'s codes.", "Errors of other devices are raised by torch."),
    "cudart": (
        "It is the <CUDA> runtime itself.",
        "Use torch.profiler for profiles; leave other calls of the runtime to <CUDA>.",
    ),
    "current_blas_handle": ("It is a handle of cuBLAS.", "Multiply with torch.matmul."),
    "current_solver_handle": ("It is a handle of cuSOLVER.", "Solve with torch.linalg."),
    "device_memory_used": (
        "It asks NVIDIA's management library.",
        "The device's free and total bytes: mem_get_info().",
    ),
    "get_allocator_backend": (
        "It names <CUDA>'s allocator.",
        "Leave it out on other devices.",
    ),
    "get_arch_list": (
        "It lists the GPU architectures that torch was compiled for.",
        "Keep it where <CUDA> code is compiled; other devices have no such list.",
    ),
    "get_gencode_flags": (
        "It gives flags of NVIDIA's compiler.",
        "Keep it where <CUDA> code is compiled.",
    ),
    "get_stream_from_external": (
        "It wraps a stream of the <CUDA> runtime.",
        "Make the stream with torch; raw handles belong to one vendor.",
    ),
    "ExternalStream": (
        "It wraps a stream of the <CUDA> runtime.",
        "Make the stream with torch; raw handles belong to one vendor.",
    ),
    "has_half": ("It tells how <CUDA> was compiled.", "Every device here computes in float16."),
    "has_magma": ("It tells whether torch has MAGMA, a CUDA library.", "Drop the test."),
    "is_tf32_supported": (
        "TF32 is NVIDIA's format.",
        "Ask for the reduced precision with allow_tf32(); devices without one ignore it.",
    ),
    "jiterator": (
        "It compiles <CUDA> source at run time.",
        "Write the expression in torch, and torch.compile it.",
    ),
    "list_gpu_processes": ("It asks NVIDIA's management library.", "On an Ascend: npu-smi info."),
    "memory_usage": ("It asks NVIDIA's management library.", "On an Ascend: npu-smi info."),
    "power_draw": ("It asks NVIDIA's management library.", "On an Ascend: npu-smi info."),
    "temperature": ("It asks NVIDIA's management library.", "On an Ascend: npu-smi info."),
    "host_memory_stats": (_HOST_MEMORY, "Leave it out on other devices."),
    "host_memory_stats_as_nested_dict": (_HOST_MEMORY, "Leave it out on other devices."),
    "reset_accumulated_host_memory_stats": (_HOST_MEMORY, "Leave it out on other devices."),
    "reset_peak_host_memory_stats": (_HOST_MEMORY, "Leave it out on other devices."),
    "nccl": (
        "It calls <NCCL> without torch.distributed.",
        "Use torch.distributed, whose backend dist_backend() names.",
    ),
    "comm": (
        "It copies between GPUs of one process.",
        "Use torch.distributed with a process for each device.",
    ),
    "profiler": (
        "It steers NVIDIA's profiler.",
        "Use torch.profiler.profile(activities=profiler_activities()).",
    ),
    "sparse": (
        "Its tensor classes are <CUDA>'s.",
        "Make sparse tensors with torch.sparse_coo_tensor(..., device=...).",
    ),
    "tunable": ("It tunes cuBLAS and rocBLAS.", "Leave it out on other devices."),
    "use_mem_pool": ("Memory pools of one's own are <CUDA>'s.", "Leave it out on other devices."),
    "gds": ("It is NVIDIA's GPUDirect Storage.", "Read files with torch.load."),
    "green_contexts": ("It splits an NVIDIA GPU.", "Leave it out on other devices."),
    "amp.amp_definitely_not_available": (
        "It asks for CUDA or XLA.",
        "Drop the test: autocast and GradScaler are disabled where there is no accelerator.",
    ),
    "amp.common": ("It asks for CUDA or XLA.", "Drop the test."),
}
_HISTORY = (
    "It records what <CUDA>'s allocator did.",
    "torch_npu has the same under torch.npu.memory; leave it out on other devices.",
)
for _name in ("_dump_snapshot", "_record_memory_history", "_snapshot"):
    _NONE[_name] = _HISTORY
_GRAPHS = ("CUDAGraph", "graph", "graph_pool_handle", "make_graphed_callables")
_REWRITES = frozenset({"comm", "jiterator", "nccl"})


def _words(text: str) -> Iterable[str]:
    return text.split()


def _table() -> dict[str, Known]:
    table: dict[str, Known] = {}
    for name in _words(_SAME):
        table[name] = Known("ACC020", "function", name)
    for name, ours in _RENAMED.items():
        table[name] = Known("ACC021", "function", ours)
    table["device"] = Known("ACC021", "call", "device_index")
    table["device_of"] = Known("ACC020", "call", "device_of")
    table["OutOfMemoryError"] = Known("ACC027", "torch", "OutOfMemoryError")
    table["AcceleratorError"] = Known("ACC027", "torch", "AcceleratorError")
    for name in ("amp.autocast", "amp.autocast_mode.autocast"):
        table[name] = Known("ACC040", "call", "autocast")
    table["amp.GradScaler"] = Known("ACC040", "class", "GradScaler")
    for name in _words(_AMP_FUNCTIONS):
        table[f"amp.{name}"] = Known("ACC040", "function", name)
    for name, dtype in DTYPES.items():
        table[name] = Known("ACC045", "type", "tensor_type", dtype=dtype)
    for name in _words(_STORAGES):
        table[name] = _none("ACC049", "Its storage class is <CUDA>'s.", _STORAGE_ADVICE)
    for name in _words(_STREAM_FUNCTIONS):
        table[name] = Known("ACC050", "function", name)
    table["StreamContext"] = Known("ACC050", "call", "stream")
    table["Stream"] = Known("ACC050", "class", "Stream")
    table["Event"] = Known("ACC050", "class", "Event")
    for name in _GRAPHS:
        table[name] = _none("ACC053", *_GRAPH)
    for name in _words(_NVTX):
        table[f"nvtx.{name}"] = Known("ACC054", "function", name)
    table["nvtx.range"] = Known("ACC054", "function", "annotate")
    for name in _words(_RNG):
        table[name] = Known("ACC073", "function", name)
    table["default_generators"] = Known("ACC076", "function", "default_generators", is_called=True)
    for name, (message, advice) in _NONE.items():
        effort: Literal["review", "rewrite"] = "rewrite" if name in _REWRITES else "review"
        table[name] = _none("ACC023", message, advice, effort)
    return {f"torch.cuda.{name}": known for name, known in table.items()}


_STORAGE_ADVICE = "Use tensor.untyped_storage(), which any device has."


def _none(
    rule: str, message: str, advice: str, effort: Literal["review", "rewrite"] = "review"
) -> Known:
    return Known(rule, "none", message=message, advice=advice, effort=effort)


TABLE = _table()


def lookup(name: str) -> Known | None:
    """What is known of a dotted name of torch's; None if it is no name of `torch.cuda`'s."""
    found = TABLE.get(name)
    if found is None:
        home, _, leaf = name.rpartition(".")
        if home in _HOMES:
            outer = "torch.cuda.amp" if home.startswith("torch.cuda.amp") else "torch.cuda"
            found = TABLE.get(f"{outer}.{leaf}")
    return found


def is_cuda(name: str) -> bool:
    """Whether a dotted name is that of `torch.cuda`, or one within it."""
    return name == "torch.cuda" or name.startswith("torch.cuda.")


def is_known(name: str) -> bool:
    """Whether a dotted name of `torch.cuda`'s is in the table, as a module or as a member."""
    return name in MODULES or lookup(name) is not None
