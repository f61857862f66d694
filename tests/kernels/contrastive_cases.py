"""Batches for the contrastive kernels, and the dense float64 formula that they are held against."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import ABSENT, Duplicates, Guide, Pairing
from accel_kernels.contrastive_loss.passes import InputGradients, SoftmaxGradients, SoftmaxSums

Samples = Literal["aligned", "shuffled", "repeated", "unmatched"]


class Case(NamedTuple):
    """A batch: x [rows, depth], y [columns, depth], and who belongs to whom.

    Attributes:
        name: For humans and test ids.
        rows: N.
        columns: M; None: as many as rows.
        depth: D.
        samples: Row i is column i's partner; in another order; with several partners each; or some
            rows and columns have no partner.
        absent: This share of rows and of columns is absent (1: all are).
        garbage: Absent rows hold NaN and infinities.
        duplicates: What pairs of one group are; None: no groups.
        guided: A guide leaves out about a quarter of the negatives.
        hardness: Of negatives.
        scale: Of cosines.
        bias: Of the sigmoid loss.
        spread: How far partners are apart; 0: they are equal.
    """

    name: str
    rows: int = 63
    columns: int | None = None
    depth: int = 20
    samples: Samples = "aligned"
    absent: float = 0.0
    garbage: bool = False
    duplicates: Duplicates | None = None
    guided: bool = False
    hardness: float = 0.0
    scale: float = 10.0
    bias: float = -3.0
    spread: float = 1.0

    @property
    def width(self) -> int:
        """M."""
        return self.rows if self.columns is None else self.columns


class Inputs(NamedTuple):
    """What a kernel is called with; of either loss."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor
    x_reference: Tensor
    y_reference: Tensor
    pairing: Pairing

    @property
    def softmax(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Pairing]:
        """Arguments of `Passes.softmax`."""
        return self.x, self.y, self.scale, self.x_reference, self.y_reference, self.pairing

    @property
    def sigmoid(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Pairing]:
        """Arguments of `Passes.sigmoid`."""
        return self.x, self.y, self.scale, self.bias, self.pairing


CASES = (
    Case("plain"),
    Case("one", rows=1),
    Case("three", rows=3, depth=5),
    Case("odd", rows=127, columns=61, depth=33, samples="unmatched"),
    Case("thousand", rows=1000, depth=16),
    Case("wide", rows=5, columns=200, depth=130, samples="unmatched"),
    Case("depth of one", rows=9, depth=1, scale=2.0),
    Case("shuffled", samples="shuffled"),
    Case("many partners", rows=70, columns=45, samples="repeated"),
    Case("without partners", rows=40, columns=52, samples="unmatched"),
    Case("absent", rows=90, absent=0.3),
    Case("absent with garbage", rows=90, columns=75, absent=0.3, garbage=True, samples="shuffled"),
    Case("all absent", rows=7, absent=1.0, garbage=True),
    Case("groups positive", duplicates="positive"),
    Case("groups ignored", duplicates="ignore", absent=0.2, garbage=True),
    Case("groups negative", duplicates="negative"),
    Case("guide", guided=True, samples="shuffled"),
    Case("hardness", hardness=4.0),
    Case(
        "everything", rows=150, columns=131, samples="repeated", absent=0.2, garbage=True,
        duplicates="ignore", guided=True, hardness=2.0,
    ),
    Case(
        "everything positive", rows=131, columns=150, samples="unmatched", absent=0.2,
        garbage=True, duplicates="positive", guided=True, hardness=3.0,
    ),
    Case("scale at its bound", rows=100, scale=100.0, spread=0.3),
    Case("aligned at the bound", rows=100, depth=64, scale=100.0, spread=0.0),
    Case("no rows", rows=0, columns=5),
    Case("no columns", rows=5, columns=0),
    Case("nothing", rows=0),
)  # fmt: skip
"""Every option, and sizes that no tile divides."""


def draw(
    case: Case,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Inputs:
    """The inputs of a case; the same numbers for every device, rounded to `dtype`."""
    made = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x_sample, y_sample = _samples(case, made)
    x = _unit(torch.randn(case.rows, case.depth, generator=made, dtype=torch.float64))
    y = case.spread * torch.randn(case.width, case.depth, generator=made, dtype=torch.float64)
    matches = (x_sample[:, None] == y_sample) & (x_sample[:, None] != ABSENT)
    partner = _first(matches.T)
    y[partner >= 0] += case.depth**0.5 * x[partner[partner >= 0]]
    x, y = x.to(dtype), _unit(y).to(dtype)
    logits = case.scale * (x.double() @ y.double().T)
    if case.garbage:
        x[x_sample == ABSENT], y[y_sample == ABSENT] = torch.nan, torch.inf
    pairing = Pairing(
        x_sample,
        y_sample,
        *_groups(case, made),
        duplicates=case.duplicates or "negative",
        guide=_guide(case, dtype, wide, made) if case.guided else None,
        hardness=case.hardness,
    )
    inputs = Inputs(
        x,
        y,
        torch.tensor(case.scale, dtype=wide),
        torch.tensor(case.bias, dtype=wide),
        _reference_of(logits, matches).to(wide),
        _reference_of(logits.T, matches.T).to(wide),
        pairing,
    )
    return moved(inputs, device)


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The same on another device."""
    *tensors, pairing = inputs
    guide = pairing.guide
    if guide is not None:
        guide = Guide(*(tensor.to(device) for tensor in guide))
    found = [item.to(device) if isinstance(item, Tensor) else item for item in pairing]
    return Inputs(*(t.to(device) for t in tensors), Pairing(*found)._replace(guide=guide))


def widened(inputs: Inputs) -> Inputs:
    """The same values in float64, on the CPU: the inputs of the truth."""
    *tensors, pairing = moved(inputs, "cpu")
    guide = pairing.guide
    if guide is not None:
        guide = Guide(*(tensor.double() for tensor in guide))
    return Inputs(*(t.detach().double() for t in tensors), pairing._replace(guide=guide))


def upstream(case: Case, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 1):
    """Gradients of the sums as a loss has them, of both signs; zero for every fifth row."""
    made = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = []
    for size in (case.rows, case.width, case.rows, case.width):
        gradient = torch.randn(size, generator=made, dtype=torch.float64)
        gradient[::5] = 0.0
        found.append((gradient / max(size, 1)).to(wide).to(device))
    return SoftmaxGradients(*found)


# --- the truth ---------------------------------------------------------------------------------


class Masks(NamedTuple):
    """bool [N, M]: what is positive, and what counts for rows and for columns as anchors."""

    positive: Tensor
    rows: Tensor
    columns: Tensor


def masks(pairing: Pairing) -> Masks:
    """The whole matrices that a pairing stands for."""
    here = (pairing.x_sample != ABSENT)[:, None] & (pairing.y_sample != ABSENT)
    positive = here & (pairing.x_sample[:, None] == pairing.y_sample)
    counts = here
    if pairing.x_group is not None and pairing.y_group is not None:
        alike = (pairing.x_group[:, None] == pairing.y_group) & (pairing.x_group >= 0)[:, None]
        alike &= here & ~positive
        if pairing.duplicates == "positive":
            positive = positive | alike
        elif pairing.duplicates == "ignore":
            counts = counts & ~alike
    rows = columns = counts
    if pairing.guide is not None:
        guide = pairing.guide
        similar = guide.x @ guide.y.T
        rows = counts & (positive | ~(similar > guide.x_threshold[:, None]))
        columns = counts & (positive | ~(similar > guide.y_threshold))
    return Masks(positive, rows, columns)


def logits(inputs: Inputs, positive: Tensor) -> Tensor:
    """[N, M], hardness included; what is absent is zero, and so is its gradient."""
    x_here = (inputs.pairing.x_sample != ABSENT)[:, None]
    y_here = (inputs.pairing.y_sample != ABSENT)[:, None]
    x = torch.where(x_here, inputs.x, torch.zeros_like(inputs.x))
    y = torch.where(y_here, inputs.y, torch.zeros_like(inputs.y))
    z = (inputs.scale * x) @ y.T  # the scale first, as OpenCLIP does
    harder = inputs.pairing.hardness * (x @ y.T).detach()
    return z + torch.where(positive, torch.zeros_like(harder), harder)


def softmax_truth(inputs: Inputs) -> SoftmaxSums:
    """The dense formula in the dtype of the inputs; differentiable by plain autograd."""
    found = masks(inputs.pairing)
    z = logits(inputs, found.positive)
    return SoftmaxSums(
        *_one_way(z, inputs.x_reference, found.rows, found.positive)[:1],
        *_one_way(z.T, inputs.y_reference, found.columns.T, found.positive.T)[:1],
        *_one_way(z, inputs.x_reference, found.rows, found.positive)[1:2],
        *_one_way(z.T, inputs.y_reference, found.columns.T, found.positive.T)[1:2],
        found.positive.sum(1).to(z.dtype),
        found.positive.sum(0).to(z.dtype),
    )


def softmax_gradient_truth(
    inputs: Inputs, x_lse: Tensor, y_lse: Tensor, gradients: SoftmaxGradients
) -> InputGradients:
    """Gradients by autograd; the log-sum-exps may be those of more than this block."""
    leaves = _leaves(inputs)
    found = masks(inputs.pairing)
    z = logits(leaves, found.positive)
    # The derivative of this is that of the log-sum-exps, whatever else is in them.
    surrogate = _weighed(z, leaves.x_reference, found.rows, x_lse, gradients.x_lse)
    surrogate = surrogate + _weighed(
        z.T, leaves.y_reference, found.columns.T, y_lse, gradients.y_lse
    )
    kept = torch.where(found.positive, z, torch.zeros_like(z))
    surrogate = surrogate + (gradients.x_positive[:, None] * kept).sum()
    surrogate = surrogate + (gradients.y_positive * kept).sum()
    return _gradients(surrogate, leaves)


def sigmoid_truth(inputs: Inputs) -> Tensor:
    """The sum of the pairwise losses; differentiable by plain autograd."""
    found = masks(inputs.pairing)
    z = logits(inputs, found.positive) + inputs.bias
    signed = torch.where(found.positive, -z, z)
    losses = torch.logaddexp(signed, torch.zeros_like(signed))
    return torch.where(found.rows & found.columns, losses, torch.zeros_like(losses)).sum()


def sigmoid_gradient_truth(inputs: Inputs) -> InputGradients:
    """Its gradients by autograd."""
    leaves = _leaves(inputs)
    return _gradients(sigmoid_truth(leaves), leaves)


def _one_way(z: Tensor, reference: Tensor, counts: Tensor, positive: Tensor) -> tuple[Tensor, ...]:
    away = z - reference.detach()[:, None]
    some = counts.any(1)
    hidden = away.masked_fill(~counts, -torch.inf)
    # A row of nothing but -inf has no derivative that is a number.
    safe = torch.where(some[:, None], hidden, torch.zeros_like(hidden))
    lse = torch.logsumexp(safe, 1) if z.shape[1] else z.sum(1)
    lse = torch.where(some, lse, torch.full_like(lse, -torch.inf))
    return lse, torch.where(positive, away, torch.zeros_like(away)).sum(1)


def _weighed(z: Tensor, reference: Tensor, counts: Tensor, lse: Tensor, gradient: Tensor) -> Tensor:
    used = counts & ((lse != -torch.inf) & (gradient != 0))[:, None]
    exponents = torch.where(used, z, torch.zeros_like(z)) - torch.where(
        used, (reference + lse)[:, None], torch.zeros_like(z)
    )
    weights = torch.where(used, exponents.exp() * gradient[:, None], torch.zeros_like(z))
    return weights.sum()


def _leaves(inputs: Inputs) -> Inputs:
    found = [tensor.detach().clone().requires_grad_() for tensor in inputs[:4]]
    return Inputs(*found, *inputs[4:])


def _gradients(loss: Tensor, leaves: Inputs) -> InputGradients:
    found = torch.autograd.grad(loss, leaves[:4], allow_unused=True, materialize_grads=True)
    return InputGradients(*found)


# --- making batches ----------------------------------------------------------------------------


def _unit(values: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values, dim=1)


def _samples(case: Case, made: torch.Generator) -> tuple[Tensor, Tensor]:
    x, y = torch.arange(case.rows), torch.arange(case.width)
    if case.samples == "shuffled":
        x, y = x[torch.randperm(len(x), generator=made)], y[torch.randperm(len(y), generator=made)]
        x, y = 1000 * x, 1000 * y  # sample numbers need not be dense
    elif case.samples == "repeated":
        x, y = x // 3, y % 20
    elif case.samples == "unmatched":
        x = torch.where(torch.rand(len(x), generator=made) < 0.3, x + 10_000, x)
    for sample in (x, y):
        sample[torch.rand(len(sample), generator=made) < case.absent] = ABSENT
    return x, y


def _groups(case: Case, made: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    if case.duplicates is None:
        return None, None
    x = torch.randint(-2, 12, (case.rows,), generator=made)
    return x, torch.randint(-2, 12, (case.width,), generator=made)


def _guide(case: Case, dtype: torch.dtype, wide: torch.dtype, made: torch.Generator) -> Guide:
    """Of small integers, whose products are exact in every dtype, and thresholds between them."""
    x = torch.randint(-2, 3, (case.rows, 6), generator=made)
    y = torch.randint(-2, 3, (case.width, 6), generator=made)
    x_threshold = 3.5 + torch.randint(-1, 2, (case.rows,), generator=made)
    y_threshold = 3.5 + torch.randint(-1, 2, (case.width,), generator=made)
    return Guide(x.to(dtype), y.to(dtype), x_threshold.to(wide), y_threshold.to(wide))


def _first(matches: Tensor) -> Tensor:
    """The first True of each row, -1 where there is none."""
    if not matches.shape[1]:
        return torch.full(matches.shape[:1], -1)
    return torch.where(matches.any(1), matches.int().argmax(1), torch.tensor(-1))


def _reference_of(z: Tensor, matches: Tensor) -> Tensor:
    """The logit of each row's first partner; 0 for a row without one."""
    first = _first(matches)
    reference = torch.zeros(z.shape[0], dtype=z.dtype)
    reference[first >= 0] = z[first >= 0, first[first >= 0]]
    return reference
