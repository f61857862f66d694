"""Kernels that bring a device's autocast to the table, while a portable region is entered.

torch's dispatcher passes every operator through the device's autocast key while autocast is on:
before autograd, so that casts are differentiated; inside composite operators; under torch.compile.
Where the device has no kernel there, or one that differs from the table, `install` registers one.
Outside of a portable region it does what was there before.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.precision.autocast.table import (
    BY_OTHER_MEANS,
    COMPOSITES,
    DISAGREES,
    TABLE,
    Treatment,
)

# A portable region turns the autocast of this type on too, which no tensor here has: its state is
# torch's own, which torch.compile guards, traces and keeps in the keys of its caches.
MARK = "ipu"

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_Operator = torch._ops.OpOverload
_Kernel = Callable[..., Any]

_logger = logging.getLogger("accel")
_installed: dict[str, torch.library.Library] = {}
_lock = threading.Lock()


def active() -> bool:
    """Whether this thread is in a portable region."""
    return torch.is_autocast_enabled(MARK)


def find_operator(name: str) -> torch._ops.OpOverload | None:
    """The overload of a name of the table; None where this torch does not have it."""
    base, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, base, None)
    return None if packet is None else getattr(packet, overload or "default", None)


def autocast_key(device_type: str) -> str:
    """Name of the dispatch key of a device's autocast."""
    if device_type == torch._C._get_privateuse1_backend_name():
        return "AutocastPrivateUse1"
    special = {"cpu": "CPU", "cuda": "CUDA"}
    return f"Autocast{special.get(device_type, device_type.upper())}"


def install(device_type: str) -> bool:
    """Register what the device lacks; the second time, nothing. Returns whether it was the first.

    It stays for the life of the process: what it costs outside of portable regions is one call of
    a Python function for each of these operators, under autocast only.
    """
    if not torch.amp.is_autocast_available(device_type):
        raise RuntimeError(f"torch has no autocast for {device_type!r}")
    with _lock:
        if device_type in _installed:
            return False
        library = torch.library.Library("aten", "IMPL")
        key = autocast_key(device_type)
        with warnings.catch_warnings():
            # That a kernel of torch's own is replaced is meant.
            warnings.filterwarnings("ignore", message=r"(?s).*verriding a previously registered")
            for name, treatment in TABLE.items():
                operator = find_operator(name)
                if operator is not None and _wanted(operator, name, device_type, key):
                    kernel = _kernel(operator, treatment, device_type, key)
                    library.impl(operator, kernel, key, with_keyset=True)
        _tag_caches()
        _installed[device_type] = library
    return True


# Under torch.compile it runs while the code is traced, as `torch.compiler.assume_constant_result`
# would have it, which imports the whole compiler.
install._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _tag_caches() -> None:
    """Put the table into the keys of torch's compile caches, which outlive this version of it."""
    import torch.compiler.config as config

    digest = hashlib.sha256(repr(sorted((k, v.name) for k, v in TABLE.items())).encode())
    tag = f"accel-autocast-{digest.hexdigest()[:16]}"
    if tag not in config.cache_key_tag:
        config.cache_key_tag += tag


def _wanted(operator: _Operator, name: str, device_type: str, key: str) -> bool:
    if name in COMPOSITES or name in BY_OTHER_MEANS.get(device_type, ()):
        return False
    present = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key)
    if TABLE[name] is Treatment.OPERANDS:
        return present
    everywhere = TABLE[name] in (Treatment.WIDEST, Treatment.REFUSED)
    replaced = everywhere or name in DISAGREES.get(device_type, ())
    return replaced or not present


def _kernel(operator: _Operator, treatment: Treatment, device_type: str, key: str) -> _Kernel:
    """A kernel of the dispatcher: gets the keys of the call, then its arguments."""
    before = _before(operator, key)
    prepare = _preparation(operator, treatment, device_type)
    call = operator._op
    enabled, enable = torch.is_autocast_enabled, torch.set_autocast_enabled
    in_backward = torch._C._current_graph_task_id

    def kernel(keys: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if not enabled(MARK):
            if in_backward() >= 0 and not _told:
                _tell()
            return before(keys, *args, **kwargs)
        # As the kernels in C++: what the operator itself calls is left alone.
        enable(device_type, False)
        try:
            args, kwargs = prepare(args, kwargs)
            return call(*args, **kwargs)
        finally:
            enable(device_type, True)

    return kernel


_told: list[bool] = []


def _tell() -> None:
    """Say once what a recomputation would do in silence."""
    _told.append(True)
    _logger.warning(
        "a backward computes under torch.autocast outside of a portable region: if it recomputes "
        "activations of one (activation checkpointing), pass "
        "context_fn=accel.precision.autocast.checkpoint_contexts to checkpoint()"
    )


def _before(operator: _Operator, key: str) -> _Kernel:
    """What the dispatcher did here before: the device's kernel, or else to pass on."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key):
        native = torch.library.get_kernel(operator, key)
        call: _Kernel = native.call_boxed
        return call
    below = torch._C._dispatch_keyset_full_after(getattr(torch._C.DispatchKey, key))
    redispatch = operator._handle.redispatch_boxed
    return lambda keys, *args, **kwargs: redispatch(keys & below, *args, **kwargs)


def _preparation(
    operator: _Operator, treatment: Treatment, device_type: str
) -> Callable[[tuple[Any, ...], dict[str, Any]], Arguments]:
    if treatment is Treatment.FLOAT32_RESULT:
        return _asking_for_float32(operator, device_type)

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if treatment is Treatment.OPERANDS:
            return args, kwargs
        if treatment is Treatment.REFUSED:
            raise ValueError(_REFUSAL.format(operator.overloadpacket.__name__))
        if treatment is Treatment.FLOAT32:
            dtype = torch.float32
        else:
            dtype = torch.get_autocast_dtype(device_type)
            if treatment is Treatment.WIDEST:
                dtype = _widest(dtype, (args, kwargs), device_type)
        # Half of the calls have no keywords, and most operands need no cast.
        cast = tuple(_cast(value, dtype, device_type) for value in args)
        if kwargs:
            kwargs = {name: _cast(value, dtype, device_type) for name, value in kwargs.items()}
        return cast, kwargs

    return prepare


_REFUSAL = (
    "{} is not safe under autocast, because the sigmoid before it is computed in 16 bits: use "
    "binary_cross_entropy_with_logits (nn.BCEWithLogitsLoss) without the sigmoid, or call it with "
    "float32 in torch.autocast(..., enabled=False)"
)


def _eligible(value: Any, device_type: str) -> bool:
    if not isinstance(value, Tensor):
        return False
    dtype = value.dtype
    return (
        dtype.is_floating_point and dtype is not torch.float64 and value.device.type == device_type
    )


def _cast(value: Any, dtype: torch.dtype, device_type: str) -> Any:
    if isinstance(value, Tensor):
        if value.dtype is not dtype and _eligible(value, device_type):
            return value.to(dtype)
        return value
    if isinstance(value, (list, tuple)):
        return [_cast(item, dtype, device_type) for item in value]
    return value


def _widest(dtype: torch.dtype, value: Any, device_type: str) -> torch.dtype:
    """The dtype that holds `dtype` and every operand; of float16 and bfloat16, float32."""
    if _eligible(value, device_type):
        return torch.promote_types(dtype, value.dtype)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return dtype
    for item in value:
        dtype = _widest(dtype, item, device_type)
    return dtype


def _asking_for_float32(
    operator: _Operator, device_type: str
) -> Callable[[tuple[Any, ...], dict[str, Any]], Arguments]:
    names = [argument.name for argument in operator._schema.arguments]
    place = names.index("dtype")

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if not _eligible(args[0], device_type):
            return args, kwargs
        if len(args) > place:
            asked = args[place]
            args = (*args[:place], torch.float32 if asked is None else asked, *args[place + 1 :])
        elif kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": torch.float32}
        return args, kwargs

    return prepare
