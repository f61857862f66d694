"""Which kernel every operator of torch_npu gets on the simulated chip.

Each kernel that torch_npu registers for its device is one of: *ours* (computed on the CPU), *control*
(allocation, views, metadata, collectives: torch_npu's own code, on the stand-in runtime) or
*raising* (no implementation: it names itself). `kinds()` lists them, and a test holds the list
complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from accel.simulate.machine import Machine
from accel.simulate.operators import (
    aclop,
    autograd,
    copies,
    generic,
    memory,
    missing,
    recurrent,
)

DEVICE_KEY = "PrivateUse1"
AUTOGRAD_KEY = "AutogradPrivateUse1"
NAMESPACES = ("aten", "npu", "fsdp")  # c10d and npu_custom_dist: collectives, torch_npu's own

# What torch_npu does itself, on the runtime's memory, without computing.
CONTROL = frozenset(
    """
    aten::empty.memory_format aten::empty_strided aten::empty_with_swapped_memory
    aten::_empty_affine_quantized aten::new_empty_strided aten::empty_like
    aten::as_strided aten::view aten::_reshape_alias aten::alias aten::unfold aten::_unsafe_view
    aten::view_as_real aten::view_as_complex aten::squeeze aten::squeeze.dim aten::unsqueeze
    aten::as_strided_ aten::resize_ aten::resize_as_ aten::set_ aten::set_.source_Storage aten::set_.source_Tensor
    aten::set_.source_Storage_storage_offset aten::is_set_to aten::set_data
    aten::_local_scalar_dense aten::record_stream aten::is_pinned aten::_pin_memory
    aten::pin_memory aten::_to_copy
    npu::get_npu_format npu::get_storage_size npu::npu_change_data_ptr npu::set_op_timeout_ms
    npu::super_kernel_scope_begin npu::super_kernel_scope_end
    fsdp::all_gather_copy_in
    """.split()
)

Kernel = Callable[..., Any]
_libraries: dict[str, torch.library.Library] = {}
_kinds: dict[tuple[str, str], str] = {}


def kinds() -> dict[tuple[str, str], str]:
    """(operator, dispatch key) to `ours`, `control` or `raising`."""
    return dict(_kinds)


def register(machine: Machine) -> None:
    """Give every operator that torch_npu registered its kernel on the simulated chip."""
    try:
        from accel_kernels.vendor.npu import REFERENCES
    except ImportError: REFERENCES={}

    memory.runtime().set_operator_handler(aclop.HANDLER)
    compute: dict[str, Kernel] = {**recurrent.COMPUTE, **missing.COMPUTE}
    compute |= {f"npu::{name}": reference for name, reference in REFERENCES.items()}
    explicit = copies.kernels()
    registered = _registered(DEVICE_KEY)
    for name, operator in registered.items():
        _set(name, DEVICE_KEY, _device_kernel(name, operator, explicit, compute))
    for name in compute.keys() - registered.keys():
        if (found := find_operator(name)) is not None:
            _set(name, DEVICE_KEY, generic.make_kernel(found, compute[name]))
    for name, operator in _registered(AUTOGRAD_KEY).items():
        if name.startswith("aten::"):
            _set(name, AUTOGRAD_KEY, autograd.make_kernel(operator))


def find_operator(name: str) -> Any:
    """The operator of that name; None where torch_npu registers a name that has no schema."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return getattr(found, overload or "default", None) if found is not None else None


def _device_kernel(
    name: str, operator: Any, explicit: dict[str, Kernel], compute: dict[str, Kernel]
) -> Kernel | None:
    """The kernel for the device key; None to leave torch_npu's own."""
    if name in explicit:
        return explicit[name]
    if name in CONTROL:
        return None
    if name in compute:
        return generic.make_kernel(operator, compute[name])
    return generic.make_kernel(operator) if _has_cpu(name) else _refusal(name)


def _refusal(name: str) -> Kernel:
    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            f"{name} has no implementation on the simulated Ascend: the real torch_npu has this "
            "operator, but there is no CPU kernel and no reference in accel_kernels.vendor for it"
        )

    refuse.__name__ = f"no {name}"
    return refuse


def _set(name: str, key: str, kernel: Kernel | None) -> None:
    if kernel is None:
        _kinds[name, key] = "control"
        return
    _kinds[name, key] = "raising" if kernel.__name__ == f"no {name}" else "ours"
    namespace, _, rest = name.partition("::")
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL")
    _libraries[namespace].impl(rest, kernel, key)


def _registered(key: str) -> dict[str, Any]:
    """The operators of our namespaces that torch_npu registers at a key, in order of name."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    ours = sorted(name for name in names if name.split("::")[0] in NAMESPACES)
    found = {name: find_operator(name) for name in ours}
    return {name: operator for name, operator in found.items() if operator is not None}


def _has_cpu(name: str) -> bool:
    keys = (
        "CPU", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional",
        "CompositeImplicitAutograd",
    )  # fmt: skip
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)
