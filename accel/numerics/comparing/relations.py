"""How one tensor follows from another: transposed, permuted, scaled, rounded, a few elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from accel.numerics.comparing.contents import distance, rounding
from accel_kernels.sketch import Sketch, sketch

# Rounding a normal tensor to p significant bits errs by 0.427 unit roundoffs in L2 (float16,
# bfloat16 and mantissas of 10 and 11 bits, 200,000 elements, all within 0.425 to 0.428). The
# estimate from a sketch spreads by 0.80 to 1.36 (1st to 99th percentile).
_ROUNDING_RMS = 0.427
_SPREAD = (0.6, 1.6)
_FEW = 0.25  # of a sketch's sums: what at most some twenty elements can touch
_SAME_NORM = 1e-12  # relative: squares are added in float64, in any order
# Elements that differ by less than this, relative L2, leave norms equal to _SAME_NORM.
_REORDERED = 1e-5
_LEAST_SCALED = 8  # elements: any one is another one scaled
_NARROW = (("bfloat16", 2.0**-8), ("float16 or TF32", 2.0**-11), ("HF32", 2.0**-12))


class Related(NamedTuple):
    """One value of one run, as far as it is known."""

    dtype: str
    shape: tuple[int, ...]
    sketch: Sketch | None
    tensor: Tensor | None


def relation(a: Related, b: Related) -> str:
    """How `b` follows from `a`, in a few words; empty if nothing was found.

    Sketches alone tell another order of the same elements (least, largest and norm are equal and
    the sketch is not), a scale, rounding, and how many elements differ if they are few. Which
    order it is takes the elements of one of the two.
    """
    if a.shape != b.shape:
        return _other_shape(a, b)
    apart = distance(a.sketch, b.sketch)
    if a.sketch is None or b.sketch is None or apart is None or apart == 0.0:
        return ""
    if a.sketch.mask != b.sketch.mask:
        return f"non-finite elements differ: {mask_text(a.sketch)} against {mask_text(b.sketch)}"
    if a.dtype == b.dtype and apart <= 4 * rounding(a.dtype):
        return "differs by rounding"  # if few elements differ so little, norms are equal too
    return (
        _order(a, b, a.sketch, b.sketch)
        or _few(a.sketch, b.sketch)
        or _scale(a.sketch, b.sketch)
        or _rounded(a, b, apart)
    )


def is_definite(relation: str) -> bool:
    """Whether a relation says more than by how much: training does not transpose or scale."""
    return bool(relation) and not relation.startswith(("differs by", "only about"))


def mask_text(one: Sketch) -> str:
    """The non-finite elements of a tensor in words."""
    parts = [
        f"{count} {name}"
        for count, name in (
            (one.nan, "NaN"),
            (one.positive_infinite, "inf"),
            (one.negative_infinite, "-inf"),
        )
        if count
    ]
    return ", ".join(parts) or "all finite"


def _other_shape(a: Related, b: Related) -> str:
    if math.prod(a.shape) != math.prod(b.shape) or a.sketch is None or b.sketch is None:
        return "of another shape"
    if distance(a.sketch, b.sketch) == 0.0:
        return "reshaped"
    swapped = len(a.shape) > 1 and b.shape == (*a.shape[:-2], a.shape[-1], a.shape[-2])
    if swapped and has_same_elements(a.sketch, b.sketch):
        return _reordered(a, b) or "transposed (as its shape says; the elements are the same)"
    return "of another shape"


def has_same_elements(a: Sketch, b: Sketch) -> bool:
    """Whether two tensors seem to have the same elements, in any order."""
    near = math.isclose(a.norm, b.norm, rel_tol=_SAME_NORM)
    return near and (a.least, a.largest, a.count) == (b.least, b.largest, b.count)


def _order(a: Related, b: Related, left: Sketch, right: Sketch) -> str:
    if left.count < 2 or left.least == left.largest or not has_same_elements(left, right):
        return ""
    if (distance(left, right) or 0.0) < _REORDERED:
        return ""
    found = _reordered(a, b)
    return found or "same elements in another order (transposed or permuted?)"


def _reordered(a: Related, b: Related) -> str:
    """Which order, if the elements of either are known."""
    if a.tensor is not None and b.tensor is not None:
        named = [*_orders(a.tensor), *_permutations(a.tensor, b.tensor)]
        fits = [name for name, moved in named if moved.shape == b.shape and moved.equal(b.tensor)]
    elif a.tensor is not None or b.tensor is not None:
        known, other = (a.tensor, b.sketch) if a.tensor is not None else (b.tensor, a.sketch)
        named = [] if known is None else list(_orders(known))
        fits = [name for name, moved in named if distance(other, sketch(moved)) == 0.0]
    else:
        return ""
    return next(iter(fits), "")


def _orders(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for first in range(tensor.dim()):
        for second in range(first + 1, tensor.dim()):
            last = (first, second) == (tensor.dim() - 2, tensor.dim() - 1)
            name = "transposed" if last else f"transposed in dimensions {first} and {second}"
            moved = tensor.transpose(first, second)
            yield name, moved
            if moved.shape != tensor.shape:
                yield f"{name} and reshaped", moved.reshape(tensor.shape)
    for dim in range(tensor.dim()):
        if tensor.shape[dim] > 1:
            yield f"reversed along dimension {dim}", tensor.flip(dim)
            for by in (1, -1):
                yield f"rolled by {by} along dimension {dim}", tensor.roll(by, dim)


def _permutations(a: Tensor, b: Tensor) -> Iterator[tuple[str, Tensor]]:
    """`a` with the slices along each dimension in the order in which `b` seems to have them."""
    if a.shape != b.shape:
        return
    for dim in range(a.dim()):
        places = [_ranking(one, dim) for one in (a, b)]
        order = torch.empty_like(places[0])
        order[places[1]] = places[0]
        yield f"permuted along dimension {dim}", a.index_select(dim, order)


def _ranking(tensor: Tensor, dim: int) -> Tensor:
    """Which slice has the least weighted sum, and so on."""
    rows = tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1).to(torch.float64)
    weights = torch.linspace(1.0, 2.0, rows.shape[1], dtype=torch.float64)
    return (rows.nan_to_num() @ weights).argsort(stable=True)


def _few(a: Sketch, b: Sketch) -> str:
    touched = sum(x != y for x, y in zip(a.sums, b.sums, strict=True))
    share = touched / len(a.sums)
    if share > _FEW or a.count <= len(a.sums):
        return ""
    elements = max(1, round(-len(a.sums) * math.log1p(-share)))
    return f"only about {elements} of {a.count} elements differ"


def _scale(a: Sketch, b: Sketch) -> str:
    squares = math.fsum(x * x for x in a.sums)
    if squares == 0.0 or a.norm == 0.0 or a.count < _LEAST_SCALED:
        return ""
    scale = math.fsum(x * y for x, y in zip(a.sums, b.sums, strict=True)) / squares
    rest = math.sqrt(math.fsum((y - scale * x) ** 2 for x, y in zip(a.sums, b.sums, strict=True)))
    if scale == 0.0 or rest > 0.01 * abs(scale - 1.0) * math.sqrt(squares):
        return ""
    return f"scaled by {scale:.6g}"


def _rounded(a: Related, b: Related, apart: float) -> str:
    if a.tensor is not None and b.tensor is not None and a.tensor.is_floating_point():
        for dtype in (torch.bfloat16, torch.float16):
            if a.tensor.to(dtype).to(torch.float64).equal(b.tensor.to(torch.float64)):
                return f"rounded to {dtype}".replace("torch.", "")
    if rounding(b.dtype) > rounding(a.dtype) and apart <= rounding(b.dtype):
        return f"rounded to {b.dtype}"
    if rounding(a.dtype) > rounding(b.dtype) and apart <= rounding(a.dtype):
        return f"the reference is it rounded to {a.dtype}"
    for name, unit in _NARROW:
        least, most = (factor * _ROUNDING_RMS * unit for factor in _SPREAD)
        if rounding(a.dtype) < unit and least < apart < most:
            return f"differs by as much as rounding to {name} would change it"
    return ""
