"""Which kernel every operator of torch_npu gets on the simulated chip.

Each kernel that torch_npu registers for its device is one of: *ours* (computed on the CPU),
*control* (allocation, views, metadata, collectives: torch_npu's own code, on the stand-in runtime)
or *raising* (no implementation: it names itself). `kinds()` lists them, and a test holds the list
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
    eight_bits,
    faithful,
    generic,
    memory,
    missing,
    poison,
    recurrent,
    scaled,
)
from accel.simulate.operators.generic import Kernel, Plan

DEVICE_KEY = "PrivateUse1"
AUTOGRAD_KEY = "AutogradPrivateUse1"
NAMESPACES = ("aten", "npu", "fsdp")  # c10d and npu_custom_dist: collectives, torch_npu's own

# What torch_npu does itself, on the runtime's memory, without computing.
CONTROL = frozenset({
    "aten::empty.memory_format", "aten::empty_strided", "aten::new_empty_strided",
    "aten::empty_like", "aten::as_strided", "aten::as_strided_", "aten::view",
    "aten::_reshape_alias", "aten::unfold", "aten::squeeze", "aten::squeeze.dim",
    "aten::unsqueeze", "aten::view_as_real", "aten::view_as_complex", "aten::resize_",
    "aten::resize_as_", "aten::set_", "aten::set_.source_Storage", "aten::set_.source_Tensor",
    "aten::set_.source_Storage_storage_offset", "aten::is_set_to", "aten::_local_scalar_dense",
    "aten::record_stream", "aten::is_pinned", "aten::_pin_memory", "aten::_to_copy",
    "npu::get_npu_format", "npu::get_storage_size", "npu::npu_change_data_ptr",
    "npu::set_op_timeout_ms", "npu::super_kernel_scope_begin", "npu::super_kernel_scope_end",
    "fsdp::all_gather_copy_in",
})  # fmt: skip
_NO_REFERENCE = "there is no CPU kernel and no reference in accel_kernels.vendor for it"

_libraries: dict[str, torch.library.Library] = {}
_kinds: dict[tuple[str, str], str] = {}
_kernels: dict[str, Kernel] = {}  # at the device key


def kinds() -> dict[tuple[str, str], str]:
    """(operator, dispatch key) to `ours`, `control` or `raising`."""
    return dict(_kinds)


def register(machine: Machine) -> None:
    """Give every operator that torch_npu registered its kernel on the simulated chip."""
    from accel_kernels.vendor.npu import REFERENCES

    memory.runtime().set_operator_handler(aclop.HANDLER)
    if not machine.profile.bfloat16:
        generic.unsupported_dtypes.add(torch.bfloat16)
    if not machine.profile.fp8:
        generic.unsupported_dtypes |= eight_bits.DTYPES
    eight_bits.install_casts()
    compute: dict[str, Kernel] = {
        **recurrent.COMPUTE,
        **missing.COMPUTE,
        **scaled.COMPUTE,
        **faithful.STATUS,
    }
    compute |= {f"npu::{name}": reference for name, reference in REFERENCES.items()}
    registered = _registered(DEVICE_KEY)
    # What torch's own derivatives call on an accelerator and torch_npu does without.
    extra = {name: find_operator(name) for name in (*compute, *autograd.HELPERS)}
    extra = {name: found for name, found in extra.items() if found is not None}
    for name, operator in (extra | registered).items():
        _register_for_device(name, operator, compute.get(name), machine)
    for name, operator in _registered(AUTOGRAD_KEY).items():
        if name.startswith("aten::"):
            _set(name, AUTOGRAD_KEY, autograd.make_kernel(operator))
    if machine.report or machine.strict:
        from accel.simulate.porting import observation

        observation.begin(machine, _kernels)


def _register_for_device(
    name: str, operator: Any, compute: Kernel | None, machine: Machine
) -> None:
    explicit = copies.KERNELS.get(name)
    if explicit is not None:
        _set(name, DEVICE_KEY, explicit)
    elif name in CONTROL:
        _kinds[name, DEVICE_KEY] = "control"
        if machine.poison and name in poison.OPERATORS:
            kernel = poison.make_kernel(operator, DEVICE_KEY)
            _library(name).impl(_rest(name), kernel, DEVICE_KEY, with_keyset=True)
    elif (reason := eight_bits.why_not(name, machine.profile)) is not None:
        _refuse(name, reason)
    elif compute is None and not _has_cpu(name):
        _refuse(name, _NO_REFERENCE)
    else:
        compute = eight_bits.restricted(name, compute, machine.profile)
        _set(name, DEVICE_KEY, generic.make_kernel(operator, compute, _adapter(machine)))


def _adapter(machine: Machine) -> Callable[[Plan, Kernel], Kernel] | None:
    if not machine.faithful:
        return None
    return lambda plan, run: faithful.adapt(plan, run, machine)


def find_operator(name: str) -> Any:
    """The operator of that name; None where torch_npu registers a name that has no schema."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return getattr(found, overload or "default", None) if found is not None else None


def _refuse(name: str, reason: str) -> None:
    """Register a kernel that raises and names the operator."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{name} is not available on the simulated Ascend: {reason}")

    _set(name, DEVICE_KEY, refuse)
    _kinds[name, DEVICE_KEY] = "raising"


def _set(name: str, key: str, kernel: Kernel) -> None:
    _kinds[name, key] = "ours"
    if key == DEVICE_KEY:
        _kernels[name] = kernel
    _library(name).impl(_rest(name), kernel, key)


def _library(name: str) -> torch.library.Library:
    """The registrations of this module in an operator's namespace; they last while it is kept."""
    namespace = name.split("::")[0]
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL")
    return _libraries[namespace]


def _rest(name: str) -> str:
    return name.split("::")[1]


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
