"""Distillation in logit form: the student's softmax over a batch follows the teacher's."""

from __future__ import annotations

from torch import Tensor

from accel.alignment.loss import DIRECTIONS, Direction
from accel.alignment.transfer.divergence import Similarities, softmax_divergence
from accel.alignment.transfer.inputs import (
    Scale,
    accumulation_dtype,
    as_scale,
    check_alike,
    check_embeddings,
    present_rows,
)


def distillation_loss(
    student_x: Tensor,
    student_y: Tensor,
    teacher_x: Tensor,
    teacher_y: Tensor,
    *,
    student_scale: Scale,
    teacher_scale: Scale,
    direction: Direction = "both",
    x_present: Tensor | None = None,
    y_present: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's retrieval within a batch from the teacher's.

    For each `x_i` the teacher's softmax over `teacher_scale * teacher_x_i . teacher_y_j` says how
    likely each `y_j` is its partner; the loss is the mean over i of `KL(teacher || student)`, and
    for each `y_j` over all `x_i` likewise (Hinton et al., arXiv 1503.02531, for any softmax; the
    affinity mimicking of TinyCLIP, arXiv 2309.12314, for this one). Nothing needs to be paired:
    what is compared is the teacher's opinion of all pairs. Its gradient is that of the
    cross-entropy which OpenCLIP's `DistillClipLoss` takes; the value differs by the teacher's
    entropy, so that it is 0 where the student agrees.

    Time is `O(N M)`, memory `O(N + M)` beyond the gradients: no matrix is stored. Embeddings are
    used as they are; normalise them where similarities are to be cosines. NaN or infinity anywhere
    among the rows that are there makes the loss and all gradients NaN. A zero vector is equally
    similar to everything. The gradient is not differentiable.

    Args:
        student_x: `[N, D]`, float64, float32, bfloat16 or float16.
        student_y: `[M, D]`, of the same dtype.
        teacher_x: `[N, E]`, the same samples as `student_x`; any of the dtypes, any width.
        teacher_y: `[M, E]`, the same samples as `student_y`.
        student_scale: Inverse temperature; a tensor `[]` may be learned.
        teacher_scale: Inverse temperature of the teacher; never gets a gradient.
        direction: "x_to_y" takes only the softmaxes of the rows of x over y, "y_to_x" the others,
            "both" the mean of the two means.
        x_present: `[N]` bool, False for samples that have no x: they are neither anchors nor
            candidates. On the CPU it costs no wait for the device. None: all are there.
        y_present: `[M]`, likewise.

    Returns:
        `[]`, float32, or float64 if an embedding is. 0 where no row of x or none of y is there.

    Raises:
        TypeError: What is given is no tensor of such dtypes, or a scale is no number.
        ValueError: Shapes, dtypes or devices do not fit one another, a scale is not positive, or
            the direction is unknown.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is one of {', '.join(DIRECTIONS)}, not {direction!r}")
    named = {"student_x": student_x, "student_y": student_y}
    named |= {"teacher_x": teacher_x, "teacher_y": teacher_y}
    check_embeddings(named)
    check_alike("columns", ("student_x", student_x), ("student_y", student_y))
    check_alike("columns", ("teacher_x", teacher_x), ("teacher_y", teacher_y))
    check_alike("rows", ("student_x", student_x), ("teacher_x", teacher_x))
    check_alike("rows", ("student_y", student_y), ("teacher_y", teacher_y))
    student_x, teacher_x = _present("x_present", x_present, student_x, teacher_x)
    student_y, teacher_y = _present("y_present", y_present, student_y, teacher_y)
    dtype, device = accumulation_dtype(*named.values()), student_x.device
    student = Similarities(
        student_x, student_y, as_scale("student_scale", student_scale, dtype, device)
    )
    teacher = Similarities(
        teacher_x, teacher_y, as_scale("teacher_scale", teacher_scale, dtype, device)
    )
    n, m = student_x.shape[0], student_y.shape[0]
    share = 0.5 if direction == "both" else 1.0
    return softmax_divergence(
        student,
        teacher,
        x_weight=share / max(n, 1) if direction != "y_to_x" else 0.0,
        y_weight=share / max(m, 1) if direction != "x_to_y" else 0.0,
    )


def _present(name: str, present: Tensor | None, *embeddings: Tensor) -> tuple[Tensor, ...]:
    if present is None:
        return embeddings
    rows = present_rows(name, present, embeddings[0].shape[0])
    return tuple(one[rows.to(one.device)] for one in embeddings)
