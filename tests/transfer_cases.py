"""Batches for the losses of knowledge transfer, and their formulas with whole matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Batch(NamedTuple):
    """Embeddings of a student and a teacher, and their scales."""

    student_x: Tensor
    student_y: Tensor
    teacher_x: Tensor
    teacher_y: Tensor
    student_scale: Tensor
    teacher_scale: Tensor

    def leaves(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Batch:
        """Copies in a dtype, which ask for gradients, the teacher's too."""
        return Batch(*(one.to(device, dtype).detach().requires_grad_() for one in self))


def batch_of(rows: int, columns: int, *, dim: int = 24, teacher_dim: int = 17) -> Batch:
    """float64; unit vectors, the student's of other similarities than the teacher's."""

    def unit(length: int, width: int) -> Tensor:
        return F.normalize(torch.randn(length, width, dtype=torch.float64), dim=1)

    scales = torch.tensor([14.0, 40.0], dtype=torch.float64)
    return Batch(
        unit(rows, dim), unit(columns, dim), unit(rows, teacher_dim), unit(columns, teacher_dim),
        scales[0], scales[1],
    )  # fmt: skip


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of KL(teacher || student) between softmaxes of logits."""
    ours, theirs = student.log_softmax(1), teacher.log_softmax(1)
    return (theirs.exp() * (theirs - ours)).sum(1).mean()


def plain_distillation(batch: Batch, direction: str) -> Tensor:
    """The formula of `distillation_loss`."""
    student = batch.student_scale * batch.student_x @ batch.student_y.T
    teacher = (batch.teacher_scale * batch.teacher_x @ batch.teacher_y.T).detach()
    rows, columns = divergence(student, teacher), divergence(student.T, teacher.T)
    return {"both": (rows + columns) / 2, "x_to_y": rows, "y_to_x": columns}[direction]


def off_diagonal(matrix: Tensor) -> Tensor:
    """`[N, N - 1]`: what is left of each row without the diagonal."""
    rows = matrix.shape[0]
    keep = ~torch.eye(rows, dtype=torch.bool, device=matrix.device)
    return matrix[keep].view(rows, rows - 1)


def plain_relational(
    student: Tensor, teacher: Tensor, form: str, scales: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The formulas of `relational_loss`."""
    teacher = teacher.detach()
    if form == "kl":
        own, other = scales or (torch.tensor(10.0), torch.tensor(10.0))
        return divergence(
            off_diagonal(own * student @ student.T),
            off_diagonal((other * teacher @ teacher.T).detach()),
        )
    if form == "distance":
        ours, theirs = (off_diagonal(torch.cdist(one, one)) for one in (student, teacher))
        return F.smooth_l1_loss(ours / ours.mean(), theirs / theirs.mean())
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _angles(x: Tensor) -> Tensor:
    """Cosines at j between i and k, of all triplets of three rows."""
    rows = x.shape[0]
    found = []
    for j in range(rows):
        others = [i for i in range(rows) if i != j]
        directions = F.normalize(x[others] - x[j], dim=1)
        found.append(off_diagonal(directions @ directions.T))
    return torch.stack(found)
