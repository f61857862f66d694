"""From the arguments of a loss to the kernel that serves it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from accel.dispatch import chosen_for
from accel_kernels.contrastive_loss import OPERATION, SPECS
from accel_kernels.contrastive_loss.operators import register
from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import Passes

_OWN = frozenset(spec.name for spec in SPECS)


class Chosen(NamedTuple):
    """The kernel for a call: its name, by which operators of traced code find it, and itself."""

    name: str
    passes: Passes


def kernel_of_call(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    bias: float | Tensor | None,
    pairing: Pairing | None,
    kind: str,
    backend: str | None,
) -> Chosen:
    """Check a call of `contrastive_loss` and choose its kernel.

    Raises:
        TypeError: As `contrastive_loss`.
        ValueError: As `contrastive_loss`.
        accel.BackendError: The named backend, or every backend, cannot serve the call.
    """
    asked = OPERATION.request(x, y, scale=scale, bias=bias, pairing=pairing, kind=kind)
    found: tuple[str, Any] = chosen_for(asked, backend)
    name, passes = found
    if name not in _OWN:  # of a plugin, which the operators cannot load by themselves
        register(name, passes)
    return Chosen(name, passes)
