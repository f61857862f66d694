"""Which kernel every operator of torch_npu gets on the simulated chip.

Each kernel that torch_npu registers for its device is one of: *ours* (computed on the CPU), *control*
(allocation, views, copies of metadata: torch_npu's own code, on the stand-in runtime) or *raising*
(no implementation: it names itself). `kinds()` lists them, and a test holds the list complete.
"""

from __future__ import annotations

from typing import Any

import torch

from accel.simulate.machine import Machine
from accel.simulate.operators import copies, generic

DEVICE_KEY = "PrivateUse1"
AUTOGRAD_KEY = "AutogradPrivateUse1"
_libraries: list[torch.library.Library] = []
_kinds: dict[tuple[str, str], str] = {}

# What torch_npu does itself, on the runtime's memory, without computing.
CONTROL = frozenset(
    """
    aten::empty.memory_format aten::empty_strided aten::empty_with_swapped_memory
    aten::_empty_affine_quantized aten::new_empty_strided aten::empty_like
    aten::as_strided aten::view aten::_reshape_alias aten::alias aten::unfold aten::_unsafe_view
    aten::view_as_real aten::view_as_complex aten::squeeze aten::squeeze.dim aten::unsqueeze
    aten::resize_ aten::resize_as_ aten::set_ aten::set_.source_Storage aten::set_.source_Tensor
    aten::set_.source_Storage_storage_offset aten::is_set_to aten::set_data
    aten::_local_scalar_dense aten::record_stream aten::is_pinned aten::_pin_memory
    aten::pin_memory aten::_to_copy aten::_has_compatible_shallow_copy_type
    aten::storage_offset aten::stride aten::size aten::numel
    """.split()
)


def kinds() -> dict[tuple[str, str], str]:
    """(operator, dispatch key) to `ours`, `control` or `raising`."""
    return dict(_kinds)


def register(machine: Machine) -> None:
    """Give every operator that torch_npu registered its kernel."""
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    explicit = copies.kernels()
    for name in _registered(DEVICE_KEY, "aten"):
        operator = find_operator(name)
        if operator is None:
            continue
        kernel = explicit.get(name)
        if kernel is None and name in CONTROL:
            _kinds[name, DEVICE_KEY] = "control"
            continue
        if kernel is None and _has_cpu(name):
            kernel = generic.make_kernel(operator)
        if kernel is None:
            _kinds[name, DEVICE_KEY] = "raising"
            continue
        _kinds[name, DEVICE_KEY] = "ours"
        library.impl(name.removeprefix("aten::"), kernel, DEVICE_KEY)


def find_operator(name: str) -> Any:
    """The operator of that name; None where torch_npu registers a name that has no schema."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return getattr(found, overload or "default", None) if found is not None else None


def _registered(key: str, namespace: str) -> list[str]:
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return sorted(name for name in names if name.startswith(f"{namespace}::"))


def _has_cpu(name: str) -> bool:
    keys = (
        "CPU", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional",
        "CompositeImplicitAutograd",
    )  # fmt: skip
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)
