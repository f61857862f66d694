"""Environment variables that each vendor names its own way. No torch: they are read when it starts.

Sources: CUDA C++ Programming Guide, "CUDA Environment Variables"; PyTorch, "CUDA semantics"; Ascend
Extension for PyTorch, environment variable reference.
"""

from __future__ import annotations

import logging
import os

_logger = logging.getLogger("accel")

# What a setting is called on CUDA and on Ascend.
_TWINS = {
    "VISIBLE_DEVICES": ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"),
    "LAUNCH_BLOCKING": ("CUDA_LAUNCH_BLOCKING", "ASCEND_LAUNCH_BLOCKING"),
    # Not also PYTORCH_ALLOC_CONF, which both read: torch_npu refuses it beside its own.
    "ALLOC_CONF": ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NPU_ALLOC_CONF"),
}
# Options of the caching allocator that both know; torch_npu refuses any that it does not know.
_ALLOCATOR_OPTIONS = {"expandable_segments", "garbage_collection_threshold", "max_split_size_mb"}


def setenv(name: str, value: str | int | None, *, overwrite: bool = True) -> None:
    """Set an environment variable for every vendor that has one for the same purpose.

    Call it before the device is first used, and for ALLOC_CONF before torch is imported: this
    function imports none.

    Args:
        name: `VISIBLE_DEVICES`, `LAUNCH_BLOCKING` or `ALLOC_CONF`, or a vendor's name of one, such
            as `CUDA_VISIBLE_DEVICES` or `ASCEND_RT_VISIBLE_DEVICES`.
        value: For all of them; None removes them. What Ascend cannot read is left out there, with
            a warning: a GPU's UUID, and allocator options that only CUDA has.
        overwrite: False leaves everything as it is if one of them is set, as
            `os.environ.setdefault` does.

    Raises:
        ValueError: No such setting is known.
    """
    cuda, ascend = _twins(name)
    if not overwrite and (cuda in os.environ or ascend in os.environ):
        return
    for variable in (cuda, ascend):
        os.environ.pop(variable, None)
    if value is None:
        return
    os.environ[cuda] = str(value)
    readable = _for_ascend(ascend, str(value))
    if readable is not None:
        os.environ[ascend] = readable


def getenv(name: str, default: str | None = None) -> str | None:
    """Read an environment variable by whichever vendor's name it was set.

    Args:
        name: As in `setenv`; a vendor's own name is asked first.
        default: If none is set.

    Raises:
        ValueError: No such setting is known.
    """
    for variable in sorted(_twins(name), key=lambda twin: twin != name):
        if variable in os.environ:
            return os.environ[variable]
    return default


def _twins(name: str) -> tuple[str, str]:
    for setting, twins in _TWINS.items():
        if name == setting or name in twins:
            return twins
    known = ", ".join([*_TWINS, *(twin for twins in _TWINS.values() for twin in twins)])
    raise ValueError(
        f"{name!r} is not a variable that vendors share: one of {known}; use os.environ for others"
    )


def _for_ascend(name: str, value: str) -> str | None:
    """The value as Ascend reads it; None where nothing of it is left."""
    if name == "ASCEND_RT_VISIBLE_DEVICES":
        parts = [part.strip() for part in value.split(",")]
        readable = value == "" or all(part.removeprefix("-").isdecimal() for part in parts)
        left_out, kept = ("", value) if readable else (value, None)
    elif name == "PYTORCH_NPU_ALLOC_CONF":
        options = [option for option in value.split(",") if option.strip()]
        known = [o for o in options if o.partition(":")[0].strip() in _ALLOCATOR_OPTIONS]
        left_out = ",".join(option for option in options if option not in known)
        kept = ",".join(known) or None
    else:
        left_out, kept = "", value
    if left_out:
        _logger.warning("%s cannot take %r, which is left out of it", name, left_out)
    return kept
