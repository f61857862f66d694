"""What the losses of knowledge transfer take, checked and brought to one form."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import ABSENT

Scale = float | Tensor
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_embeddings(embeddings: Mapping[str, Tensor]) -> None:
    """Refuse what are no matrices of one device, `[rows, dim]` and floating-point.

    Raises:
        TypeError: One is no tensor, or of another dtype.
        ValueError: One has another number of dimensions, or the devices differ.
    """
    for name, one in embeddings.items():
        if not isinstance(one, Tensor) or one.dtype not in _DTYPES:
            given = one.dtype if isinstance(one, Tensor) else type(one).__name__
            raise TypeError(
                f"{name} is a tensor of embeddings in float64, float32, bfloat16 or float16, not "
                f"{given}"
            )
        if one.dim() != 2:
            raise ValueError(
                f"{name} is [rows, dim], not {list(one.shape)}: one embedding per row, such as a "
                "pooled output"
            )
    places = {name: one.device for name, one in embeddings.items()}
    if len(set(places.values())) > 1:
        found = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise ValueError(f"embeddings are on one device, not {found}: move them together")


def check_alike(kind: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    """Refuse two embeddings that differ in what `kind` names: "rows", or "columns and dtype".

    Raises:
        ValueError: They differ.
    """
    (name, one), (other_name, other) = first, second
    if kind == "rows" and one.shape[0] != other.shape[0]:
        raise ValueError(
            f"{name} has {one.shape[0]} rows and {other_name} {other.shape[0]}: they embed the "
            "same samples, row by row"
        )
    if kind != "rows" and (one.shape[1] != other.shape[1] or one.dtype != other.dtype):
        raise ValueError(
            f"{name} {list(one.shape)} in {one.dtype} and {other_name} {list(other.shape)} in "
            f"{other.dtype} are compared with one another: give them one width and dtype"
        )


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of them is."""
    wide = any(one.dtype == torch.float64 for one in tensors)
    return torch.float64 if wide else torch.float32


def as_scale(name: str, scale: Scale, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A scale as a tensor `[]`.

    Raises:
        ValueError: It is a number that is not positive and finite, or a tensor of several. The
            value of a tensor is not looked at: that would wait for the device.
        TypeError: It is neither a number nor a floating-point tensor.
    """
    if isinstance(scale, Tensor):
        if not scale.is_floating_point():
            raise TypeError(f"{name} is floating-point, not {scale.dtype}")
        if scale.numel() != 1:
            raise ValueError(f"{name} is one number, not a tensor of shape {list(scale.shape)}")
        return scale.reshape(()).to(device, dtype)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"{name} is a number or a tensor [], not {scale!r}")
    if not (scale > 0.0 and math.isfinite(scale)):
        raise ValueError(
            f"{name} must be positive and finite, not {scale}: it is the inverse of a temperature"
        )
    return torch.tensor(float(scale), dtype=dtype, device=device)


def present_rows(name: str, present: Tensor, rows: int) -> Tensor:
    """The numbers of the rows that are there, int64, on the CPU if `present` is.

    Raises:
        TypeError: `present` is not Boolean.
        ValueError: It has not one element per row.
    """
    if not isinstance(present, Tensor) or present.dtype != torch.bool:
        given = present.dtype if isinstance(present, Tensor) else type(present).__name__
        raise TypeError(f"{name} is a Boolean tensor, True for rows that are there, not {given}")
    if present.shape != (rows,):
        raise ValueError(f"{name} is [{rows}], one for each row, not {list(present.shape)}")
    return present.nonzero().squeeze(1)


def matched_rows(
    student: Tensor, teacher: Tensor, student_rows: int, teacher_rows: int
) -> tuple[Tensor, Tensor]:
    """Which row of the student and which of the teacher are of one sample.

    Args:
        student: `[N]` int64, the sample of each row; `ABSENT` for a row that is not there.
        teacher: `[M]`.
        student_rows: N.
        teacher_rows: M.

    Returns:
        The numbers of the rows that have a partner, on the CPU, in the order of the student's.

    Raises:
        TypeError: The sample numbers are not int64.
        ValueError: Not one per row, or a sample occurs twice on one side.
    """
    student = _samples("student_sample", student, student_rows)
    teacher = _samples("teacher_sample", teacher, teacher_rows)
    if not teacher_rows:
        return student[:0], student[:0]
    ordered, order = teacher.sort()
    place = torch.searchsorted(ordered, student).clamp_(max=teacher_rows - 1)
    found = ((ordered[place] == student) & (student != ABSENT)).nonzero().squeeze(1)
    return found, order[place[found]]


def _samples(name: str, given: Tensor, rows: int) -> Tensor:
    if not isinstance(given, Tensor) or given.dtype != torch.int64:
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name} is an int64 tensor of sample numbers, not {kind}")
    if given.shape != (rows,):
        raise ValueError(f"{name} is [{rows}], one for each row, not {list(given.shape)}")
    here = given.detach().cpu()
    numbers, counts = here[here != ABSENT].unique(return_counts=True)
    if numbers.numel() < int(counts.sum()):
        raise ValueError(
            f"{name} has {int(numbers[counts > 1][0])} more than once: a sample is one row of the "
            f"student and one of the teacher; {ABSENT} marks rows that are not there"
        )
    return here
