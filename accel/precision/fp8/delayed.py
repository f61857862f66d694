"""The end of a step for delayed scaling: this step's largest magnitudes enter the histories.

Micikevicius et al., arXiv 2209.05433, section 4; TransformerEngine's `DelayedScaling` with
`amax_compute_algo="max"`, except that a tensor is scaled by its own magnitude while there is no
history, where TransformerEngine takes a scale of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from accel.precision.fp8.state import LinearState

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.no_grad()
def advance(
    states: Iterable[LinearState], group: ProcessGroup | None = None, *, reduce: bool = True
) -> None:
    """Close the step of these layers; once per optimizer step, whatever was accumulated in it.

    Args:
        states: Of all converted layers, in the same order on every rank.
        group: Ranks that share their scales; None: all.
        reduce: Take the largest magnitude over the ranks, where there are several: they then scale
            alike. The largest is exact, so the order of ranks does not matter.
    """
    delayed = [
        (state, role) for state in states for role in state.history if state.history[role].numel()
    ]
    if not delayed:
        return
    pending = [state.pending[role] for state, role in delayed]
    if reduce and distributed.is_available() and distributed.is_initialized():
        _reduce(pending, group)
    histories = [state.history[role] for state, role in delayed]
    places = [
        history[state.steps % history.shape[0]]
        for (state, _), history in zip(delayed, histories, strict=True)
    ]
    torch._foreach_copy_(places, pending)
    supposed = [state.supposed[role] for state, role in delayed]
    torch._foreach_copy_(supposed, torch._foreach_max(histories))
    torch._foreach_zero_(pending)
    for state in {id(state): state for state, _ in delayed}.values():
        state.steps += 1


def _reduce(pending: list[Tensor], group: ProcessGroup | None) -> None:
    together = torch.stack([one.to(pending[0].device) for one in pending])
    distributed.all_reduce(together, distributed.ReduceOp.MAX, group=group)
    torch._foreach_copy_(pending, list(together.unbind()))
