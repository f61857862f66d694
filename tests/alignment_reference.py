"""The contrastive losses as loops over anchors, in float64: what the library is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from accel.alignment import Pairing


def leaves(n: int, m: int, d: int = 5, *, length: float | None = 1.0) -> tuple[Tensor, Tensor]:
    """Random rows of one length (None: as drawn), float64, that want gradients."""
    made = [torch.randn(rows, d, dtype=torch.float64) for rows in (n, m)]
    if length is not None:
        made = [F.normalize(one, dim=-1) * length for one in made]
    x, y = (one.requires_grad_() for one in made)
    return x, y


def is_positive(pairing: Pairing, i: int, j: int) -> bool:
    if int(pairing.x_sample[i]) == int(pairing.y_sample[j]):
        return True
    return pairing.duplicates == "positive" and same_group(pairing, i, j)


def same_group(pairing: Pairing, i: int, j: int) -> bool:
    if pairing.x_group is None or pairing.y_group is None:
        return False
    return int(pairing.x_group[i]) == int(pairing.y_group[j]) >= 0


def left_out(pairing: Pairing, i: int, j: int, anchor: str) -> bool:
    """Whether a pair that is no positive does not count for its anchor, `x` or `y`."""
    if pairing.duplicates == "ignore" and same_group(pairing, i, j):
        return True
    if pairing.guide is None:
        return False
    found = pairing.guide
    similarity = float(found.x[i].double() @ found.y[j].double())
    threshold = found.x_threshold[i] if anchor == "x" else found.y_threshold[j]
    return similarity > float(threshold)


def plain_softmax(
    x: Tensor, y: Tensor, scale: Tensor, pairing: Pairing, direction: str = "both"
) -> Tensor:
    """The mean over anchors, one at a time, of log-sum-exp minus the mean positive logit."""
    rows = [i for i in range(len(x)) if pairing.x_sample[i] >= 0]
    columns = [j for j in range(len(y)) if pairing.y_sample[j] >= 0]

    def logit(i: int, j: int) -> Tensor:
        similarity = x[i] @ y[j]
        if is_positive(pairing, i, j):
            return scale * similarity
        return scale * similarity + pairing.hardness * similarity.detach()

    def of_anchor(pairs: list[tuple[int, int]], anchor: str) -> Tensor | None:
        positives = [pair for pair in pairs if is_positive(pairing, *pair)]
        if not positives:
            return None
        negatives = [
            pair
            for pair in pairs
            if not is_positive(pairing, *pair) and not left_out(pairing, *pair, anchor)
        ]
        everything = torch.stack([logit(*pair) for pair in positives + negatives])
        return everything.logsumexp(0) - everything[: len(positives)].mean()

    sides = []
    if direction != "y_to_x":
        sides.append([of_anchor([(i, j) for j in columns], "x") for i in rows])
    if direction != "x_to_y":
        sides.append([of_anchor([(i, j) for i in rows], "y") for j in columns])
    means = []
    for side in sides:
        losses = [one for one in side if one is not None]
        means.append(torch.stack(losses).mean() if losses else scale * 0.0)
    return torch.stack(means).mean()


def plain_sigmoid(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing) -> Tensor:
    """The sum over pairs, one at a time, divided by the number of present rows of x."""
    total = scale * 0.0 + bias * 0.0
    present = 0
    for i in range(len(x)):
        present += int(pairing.x_sample[i]) >= 0
        for j in range(len(y)):
            if pairing.x_sample[i] < 0 or pairing.y_sample[j] < 0:
                continue
            similarity = x[i] @ y[j]
            if is_positive(pairing, i, j):
                total = total + F.softplus(-(scale * similarity + bias))
            elif not (left_out(pairing, i, j, "x") or left_out(pairing, i, j, "y")):
                hard = pairing.hardness * similarity.detach()
                total = total + F.softplus(scale * similarity + hard + bias)
    return total / max(present, 1)
