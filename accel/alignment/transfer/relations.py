"""Relations between the embeddings of a batch: their distances, and the angles of triplets.

Both after Relational Knowledge Distillation (Park et al., arXiv 1904.05068, section 3.2), which
compares them between a student and a teacher by the Huber loss. Nothing of size `[N, N]` is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from accel.alignment.transfer.recomputation import sum_of_chunks

MOST_ANGLE_ROWS = 512
"""Angles take time in the cube of the rows: beyond this many they are refused."""

_ROUNDING = 8.0  # of a sum of products, in units of the dtype's

_ELEMENTS = 2**20  # of the largest tensor of a chunk


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss between distances, each relative to the mean distance of its own batch.

    Args:
        student: `[N, D]`, float32 or float64.
        teacher: `[N, E]`, of the same dtype; gets no gradient.

    Returns:
        `[]`; 0 for fewer than two rows.
    """
    rows = student.shape[0]
    if rows < 2:
        return student[:0].sum()
    pairs = rows * (rows - 1)
    chunks = _chunks(rows, rows)
    # Distances do not change with the origin, and are precisest where vectors are short.
    student, teacher = (one - one.detach().mean(0) for one in (student, teacher))
    student_mean, teacher_mean = (
        sum_of_chunks(_total_distance, chunks, one) / pairs for one in (student, teacher)
    )

    def difference(
        chunk: slice, student: Tensor, student_mean: Tensor, teacher: Tensor, teacher_mean: Tensor
    ) -> Tensor:
        ours = _relative(_distances(student, chunk), student_mean)
        theirs = _relative(_distances(teacher, chunk), teacher_mean)
        return F.smooth_l1_loss(ours, theirs, reduction="sum")

    total = sum_of_chunks(difference, chunks, student, student_mean, teacher, teacher_mean)
    return total / pairs


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss between the cosines of the angles that any two rows form at a third.

    Args:
        student: `[N, D]`, float32 or float64; N is at most `MOST_ANGLE_ROWS`.
        teacher: `[N, E]`, of the same dtype; gets no gradient.

    Returns:
        `[]`; 0 for fewer than three rows.

    Raises:
        ValueError: There are more rows.
    """
    rows = student.shape[0]
    if rows > MOST_ANGLE_ROWS:
        raise ValueError(
            f"angles of {rows} rows are {rows}^3 numbers, computed twice: take at most "
            f"{MOST_ANGLE_ROWS} of them (`present` chooses), or form='distance' for all"
        )
    if rows < 3:
        return student[:0].sum()
    chunks = _chunks(rows, rows * max(rows, student.shape[1], teacher.shape[1]))

    def difference(chunk: slice, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = _cosines(student, chunk), _cosines(teacher, chunk)
        # The angle between a direction and itself is 0 on both sides, except at a point's twin.
        same = torch.eye(rows, dtype=torch.bool, device=ours.device)
        ours, theirs = ours.masked_fill(same, 0.0), theirs.masked_fill(same, 0.0)
        return F.smooth_l1_loss(ours, theirs, reduction="sum")

    return sum_of_chunks(difference, chunks, student, teacher) / (rows * (rows - 1) * (rows - 2))


def _total_distance(chunk: slice, x: Tensor) -> Tensor:
    return _distances(x, chunk).sum()


def _distances(x: Tensor, chunk: slice) -> Tensor:
    """Of some rows to all, `[chunk, N]`; with gradient 0 where they are 0.

    What is no more than the rounding of the squares it is the difference of is 0.
    """
    part = x[chunk]
    squares = part.square().sum(1, keepdim=True) + x.square().sum(1)
    differences = squares - 2.0 * (part @ x.mT)
    rounding = _ROUNDING * torch.finfo(x.dtype).eps
    nothing = differences.detach() <= rounding * squares.detach()  # NaN is not, and stays
    nothing.diagonal(chunk.start).fill_(True)
    return differences.masked_fill(nothing, 1.0).sqrt().masked_fill(nothing, 0.0)


def _relative(distances: Tensor, mean: Tensor) -> Tensor:
    """Distances over their mean; 0 where all embeddings are one point."""
    return distances / mean.masked_fill(mean.detach() == 0.0, 1.0)


def _cosines(x: Tensor, chunk: slice) -> Tensor:
    """Between the directions from each vertex to all rows, `[chunk, N, N]`; 0 to itself."""
    steps = x - x[chunk].unsqueeze(1)
    squared = steps.square().sum(2, keepdim=True)
    nothing = squared.detach() <= 0.0
    directions = steps * squared.masked_fill(nothing, 1.0).rsqrt().masked_fill(nothing, 0.0)
    return directions @ directions.mT


def _chunks(rows: int, elements_per_row: int) -> list[slice]:
    size = max(1, _ELEMENTS // elements_per_row)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
