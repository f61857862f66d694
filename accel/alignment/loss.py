"""The public loss call: check, choose a kernel, run it, take the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from accel.alignment.choice import Chosen, kernel_of_call
from accel.alignment.options import check_choice, check_direction
from accel.alignment.pairing import aligned_pairs, partner_similarities
from accel.alignment.ranks.forms import Form, Ranks, agreed_gradient
from accel.alignment.ranks.global_batch import (
    global_sigmoid_sum,
    global_softmax_sums,
    sum_over_ranks,
)
from accel_kernels.contrastive_loss.arguments import accumulation_dtype
from accel_kernels.contrastive_loss.differentiable import sigmoid_sum, softmax_sums
from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup

Kind = Literal["softmax", "sigmoid"]
Direction = Literal["both", "x_to_y", "y_to_x"]
KINDS: tuple[Kind, ...] = ("softmax", "sigmoid")
DIRECTIONS: tuple[Direction, ...] = ("both", "x_to_y", "y_to_x")


def contrastive_loss(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor | None = None,
    kind: Kind = "softmax",
    direction: Direction = "both",
    pairing: Pairing | None = None,
    form: Form = "local",
    process_group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Contrastive loss of two sets of embeddings, exact, in memory linear in their number.

    `softmax` is InfoNCE as in CLIP (arXiv 2103.00020, section 2.3): the mean over anchors of the
    log-sum-exp of an anchor's logits minus the mean logit of its positives. With one positive each
    that is cross-entropy; with several, their mean (SupCon, arXiv 2004.11362, equation 2). `both`
    is the mean of the two directions. `sigmoid` is SigLIP (arXiv 2303.15343, section 3.2): the sum
    over all pairs of `softplus(-z (scale * similarity + bias))`, z 1 for positives and -1 for
    negatives, divided by the number of present rows of x.

    Neither keeps a matrix of logits: they are computed tile by tile, by the softmax once more in
    the backward.

    Args:
        x: `[N, D]`, float64, float32, bfloat16 or float16. Used as it is: normalise it first for
            cosines.
        y: `[M, D]`, of the same dtype and device.
        scale: Factor of the similarities, a number or a tensor `[]` that may be learned.
        bias: Added to the logits of the sigmoid, likewise; None: 0.
        kind: `softmax` or `sigmoid`.
        direction: Whose rows are anchors; of the softmax.
        pairing: Who belongs together, what is no negative, what is absent; see
            `accel.alignment.aligned_pairs` and its neighbours. None: row i belongs to row i, of
            the same rank. Over several ranks the pairing's numbers are those of all ranks, and
            equal ones on two ranks make partners: number this rank's from
            `accel.alignment.first_sample(count)` on, as `aligned_pairs(n, first=...)` does.
        form: Over which batch: `local`, this process's; `all_gather` or `ring`, that of all ranks,
            of which x and y are this rank's part.
        process_group: For the latter two; None: all processes.
        backend: A kernel's name, which then runs or raises; None to choose (see `accel.explain`).

    Returns:
        `[]`, float32 (float64 for float64), also under autocast; 0 with zero gradients where there
        is no anchor. NaN in a present row makes it NaN. Over several ranks it is the loss of the
        whole batch on each, and its gradients, *averaged* over the ranks as DDP and FSDP2 do, are
        those of one process with the whole batch; the gradients of `scale` and `bias` are so
        already on every rank. Differentiable once in x, y, scale and bias.

    Raises:
        TypeError: Dtypes do not fit.
        ValueError: Shapes, devices or options do not fit, or no backend has that name.
        RuntimeError: A form of several ranks is asked for where there is no process group, or a
            derivative by forward-mode AD (`torch.func.jvp`).
        accel.BackendError: The named backend, or every backend, cannot serve the call.
    """
    check_choice("direction", direction, DIRECTIONS)
    check_direction(kind, direction)
    ranks = Ranks(form, process_group)
    ranks.check()
    chosen = ranks.attempt(lambda: kernel_of_call(x, y, scale, bias, pairing, kind, backend))
    wide = accumulation_dtype(x.dtype)
    scale = agreed_gradient(_number(scale, x, wide), ranks)
    if kind == "sigmoid":
        bias = agreed_gradient(_number(0.0 if bias is None else bias, x, wide), ranks)
        return _sigmoid(chosen, x, y, scale, bias, pairing, ranks)
    return _softmax(chosen, x, y, scale, direction, pairing, ranks)


def _softmax(
    chosen: Chosen,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    direction: Direction,
    pairing: Pairing | None,
    ranks: Ranks,
) -> Tensor:
    references = _references(x, y, scale, pairing)
    if ranks.form == "local":
        pairing = aligned_pairs(len(x), x.device) if pairing is None else pairing
        sums = softmax_sums(chosen.name, x, y, scale, *references, pairing)
    else:
        sums = global_softmax_sums(
            chosen.passes, x, y, scale, *references, pairing, ranks.form, ranks.group, direction
        )
    sides = []
    if direction != "y_to_x":
        sides.append(_anchors(sums.x_lse, sums.x_positive, sums.x_count))
    if direction != "x_to_y":
        sides.append(_anchors(sums.y_lse, sums.y_positive, sums.y_count))
    totals, counts = (torch.stack(parts) for parts in zip(*sides, strict=True))
    return _mean(totals, counts, ranks).mean()


def _sigmoid(
    chosen: Chosen,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing | None,
    ranks: Ranks,
) -> Tensor:
    if pairing is None:
        count = torch.full((), len(x), dtype=scale.dtype, device=x.device)
    else:
        count = (pairing.x_sample != ABSENT).sum().to(scale.dtype)
    if ranks.form == "local":
        pairing = aligned_pairs(len(x), x.device) if pairing is None else pairing
        total = sigmoid_sum(chosen.name, x, y, scale, bias, pairing)
    else:
        total = global_sigmoid_sum(
            chosen.passes, x, y, scale, bias, pairing, ranks.form, ranks.group
        )
    return _mean(total, count, ranks)


@torch.no_grad()
def _references(
    x: Tensor, y: Tensor, scale: Tensor, pairing: Pairing | None
) -> tuple[Tensor, Tensor]:
    (of_x, _), (of_y, _) = partner_similarities(x, y, pairing)
    return of_x * scale, of_y * scale


def _anchors(lse: Tensor, positive: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over anchors of their losses, and how many there are."""
    is_anchor = count > 0
    losses = torch.where(is_anchor, lse - positive / count.clamp(min=1), 0.0)
    return losses.sum(), is_anchor.sum().to(lse.dtype)


def _mean(totals: Tensor, counts: Tensor, ranks: Ranks) -> Tensor:
    if ranks.several:
        both = sum_over_ranks(torch.cat([totals.reshape(-1), counts.reshape(-1)]), ranks.group)
        totals, counts = (part.reshape(totals.shape) for part in both.chunk(2))
    return totals / counts.clamp(min=1)


def _number(value: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return torch.full((), value, dtype=dtype, device=like.device)
