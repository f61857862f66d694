"""The region in which the table holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from accel.precision.autocast.kernels import MARK, active, install

LOWER_DTYPES = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def portable_autocast(
    device_type: str, dtype: torch.dtype = torch.bfloat16, enabled: bool = True
) -> Iterator[None]:
    """`torch.autocast` with the same treatment of every operator on every device.

    What computes in which dtype is in `table.TABLE`; it does not depend on the device, and nor does
    the default dtype. It is torch's own autocast beneath: `torch.is_autocast_enabled` is true, the
    cache of cast weights is torch's, `torch.autocast(..., enabled=False)` inside turns it off, and
    code compiled by `torch.compile(fullgraph=True)` may enter it or be called in it. It is a
    decorator too, and holds in the thread that enters it.

    Args:
        device_type: `cpu`, `cuda`, `npu`: of the tensors that are treated.
        dtype: bfloat16 or float16; ignored where not `enabled`.
        enabled: False computes in the dtypes that the operands have.

    Raises:
        ValueError: The dtype is neither.
        RuntimeError: torch knows no autocast on that device, or not in that dtype.
    """
    if not enabled:
        with torch.autocast(device_type, enabled=False):
            yield
        return
    if dtype not in LOWER_DTYPES:
        raise ValueError(
            f"portable_autocast computes in torch.bfloat16 or torch.float16, not in {dtype}; for "
            "float32 pass enabled=False"
        )
    install(device_type)
    with torch.autocast(device_type, dtype=dtype), torch.autocast(MARK, dtype=torch.bfloat16):
        if not torch.is_autocast_enabled(device_type):  # torch has only warned
            raise RuntimeError(
                f"torch does not autocast to {dtype} on {device_type} here: choose another dtype "
                "or device"
            )
        yield


@contextlib.contextmanager
def recomputation(enabled: bool = True) -> Iterator[None]:
    """The block for a backward of what was computed in a portable region.

    What checkpointing computes a second time in it, under the autocast that it restores, is
    computed by the table too. `Precision.backward` enters it.

    Args:
        enabled: False does nothing.
    """
    with torch.autocast(MARK, dtype=torch.bfloat16) if enabled else contextlib.nullcontext():
        yield


def set_recomputation(enabled: bool) -> None:
    """Enter or leave `recomputation` in this thread, for who cannot put a block around it."""
    torch.set_autocast_dtype(MARK, torch.bfloat16)
    torch.set_autocast_enabled(MARK, enabled)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[object]]:
    """For `torch.utils.checkpoint.checkpoint(..., context_fn=checkpoint_contexts)`.

    Checkpointing computes a second time in the backward, under the autocast of the forward, but not
    in its portable region; this brings the recomputation into it, as `recomputation` around the
    backward does. Where the forward is in none, it does nothing. Code under `torch.compile` needs
    it not, and takes none.
    """
    again = torch.autocast(MARK, dtype=torch.bfloat16) if active() else contextlib.nullcontext()
    return contextlib.nullcontext(), again
