"""Autocast with one operator table on every device."""

from __future__ import annotations

from accel.precision.autocast.context import checkpoint_contexts as checkpoint_contexts
from accel.precision.autocast.context import portable_autocast as portable_autocast
from accel.precision.autocast.context import recomputation as recomputation
from accel.precision.autocast.context import set_recomputation as set_recomputation
from accel.precision.autocast.table import TABLE as TABLE
from accel.precision.autocast.table import Treatment as Treatment

__all__ = [
    "TABLE",
    "Treatment",
    "checkpoint_contexts",
    "portable_autocast",
    "recomputation",
    "set_recomputation",
]
