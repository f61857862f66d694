"""Environment variables of CUDA programs and what they are called on Ascend.

Sources: CUDA C++ Programming Guide, "CUDA Environment Variables"; NCCL, "Environment Variables";
PyTorch, "CUDA Environment Variables"; Ascend Extension for PyTorch and CANN, environment variable
reference. `accel.devices.environment` sets the twins at run time; a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

# twin: the same meaning and value, so both are set. counterpart: another name for a like purpose,
# whose values must be looked at. ignored: only CUDA reads it, so it does no harm elsewhere.
Kind = Literal["twin", "counterpart", "ignored"]

# Options of the caching allocator that both know; torch_npu refuses any that it does not know.
ALLOCATOR_OPTIONS = frozenset(
    {"expandable_segments", "garbage_collection_threshold", "max_split_size_mb"}
)


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        name: As CUDA programs spell it, or a prefix of names ending in `*`.
        ascend: What Ascend calls it; "" where nothing is.
        kind: `twin`, `counterpart` or `ignored`.
        note: What to look at.
    """

    name: str
    ascend: str
    kind: Kind
    note: str

    def carries(self, value: str) -> bool:
        """Whether a literal value means the same on Ascend; only of a twin."""
        if self.kind != "twin" or not value:
            return False
        if self.name == "CUDA_VISIBLE_DEVICES":
            return re.fullmatch(r"\d+(?:,\d+)*", value) is not None
        if self.name == "PYTORCH_CUDA_ALLOC_CONF":
            options = [option.partition(":") for option in value.split(",")]
            return all(name in ALLOCATOR_OPTIONS and given for name, _, given in options)
        return value in {"0", "1"}


_HCCL = "the values differ: see HCCL's environment variables"
_ROWS: tuple[tuple[str, str, Kind, str], ...] = (
    ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "twin", "indexes only, no UUIDs"),
    ("CUDA_LAUNCH_BLOCKING", "ASCEND_LAUNCH_BLOCKING", "twin", "0 or 1"),
    (
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_NPU_ALLOC_CONF",
        "twin",
        "torch_npu refuses options that it does not know, and this beside PYTORCH_ALLOC_CONF",
    ),
    (
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "PYTORCH_NO_NPU_MEMORY_CACHING",
        "counterpart",
        "1 switches the allocator's cache off on both",
    ),
    ("CUDA_DEVICE_ORDER", "", "ignored", "Ascend numbers devices as its driver does"),
    ("CUDA_MODULE_LOADING", "", "ignored", "only CUDA loads kernels lazily"),
    ("CUDA_DEVICE_MAX_CONNECTIONS", "", "ignored", "only CUDA has hardware queues of this kind"),
    ("CUDA_CACHE_*", "ACL_OP_COMPILER_CACHE_DIR", "counterpart", "where compiled kernels are kept"),
    ("CUDA_HOME", "ASCEND_HOME_PATH", "counterpart", "CANN's set_env.sh sets it"),
    ("CUDA_PATH", "ASCEND_HOME_PATH", "counterpart", "CANN's set_env.sh sets it"),
    ("CUDA_ROOT", "ASCEND_HOME_PATH", "counterpart", "CANN's set_env.sh sets it"),
    ("CUDNN_*", "", "ignored", "only cuDNN reads it"),
    ("TORCH_CUDNN_*", "", "ignored", "only cuDNN's binding reads it"),
    ("TORCH_CUDA_ARCH_LIST", "", "ignored", "architectures of CUDA extensions that are built"),
    (
        "CUBLAS_WORKSPACE_CONFIG",
        "",
        "ignored",
        "Ascend needs none for repeatable products: torch.use_deterministic_algorithms is enough, "
        "and HCCL_DETERMINISTIC=true for collectives",
    ),
    ("NVIDIA_TF32_OVERRIDE", "", "ignored", "accel.allow_tf32 sets the like on every device"),
    ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "", "ignored", "accel.allow_tf32 sets the like"),
    (
        "NVIDIA_VISIBLE_DEVICES",
        "ASCEND_VISIBLE_DEVICES",
        "counterpart",
        "read by the container runtime; indexes only, `all` is not known",
    ),
    ("NVIDIA_DRIVER_CAPABILITIES", "", "ignored", "read by NVIDIA's container runtime"),
    ("NVIDIA_*", "", "ignored", "read by NVIDIA's software"),
    (
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "TORCH_HCCL_ASYNC_ERROR_HANDLING",
        "counterpart",
        "0 or 1 there",
    ),
    (
        "NCCL_ASYNC_ERROR_HANDLING",
        "TORCH_HCCL_ASYNC_ERROR_HANDLING",
        "counterpart",
        "0 or 1 there",
    ),
    ("TORCH_NCCL_BLOCKING_WAIT", "TORCH_HCCL_BLOCKING_WAIT", "counterpart", "0 or 1"),
    ("NCCL_BLOCKING_WAIT", "TORCH_HCCL_BLOCKING_WAIT", "counterpart", "0 or 1"),
    ("TORCH_NCCL_DESYNC_DEBUG", "TORCH_HCCL_DESYNC_DEBUG", "counterpart", "0 or 1"),
    ("TORCH_NCCL_*", "TORCH_HCCL_*", "counterpart", "few have a twin: see torch_npu's list"),
    ("NCCL_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME", "counterpart", _HCCL),
    ("NCCL_BUFFSIZE", "HCCL_BUFFSIZE", "counterpart", "bytes for NCCL, megabytes for HCCL"),
    ("NCCL_ALGO", "HCCL_ALGO", "counterpart", _HCCL),
    (
        "NCCL_DEBUG*",
        "ASCEND_GLOBAL_LOG_LEVEL",
        "counterpart",
        "0 debug, 1 info, 2 warning, 3 error",
    ),
    ("NCCL_*", "", "ignored", "tunes NCCL; HCCL has settings of its own"),
)
_VARIABLES = {row[0]: Variable(*row) for row in _ROWS if not row[0].endswith("*")}
_PREFIXES = tuple(Variable(*row) for row in _ROWS if row[0].endswith("*"))


def variable(name: str) -> Variable | None:
    """Return what is known about a variable, or None."""
    known = _VARIABLES.get(name)
    if known is not None:
        return known
    family = next((one for one in _PREFIXES if name.startswith(one.name.rstrip("*"))), None)
    return replace(family, name=name) if family else None


def variables() -> tuple[Variable, ...]:
    """Return the whole table."""
    return (*_VARIABLES.values(), *_PREFIXES)
