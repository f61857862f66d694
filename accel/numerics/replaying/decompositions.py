"""Factorisations, which are unique only up to signs, phases and order, by what they multiply to.

A right factorisation of a matrix is an exact one of a matrix that differs from it by rounding
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 19.3). So its results are
their own truth if their product is that near and their vectors are orthonormal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Given, Results
from accel.numerics.replaying.refusals import CannotReplayError

_MOST = 15.0  # in unit roundoffs of the recorded dtype, times the root of the largest size


def _recorded(recorded: Results, *indices: int) -> list[Tensor]:
    there = recorded.outputs
    found = [there[index] if index < len(there) else None for index in indices]
    tensors = [tensor for tensor in found if tensor is not None]
    if len(tensors) < len(found):
        raise CannotReplayError("its factors were not all recorded")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise CannotReplayError("its factors are not finite")
    return [
        t.detach().to("cpu", torch.complex128 if t.is_complex() else torch.float64) for t in tensors
    ]


def _near(found: Tensor, wanted: Tensor, size: Tensor, dtype: torch.dtype) -> bool:
    """Whether matrices differ by rounding of a matrix of Frobenius norm `size`."""
    if found.shape != wanted.shape:
        return False
    unit = torch.finfo(dtype).eps / 2 * math.sqrt(max(found.shape[-2:], default=1))
    wrong = torch.linalg.matrix_norm(found - wanted)
    return bool((wrong <= _MOST * unit * size).all())


def _is_orthonormal(columns: Tensor, dtype: torch.dtype) -> bool:
    count = columns.shape[-1]
    product = columns.mH @ columns
    identity = torch.eye(count, dtype=columns.dtype).expand_as(product)
    return _near(product, identity, torch.tensor(math.sqrt(count), dtype=torch.float64), dtype)


def _judged(is_right: bool, factors: list[Tensor]) -> list[Tensor | None]:
    """The factors are their own truth if right; else none is known."""
    return [factor if is_right else factor * math.nan for factor in factors]


def _matrix(given: Mapping[str, Given]) -> tuple[Tensor, Tensor]:
    matrix = given["A"] if "A" in given else given["self"]
    return matrix, torch.linalg.matrix_norm(matrix)


def _dtype(recorded: Results) -> torch.dtype:
    return next(tensor.dtype for _, tensor in recorded.named())


def _qr(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    if given.get("mode", "reduced") == "r":
        raise CannotReplayError("of a QR factorisation without Q nothing but its signs is known")
    matrix, size = _matrix(given)
    dtype = _dtype(recorded)
    q, r = _recorded(recorded, 0, 1)
    right = _near(q @ r, matrix, size, dtype) and _is_orthonormal(q, dtype)
    return _judged(right and bool((r.tril(-1) == 0).all()), [q, r])


def _svd(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    matrix, size = _matrix(given)
    if not given.get("compute_uv", True):
        return [None, torch.linalg.svdvals(matrix), None]
    dtype = _dtype(recorded)
    u, s, vh = _recorded(recorded, 0, 1, 2)
    count = s.shape[-1]
    product = (u[..., :count] * s[..., None, :]) @ vh[..., :count, :]
    right = _near(product, matrix, size, dtype)
    right = right and _is_orthonormal(u, dtype) and _is_orthonormal(vh.mH, dtype)
    ordered = bool((s >= 0).all()) and bool((s.diff(dim=-1) <= 0).all())
    return _judged(right and ordered, [u, s, vh])


def _eigh(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    matrix, _ = _matrix(given)
    half = matrix.tril(-1) if given.get("UPLO", "L") == "L" else matrix.triu(1).mH
    diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1)
    whole = half + half.mH + torch.diag_embed(diagonal.real.to(matrix.dtype))
    if not given.get("compute_v", True):
        return [torch.linalg.eigvalsh(whole), None]
    dtype = _dtype(recorded)
    values, vectors = _recorded(recorded, 0, 1)
    product = (vectors * values[..., None, :]) @ vectors.mH
    right = _near(product, whole, torch.linalg.matrix_norm(whole), dtype)
    right = right and _is_orthonormal(vectors, dtype) and bool((values.diff(dim=-1) >= 0).all())
    return _judged(right, [values, vectors])


def _eig(given: Mapping[str, Given], recorded: Results) -> list[Tensor | None]:
    """Eigenvectors need not be orthogonal: each pair is checked, and that it has length 1."""
    matrix, size = _matrix(given)
    dtype = _dtype(recorded)
    values, vectors = _recorded(recorded, 0, 1)
    right = _near(matrix.to(vectors.dtype) @ vectors, vectors * values[..., None, :], size, dtype)
    lengths = torch.linalg.vector_norm(vectors, dim=-2)
    unit = torch.finfo(dtype).eps / 2
    right = right and bool(
        ((lengths - 1).abs() <= _MOST * unit * math.sqrt(matrix.shape[-1])).all()
    )
    trace = torch.diagonal(matrix, dim1=-2, dim2=-1).sum(-1)
    most = _MOST * unit * matrix.shape[-1] * size
    right = right and bool(((values.sum(-1) - trace).abs() <= most).all())
    return _judged(right, [values, vectors])


FORMULAS = {
    "aten::linalg_qr": _qr,
    "aten::_linalg_svd": _svd,
    "aten::_linalg_eigh": _eigh,
    "aten::linalg_eig": _eig,
}
"""By name."""
