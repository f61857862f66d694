"""Zero-shot classification: classes described in another modality, by several prompts each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.alignment.evaluation.directions import directions
from accel.alignment.evaluation.ranking import retrieval_ranks


@dataclass(frozen=True)
class ZeroShot:
    """How well samples are classified.

    Attributes:
        samples: How many.
        classes: Among how many classes.
        accuracy: By k: the share of samples whose class is among the k nearest.
        chance: By k: that of a random order.
        per_class: By k: the mean over the classes that occur of each class's accuracy, which a
            frequent class does not dominate.
    """

    samples: int
    classes: int
    accuracy: dict[int, float]
    chance: dict[int, float]
    per_class: dict[int, float]


def class_prototypes(prompts: Tensor, labels: Tensor, classes: int | None = None) -> Tensor:
    """One direction per class: the mean of its prompts' directions.

    Source: Radford et al., arXiv 2103.00020, section 3.1.4 (prompt ensembling in the embedding
    space).

    Args:
        prompts: `[P, D]`, floating point, embeddings of descriptions.
        labels: int64 `[P]`, the class that each describes, from 0.
        classes: How many there are; None: the largest label plus 1.

    Returns:
        `[classes, D]` of unit length, float32, or float64 for float64.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`; the labels do not fit; a class has no prompt, or its prompts
            cancel.
    """
    rows = directions(prompts, "prompts")
    count = _checked_labels(labels, len(rows), classes, "prompts")
    where = labels.to(rows.device)
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, where, rows)
    sizes = torch.bincount(labels.cpu(), minlength=count)
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"classes without a prompt: {empty[:10]}; describe each at least once")
    return directions(sums, "prototypes")


def zero_shot_accuracy(
    samples: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (1, 5),
    chunk_size: int = 1024,
) -> ZeroShot:
    """Classify each sample as its nearest prototype; ties count against the model.

    Args:
        samples: `[N, D]`, floating point.
        prototypes: `[C, D]`, of `class_prototypes`.
        labels: int64 `[N]`, from 0 to `C - 1`.
        ks: The k of top-k accuracy, each at least 1.
        chunk_size: See `retrieval_ranks`.

    Raises:
        TypeError: See `directions`.
        ValueError: The shapes do not fit, or a label is out of range.
    """
    if not ks or any(not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks must be positive integers, got {list(ks)}: (1, 5) is usual")
    count = _checked_labels(labels, len(samples), len(prototypes), "samples")
    ranks = retrieval_ranks(
        samples, prototypes, query_groups=labels, target_groups=torch.arange(count),
        chunk_size=chunk_size,
    )  # fmt: skip
    sizes = torch.bincount(labels.cpu(), minlength=count).double()
    accuracy, per_class = {}, {}
    for k in ks:
        right = (ranks <= k).double()
        accuracy[k] = float(right.mean())
        hits = torch.zeros_like(sizes).index_add_(0, labels.cpu(), right)
        per_class[k] = float((hits / sizes)[sizes > 0].mean())
    chance = {k: min(k, count) / count if count else math.nan for k in ks}
    return ZeroShot(len(samples), count, accuracy, chance, per_class)


def _checked_labels(labels: Tensor, length: int, classes: int | None, of: str) -> int:
    if labels.dtype != torch.int64 or list(labels.shape) != [length]:
        raise ValueError(
            f"labels must be int64 [{length}], one for each of the {of}, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if not length:
        return classes or 0
    low, high = int(labels.min()), int(labels.max())
    count = high + 1 if classes is None else classes
    if low < 0 or high >= count:
        raise ValueError(f"labels must be from 0 to {count - 1}, got {low} to {high}")
    return count
