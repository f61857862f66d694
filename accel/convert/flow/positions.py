"""Which arguments of which calls are devices."""

from __future__ import annotations

import ast
import re
from typing import Literal

from accel.convert.module import Module

Position = Literal["device", "device_type", "device_list", "foreign", "kind"]

# What torch itself takes for a device's name; an index may follow.
_STRING = re.compile(r"(cuda|npu|xpu|mps|hpu|mlu|musa|cpu|meta|xla|privateuseone)(:\d+)?")
_LIKE = re.compile(
    r"(?:^|_)dev$|device(?:_?(?:type|str|string|default))?$|^default_device|"
    r"(?:^|_)devices$",
    re.IGNORECASE,
)
_ONE = re.compile(r"(?:^|_)dev$|device(?:_?(?:type|str|string))?$", re.IGNORECASE)

# By the function's full name: the places of devices among its positional arguments.
_BY_PLACE: dict[str, tuple[int, ...]] = {
    "torch.device": (0,),
    "torch.load": (1,),
    "torch.jit.load": (1,),
    "torch.hub.load_state_dict_from_url": (2,),
    "torch.utils.model_zoo.load_url": (2,),
    "torch.Generator": (0,),
    "torch.set_default_device": (0,),
    "torch.accelerator.set_device_index": (0,),
    "torch.accelerator.set_device_idx": (0,),
}
# Functions of torch.cuda whose first argument is a device.
_CUDA_FIRST = frozenset(
    {
        "set_device", "device", "synchronize", "current_stream", "default_stream", "Stream",
        "get_device_name", "get_device_properties", "get_device_capability", "mem_get_info",
        "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved",
        "memory_cached", "max_memory_cached", "memory_stats", "memory_summary", "utilization",
        "reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached",
        "reset_accumulated_memory_stats", "get_rng_state", "memory_usage", "temperature",
        "can_device_access_peer", "power_draw", "clock_rate", "list_gpu_processes",
    }
)  # fmt: skip
# Functions of torch that want a device's type, a string without an index.
_TYPES = frozenset(
    {
        "torch.autocast", "torch.amp.autocast", "torch.amp.GradScaler", "torch.amp.custom_fwd",
        "torch.amp.custom_bwd", "torch.amp.autocast_mode.autocast",
        "torch.amp.grad_scaler.GradScaler", "torch.is_autocast_enabled",
        "torch.get_autocast_dtype", "torch.set_autocast_dtype", "torch.set_autocast_enabled",
        "torch.distributed.device_mesh.init_device_mesh", "torch.distributed.init_device_mesh",
        "torch.distributed.device_mesh.DeviceMesh",
    }
)  # fmt: skip
# Modules of torch in which a device's type is a kind of code.
_ABOUT_CODE = ("torch.utils.cpp_extension.", "torch.testing.", "torch._inductor.", "torch._dynamo.")
_KEYWORDS = frozenset({"device", "map_location", "device_map", "output_device", "torch_device"})
_METHODS = frozenset({"to", "cuda", "to_empty"})
# Packages that are not built on torch, and call a device `cuda`: a file with one may mean theirs.
_DEVICE_PACKAGES = frozenset(
    {
        "xgboost", "lightgbm", "catboost", "ctranslate2", "faster_whisper", "jax", "tensorflow",
        "cuml", "paddle", "mxnet", "tvm", "warp", "llama_cpp", "tinygrad",
    }
)  # fmt: skip
# Of these too a device argument is their own matter; but their import says nothing of the rest of a
# file, as nearly every file has numpy.
_FOREIGN = _DEVICE_PACKAGES | {
    "onnxruntime", "onnx", "faiss", "jaxlib", "flax", "cupy", "numba", "cudf", "openvino",
    "tensorrt", "keras", "pycuda", "cv2", "numpy", "pandas", "taichi", "dali", "nvidia",
}  # fmt: skip


def is_device_string(text: object) -> bool:
    """Whether a value is a string that torch takes for a device, such as `cuda:1` or `cpu`."""
    return isinstance(text, str) and _STRING.fullmatch(text) is not None


def device_like(name: str) -> bool:
    """Whether a variable, parameter or option of this name is meant to be a device."""
    return _LIKE.search(name) is not None


def named_device(name: str) -> bool:
    """Whether a name says that it holds one device (and not several, nor a device's number)."""
    return _ONE.search(name) is not None


def is_device_position(module: Module, node: ast.AST) -> bool:
    """Whether an expression stands where a call takes a device."""
    parent = module.parent(node)
    if isinstance(parent, ast.keyword):
        call = module.parent(parent)
        return isinstance(call, ast.Call) and position(module, call, parent.arg or "") == "device"
    if isinstance(parent, ast.Call) and node in parent.args:
        return position(module, parent, parent.args.index(node)) == "device"
    return False


def uses_foreign(module: Module) -> bool:
    """Whether a file uses a package that has devices called cuda and is not built on torch."""
    names = [alias.name for node in module.all(ast.Import) for alias in node.names]
    names += [node.module or "" for node in module.all(ast.ImportFrom) if not node.level]
    return any(name.partition(".")[0] in _DEVICE_PACKAGES for name in names)


def is_location(module: Module, node: ast.AST) -> bool:
    """Whether an expression is the `map_location` of a call."""
    parent = module.parent(node)
    if isinstance(parent, ast.keyword):
        return parent.arg == "map_location"
    if isinstance(parent, ast.Call) and node in parent.args[1:2]:
        return module.qualified(parent.func) in ("torch.load", "torch.jit.load")
    return False


def position(module: Module, call: ast.Call, where: int | str) -> Position | None:
    """What a call takes at a place, given by number or keyword; None if unknown.

    `foreign` is a device of a package that is not built on torch; `kind` is a `device_type` of
    a function of which nothing is known: there it often is a kind of code, and no place.
    """
    name = module.qualified(call.func) or ""
    if name.partition(".")[0] in _FOREIGN:
        return "foreign" if isinstance(where, str) and device_like(where) else None
    if name in _TYPES and where in (0, "device_type", "device"):
        return "device_type"
    if where == "device_type":
        return "device_type" if _takes_type(module, call, name) else "kind"
    if where == "device_ids":
        return "device_list"
    if isinstance(where, str):
        if name == "builtins.dict":
            return None  # an entry of a table
        if where == "type" and name == "torch.device":
            return "device"
        return "device" if where in _KEYWORDS else None
    if where in _BY_PLACE.get(name, ()):
        return "device"
    head, _, leaf = name.rpartition(".")
    if head == "torch.cuda" and leaf in _CUDA_FIRST and where == 0:
        return "device"
    if name.startswith("torch.") and _is_torch_function(name):
        return None
    if isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS and where == 0:
        return "device"
    return None


def _is_torch_function(name: str) -> bool:
    """A plain function of torch, and not a method of something that an import gave."""
    return not name.endswith((".to", ".cuda", ".to_empty"))


def _takes_type(module: Module, call: ast.Call, name: str) -> bool:
    """Whether the `device_type` of a function is the type of the device that a program runs on.

    It is so for torch's functions but those about code to build or to test, and for the tree's own
    but wrappers of autocast, which another device would switch on where it was off.
    """
    if name.startswith("torch."):
        return not name.startswith(_ABOUT_CODE)
    func = call.func
    leaf = func.attr if isinstance(func, ast.Attribute) else name.rpartition(".")[2]
    is_own = leaf in module.project.names and not leaf.startswith("__")
    return is_own and "autocast" not in leaf
