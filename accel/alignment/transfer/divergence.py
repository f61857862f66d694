"""The divergence between two softmaxes over the similarities of a batch, without their matrix.

Forward and backward go through tiles of both similarity matrices. The forward keeps a maximum and
three sums of every row and column, the backward computes each tile once more. So memory grows
linearly in the batch, and only vectors are saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel.alignment.first_derivative import first_derivatives


class Similarities(NamedTuple):
    """The logits `scale * x @ y.T`, `[N, M]`, of which only tiles are ever computed.

    Attributes:
        x: `[N, D]`, a floating-point dtype.
        y: `[M, D]`, of the same dtype.
        scale: `[]`, of the accumulation dtype.
    """

    x: Tensor
    y: Tensor
    scale: Tensor

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Logits of a block, in the accumulation dtype."""
        dtype = self.scale.dtype
        return torch.mm(self.x[rows].to(dtype), self.y[columns].to(dtype).mT).mul_(self.scale)


def softmax_divergence(
    student: Similarities,
    teacher: Similarities,
    *,
    x_weight: float,
    y_weight: float,
    without_diagonal: bool = False,
) -> Tensor:
    """Weighted sum of `KL(teacher || student)` over rows and over columns.

    With `p_i` the teacher's softmax over row i and `q_i` the student's, a row counts
    `sum_j p_ij (log p_ij - log q_ij)`; a column the same of the softmaxes over it.

    Args:
        student: Differentiable once, in all three.
        teacher: Of the same `[N, M]`, and the same accumulation dtype; gets no gradient.
        x_weight: Of each row; 0 leaves rows out.
        y_weight: Of each column; one of the two is not 0.
        without_diagonal: Row i and column i are one thing, which is not compared with itself.

    Returns:
        `[]`, of the accumulation dtype; 0 if there are no pairs to compare.
    """
    rows, columns = student.x.shape[0], student.y.shape[0]
    if min(rows, columns) < (2 if without_diagonal else 1):
        nothing = student.x[:0].sum() + student.y[:0].sum()
        return nothing.to(student.scale.dtype) + 0.0 * student.scale
    return _SoftmaxDivergence.apply(  # type: ignore[no-any-return]
        *student, *(part.detach() for part in teacher), (x_weight, y_weight), without_diagonal
    )


class _SoftmaxDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        teacher_x: Tensor,
        teacher_y: Tensor,
        teacher_scale: Tensor,
        weights: tuple[float, float],
        without_diagonal: bool,
    ) -> Tensor:
        student = Similarities(x, y, scale)
        teacher = Similarities(teacher_x, teacher_y, teacher_scale)
        with torch.autocast(x.device.type, enabled=False):
            sums = _sums(student, teacher, weights, without_diagonal)
            kept = [vector for one in sums if one is not None for vector in one.normalisers()]
            total = scale.new_zeros(())
            for one, weight in zip(sums, weights, strict=True):
                if one is not None:
                    total += weight * one.divergence().sum()
        ctx.save_for_backward(*student, *teacher, *kept)
        ctx.weights, ctx.without_diagonal = weights, without_diagonal
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        student = Similarities(next(saved), next(saved), next(saved))
        teacher = Similarities(next(saved), next(saved), next(saved))
        directions = [
            _Direction(dim, weight, next(saved), next(saved), next(saved), next(saved))
            for dim, weight in zip((1, 0), ctx.weights, strict=True)
            if weight
        ]
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            x, y = _gradients(student, teacher, directions, ctx.without_diagonal)
            # Every logit is the scale times a product, so this is the sum over all of them.
            scale = grad * (x * student.x).sum()
            x, y = (
                total.mul_(grad * student.scale).to(one.dtype)
                for total, one in ((x, student.x), (y, student.y))
            )
        return *first_derivatives((x, y, scale), (grad, *student)), *[None] * 5


class _Sums:
    """What the divergence of one direction needs, over the tiles so far.

    The divergence does not change with what is subtracted from a row of logits. Relative to the
    largest of the row, those that count are small, and their differences precise.
    """

    def __init__(self, length: int, like: Tensor) -> None:
        # Below every logit, with room to subtract one; -inf would make NaN of -inf - -inf.
        least = torch.finfo(like.dtype).min / 4
        self.student_max = like.new_full((length,), least)
        self.teacher_max = self.student_max.clone()
        self.student_sum = like.new_zeros(length)
        self.teacher_sum = self.student_sum.clone()
        self.difference = self.student_sum.clone()

    def add(
        self, where: slice, student: Tensor, teacher: Tensor, dim: int, diagonal: int | None
    ) -> None:
        """Take in a tile, `where` along the other dimension than `dim`."""
        kept_student, low_student = _raise(self.student_max, where, student, dim)
        kept_teacher, low_teacher = _raise(self.teacher_max, where, teacher, dim)
        difference = low_teacher - low_student
        if diagonal is not None:
            difference.diagonal(diagonal).zero_()
        probability = low_teacher.exp_()
        before, moved = self.teacher_sum[where], kept_teacher - kept_student
        kept_teacher = kept_teacher.exp_()
        self.difference[where] = (self.difference[where] + before * moved) * kept_teacher
        self.difference[where] += difference.mul_(probability).sum(dim)
        self.teacher_sum[where] = before * kept_teacher + probability.sum(dim)
        kept_student = kept_student.exp_()
        student_sum = self.student_sum[where] * kept_student
        self.student_sum[where] = student_sum + low_student.exp_().sum(dim)

    def divergence(self) -> Tensor:
        """Of every row (or column), `[length]`."""
        expected = self.difference / self.teacher_sum
        return expected - self.teacher_sum.log() + self.student_sum.log()

    def normalisers(self) -> tuple[Tensor, ...]:
        """What makes probabilities of logits, in the order of `_Direction`.

        Maximum and sum stay apart: the log of the whole sum would be rounded to its own size, and
        with it every probability of the row by as much.
        """
        return self.student_max, self.student_sum, self.teacher_max, self.teacher_sum


def _raise(largest: Tensor, where: slice, tile: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Raise the maxima to those of a tile: by how much less they were, and the tile below them."""
    before = largest[where].clone()
    largest[where] = torch.maximum(before, tile.amax(dim))
    return before - largest[where], tile - largest[where].unsqueeze(dim)


def _sums(
    student: Similarities,
    teacher: Similarities,
    weights: tuple[float, float],
    without_diagonal: bool,
) -> tuple[_Sums | None, _Sums | None]:
    lengths = student.x.shape[0], student.y.shape[0]
    x, y = (
        _Sums(length, student.scale) if weight else None
        for length, weight in zip(lengths, weights, strict=True)
    )
    for rows, columns in _tiles(*lengths, student.x.device.type):
        diagonal = rows.start - columns.start if without_diagonal else None
        s = _without(student.tile(rows, columns), diagonal)
        t = _without(teacher.tile(rows, columns), diagonal)
        if x is not None:
            x.add(rows, s, t, 1, diagonal)
        if y is not None:
            y.add(columns, s, t, 0, diagonal)
    return x, y


class _Direction(NamedTuple):
    """Rows (`dim` 1) or columns (`dim` 0): their weight, largest logits and sums below those."""

    dim: int
    weight: float
    student_max: Tensor
    student_sum: Tensor
    teacher_max: Tensor
    teacher_sum: Tensor

    def add_gradient(self, out: Tensor, where: slice, student: Tensor, teacher: Tensor) -> None:
        """Add `weight * (q - p)` of a tile."""
        for tile, largest, total, weight in (
            (student, self.student_max, self.student_sum, self.weight),
            (teacher, self.teacher_max, self.teacher_sum, -self.weight),
        ):
            low = (tile - largest[where].unsqueeze(self.dim)).exp_()
            out.addcmul_(low, (weight / total[where]).unsqueeze(self.dim))


def _gradients(
    student: Similarities,
    teacher: Similarities,
    directions: list[_Direction],
    without_diagonal: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and `y`, but for the factor `scale`: that of a logit is `q - p`."""
    dtype = student.scale.dtype
    x, y = (torch.zeros_like(one, dtype=dtype) for one in (student.x, student.y))
    for rows, columns in _tiles(x.shape[0], y.shape[0], x.device.type):
        diagonal = rows.start - columns.start if without_diagonal else None
        s = _without(student.tile(rows, columns), diagonal)
        t = _without(teacher.tile(rows, columns), diagonal)
        logits = torch.zeros_like(s)
        for one in directions:
            one.add_gradient(logits, rows if one.dim == 1 else columns, s, t)
        x[rows].addmm_(logits, student.y[columns].to(dtype))
        y[columns].addmm_(logits.mT, student.x[rows].to(dtype))
    return x, y


def _without(tile: Tensor, diagonal: int | None) -> Tensor:
    """The tile with -inf on a diagonal of it, which may lie outside."""
    if diagonal is not None:
        tile.diagonal(diagonal).fill_(-torch.inf)
    return tile


def _tiles(rows: int, columns: int, device_type: str) -> Iterator[tuple[slice, slice]]:
    """Blocks of the matrix: those of a CPU fit its caches, others have to keep a chip busy."""
    edge = 512 if device_type == "cpu" else 4096
    for row in range(0, rows, edge):
        for column in range(0, columns, edge):
            yield slice(row, min(row + edge, rows)), slice(column, min(column + edge, columns))
