"""`torch.cuda.amp` for whatever device is current. On a CPU it stays disabled, as it was there.

`torch.autocast("cuda")` and `GradScaler("cuda")` do nothing on a machine without CUDA, while
`torch.autocast("cpu")` computes in bfloat16 and `GradScaler("cpu")` multiplies by 65536. A program
that is moved to these functions keeps its numbers on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from accel.devices.choice import acting_device, current_family


def autocast(
    enabled: bool | torch.dtype = True,
    dtype: torch.dtype | bool | None = None,
    cache_enabled: bool | None = None,
    *,
    enabled_on_cpu: bool = False,
) -> torch.autocast:
    """`torch.autocast` for the current device; on a CPU disabled.

    Takes the arguments of `torch.cuda.amp.autocast`, and those that follow the device type in
    `torch.autocast`: `autocast(torch.bfloat16)` is `autocast(dtype=torch.bfloat16)`. It is a block
    and a decorator; the device is that of the moment when this function is called.

    Args:
        enabled: Whether it casts.
        dtype: What it casts to; by default the device's (`torch.get_autocast_dtype`): float16 on
            CUDA and Ascend.
        cache_enabled: Whether casts of parameters are kept; by default as torch is set.
        enabled_on_cpu: Cast on a CPU too, by default to bfloat16. Else an autocast of CUDA's is
            returned there, disabled, so that one of the CPU's around it stays in force.

    Raises:
        TypeError: A device type was given, or `dtype` is none.
    """
    if isinstance(enabled, torch.dtype):  # torch.autocast has dtype before enabled
        enabled, dtype = (True if dtype is None else dtype), enabled
    if isinstance(enabled, str) or not (dtype is None or isinstance(dtype, torch.dtype)):
        raise TypeError(
            f"autocast takes enabled as a bool and dtype as a torch.dtype, not {enabled!r} and "
            f"{dtype!r}; the device type is left out"
        )
    kind = _amp_device_type(enabled_on_cpu)
    usable = bool(enabled) and (enabled_on_cpu or current_family().family != "cpu")
    return torch.autocast(kind, dtype=dtype, enabled=usable, cache_enabled=cache_enabled)


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler` for the current device; on a CPU disabled.

    Its arguments are those of `torch.cuda.amp.GradScaler`. Disabled it returns losses as they are,
    and `step` is the optimizer's. On a chip that saturates (first-generation Ascend), where an
    overflow leaves no infinity in the gradients, it also asks the chip's overflow flag.

    Args:
        init_scale: The factor to begin with.
        growth_factor: What it is multiplied by after `growth_interval` steps without overflow.
        backoff_factor: What it is multiplied by after an overflow.
        growth_interval: Steps.
        enabled: False disables it everywhere.
        enabled_on_cpu: Scale on a CPU too.

    Raises:
        TypeError: A device type was given first, as to `torch.amp.GradScaler`.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        enabled_on_cpu: bool = False,
    ) -> None:
        if isinstance(init_scale, str):
            raise TypeError(
                f"GradScaler takes init_scale first; leave out the device {init_scale!r}"
            )
        self._chip = acting_device()
        self._flag_is_clear = False
        super().__init__(
            self._chip.torch_type,
            init_scale=init_scale,
            growth_factor=growth_factor,
            backoff_factor=backoff_factor,
            growth_interval=growth_interval,
            enabled=enabled and (enabled_on_cpu or self._chip.family != "cpu"),
        )

    def scale(self, outputs: Any) -> Any:
        """Multiply a loss, or each in a list, by the factor."""
        if self.is_enabled() and not self._flag_is_clear:
            self._chip.clear_overflow()
            self._flag_is_clear = True
        return super().scale(outputs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Adjust the factor after a step."""
        super().update(new_scale)
        self._flag_is_clear = False

    def _unscale_grads_(self, *arguments: Any, **keywords: Any) -> dict[torch.device, torch.Tensor]:
        # Where torch gathers whether gradients were infinite, by device; `step` skips if one was.
        found = super()._unscale_grads_(*arguments, **keywords)
        overflow = self._chip.overflow()
        if overflow is not None:
            for flag in found.values():
                flag.copy_(torch.maximum(flag, overflow.to(flag)))
        return found


def custom_fwd(
    fwd: Callable[..., Any] | None = None, *, cast_inputs: torch.dtype | None = None
) -> Callable[..., Any]:
    """Decorator for `forward` of an `autograd.Function` under `autocast`; see `torch.amp`.

    On a CPU it follows CUDA's autocast, which is never on there, as `torch.cuda.amp.custom_fwd`.

    Args:
        fwd: The function; None if used with arguments.
        cast_inputs: Under autocast, cast floating-point tensors on the device to it first, and run
            `fwd` with autocast off.
    """
    decorated: Callable[..., Any] = torch.amp.custom_fwd(
        fwd, device_type=_amp_device_type(False), cast_inputs=cast_inputs
    )
    return decorated


def custom_bwd(bwd: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for the `backward` of a `custom_fwd`: autocast is as it was in the forward.

    On a CPU nothing, as with `custom_fwd`.
    """
    decorated: Callable[..., Any] = torch.amp.custom_bwd(bwd, device_type=_amp_device_type(False))
    return decorated


def _amp_device_type(on_cpu: bool) -> str:
    """Whose autocast: CUDA's on a CPU, where it is never on, unless the CPU's is asked for."""
    kind = current_family().torch_type
    return "cuda" if kind == "cpu" and not on_cpu else kind
