"""The switches of torch_npu that change numbers.

torch_npu stores most of them as options by name, several with a setter only: those are read where
it reads them itself. Where none is set, the chip decides, which is known once the device is
initialised; so reading one initialises it.
"""

from __future__ import annotations

from typing import Any

import torch

from accel.devices.switch import Switch, attribute, pair

# From this id on torch_npu computes float32 products in float32 unless told otherwise.
_FIRST_A2 = 220
_KEEPS = "must_keep_origin_dtype"
_MAY_NARROW = "allow_fp32_to_fp16"

_CUBE_MATH_TYPES = {
    "unset": "",
    "keep_dtype": "0",
    "allow_fp32_down_precision": "1",
    "use_fp16": "2",
    "use_hf32": "3",
    "use_fp32_add": "4",
}


def _npu() -> Any:
    return getattr(torch, "npu")  # noqa: B009 - AttributeError without torch_npu


def _compiled() -> Any:
    """torch_npu's compiled module, its device initialised."""
    _npu().init()
    import torch_npu

    return torch_npu._C


def _option(name: str) -> str:
    """An option's value; empty where none was set."""
    value = _compiled()._npu_getOption(name)
    return "" if value is None else str(value.decode())


def _set_option(name: str, value: str) -> None:
    _compiled()._npu_setOption({name: value})


def _hf32(kind: str) -> Switch:
    switch = attribute(f"npu.{kind}", "allow_hf32")
    return Switch(lambda: bool(switch.get()), switch.set)


def _cube_math_type() -> str:
    value = _option("CUBE_MATH_TYPE")
    names = [name for name, number in _CUBE_MATH_TYPES.items() if number == value]
    return names[0] if names else value


def _set_cube_math_type(name: str) -> None:
    if name not in _CUBE_MATH_TYPES:
        raise ValueError(f"one of {', '.join(_CUBE_MATH_TYPES)} is allowed")
    _set_option("CUBE_MATH_TYPE", _CUBE_MATH_TYPES[name])


def _precision_mode() -> str:
    value = _option("ACL_PRECISION_MODE")
    if value in (_KEEPS, _MAY_NARROW):
        return value
    return _KEEPS if _compiled()._npu_get_soc_version() >= _FIRST_A2 else _MAY_NARROW


def _set_precision_mode(value: str) -> None:
    if value not in (_KEEPS, _MAY_NARROW):
        raise ValueError(f"one of {_KEEPS}, {_MAY_NARROW} is allowed")
    _set_option("ACL_PRECISION_MODE", value)


def _set_internal_format(value: bool) -> None:
    _set_option("ALLOW_INTERNAL_FORMAT", "enable" if value else "disable")


def _set_jit_compile(value: bool) -> None:
    _npu().set_compile_mode(jit_compile=value)


SWITCHES: dict[str, Switch] = {
    "npu_matmul_hf32": _hf32("matmul"),
    "npu_conv_hf32": _hf32("conv"),
    "npu_cube_math_type": Switch(_cube_math_type, _set_cube_math_type),
    "npu_precision_mode": Switch(_precision_mode, _set_precision_mode),
    "npu_jit_compile": Switch(lambda: not _npu().is_jit_compile_false(), _set_jit_compile),
    "npu_internal_format": Switch(
        # torch_npu's own rule: forbidden only if it says so.
        lambda: _option("ALLOW_INTERNAL_FORMAT") != "disable",
        _set_internal_format,
    ),
    "npu_compatible_impl": pair("npu", "are_compatible_impl_enabled", "use_compatible_impl"),
    # Its Python setter would also turn torch's own deterministic flag on or off, and warn.
    "npu_deterministic_level": Switch(
        lambda: int(_compiled()._npu_get_deterministic_level()),
        lambda value: _compiled()._npu_set_deterministic_level(value),
    ),
}
