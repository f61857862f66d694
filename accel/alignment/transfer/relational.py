"""Distillation in relational form: the student's neighbourhoods follow the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from accel.alignment.transfer.divergence import Similarities, softmax_divergence
from accel.alignment.transfer.inputs import (
    Scale,
    accumulation_dtype,
    as_scale,
    check_alike,
    check_embeddings,
    matched_rows,
    present_rows,
)
from accel.alignment.transfer.relations import angle_loss, distance_loss

RelationalForm = Literal["kl", "distance", "angle"]
RELATIONAL_FORMS: tuple[RelationalForm, ...] = ("kl", "distance", "angle")

_SCALE = 10.0


def relational_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    form: RelationalForm = "kl",
    student_scale: Scale | None = None,
    teacher_scale: Scale | None = None,
    present: Tensor | None = None,
    student_sample: Tensor | None = None,
    teacher_sample: Tensor | None = None,
) -> Tensor:
    """How the similarities among a batch of one modality differ from a teacher's of the same batch.

    Only relations within each side are compared, so the teacher may be of another modality and
    width: what text says about which samples are alike is carried into audio, say.

    - "kl": mean over rows of `KL(teacher || student)` between the softmaxes over the scaled
      similarities to all other rows (SEED, arXiv 2101.04731, section 3.2, and CompRess, arXiv
      2010.14713, with the batch as the queue).
    - "distance": mean Huber loss between the distances of all pairs, each side's over its mean
      (RKD, arXiv 1904.05068, section 3.2.1). Scale does not matter.
    - "angle": the same between the cosines of the angles of all triplets (RKD, section 3.2.2), for
      at most 512 rows, since time grows with their cube.

    Memory is linear in N for all. Embeddings are used as they are: for "kl" normalise them where
    similarities are to be cosines. NaN or infinity among the rows that take part makes the loss
    NaN. A zero vector is, for "kl", equally similar to everything; for the others a point like any
    other. Rows that coincide have no direction: they get no gradient from one another in
    "distance" and "angle", and a student that is one single point gets none at all. For "distance"
    rows coincide that are closer than rounding: in float32 about 1e-3 of the batch's width. No
    gradient is differentiable.

    Args:
        student: `[N, D]`, float64, float32, bfloat16 or float16.
        teacher: `[M, E]`, any of the dtypes, any width; M is N unless there are sample numbers.
        form: Which relations.
        student_scale: Of "kl": inverse temperature, 10 by default; a tensor `[]` may be learned.
        teacher_scale: Of "kl", the teacher's, 10 by default; never gets a gradient.
        present: `[N]` bool, True for rows that both sides have: only they take part.
        student_sample: `[N]` int64, which sample each row is; -1 for a row that is not there.
            With it, rows of one number belong together, and others take no part.
        teacher_sample: `[M]` int64; given exactly if `student_sample` is.

    `present` and sample numbers on the CPU cost no wait for the device.

    Returns:
        `[]`, float32, or float64 if an embedding is. 0 where too few rows take part: below two for
        "kl" and "distance", three for "angle".

    Raises:
        TypeError: What is given is no tensor of such dtypes, or a scale is no number.
        ValueError: Shapes or devices do not fit one another, the form is unknown, a scale is given
            to a form that has none, a sample number occurs twice, or there are too many rows.
    """
    if form not in RELATIONAL_FORMS:
        raise ValueError(f"form is one of {', '.join(RELATIONAL_FORMS)}, not {form!r}")
    if form != "kl" and (student_scale is not None or teacher_scale is not None):
        raise ValueError(f"form={form!r} has no scale: leave out student_scale and teacher_scale")
    check_embeddings({"student": student, "teacher": teacher})
    student, teacher = _rows_of_both(student, teacher, present, student_sample, teacher_sample)
    dtype, device = accumulation_dtype(student, teacher), student.device
    if form == "kl":
        own = as_scale(
            "student_scale", _SCALE if student_scale is None else student_scale, dtype, device
        )
        other = as_scale(
            "teacher_scale", _SCALE if teacher_scale is None else teacher_scale, dtype, device
        )
        # Views: traced code does not take one tensor as two arguments of a function of ours.
        return softmax_divergence(
            Similarities(student, student.view_as(student), own),
            Similarities(teacher, teacher.view_as(teacher), other),
            x_weight=1.0 / max(student.shape[0], 1),
            y_weight=0.0,
            without_diagonal=True,
        )
    loss = distance_loss if form == "distance" else angle_loss
    if torch.compiler.is_compiling():
        # Their backward calls autograd. Not as a decorator, which would import torch's compiler.
        loss = torch.compiler.disable(loss)
    return loss(student.to(dtype), teacher.detach().to(dtype))


def _rows_of_both(
    student: Tensor,
    teacher: Tensor,
    present: Tensor | None,
    student_sample: Tensor | None,
    teacher_sample: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The rows that take part, in one order."""
    if student_sample is None and teacher_sample is None:
        check_alike("rows", ("student", student), ("teacher", teacher))
        if present is None:
            return student, teacher
        rows = present_rows("present", present, student.shape[0]).to(student.device)
        return student[rows], teacher[rows]
    if student_sample is None or teacher_sample is None or present is not None:
        raise ValueError(
            "rows that take part are given by `present`, or by both student_sample and "
            "teacher_sample, which say absent by -1"
        )
    ours, theirs = matched_rows(student_sample, teacher_sample, student.shape[0], teacher.shape[0])
    return student[ours.to(student.device)], teacher[theirs.to(teacher.device)]
