"""A product's operands and scales as `torch.nn.functional.scaled_mm` takes them.

Sources: torch's ScaledBlas.cpp for shapes and strides; cuBLAS's documentation, "1D block scaling
for FP8 and FP4 data types", for the arrangement of MX scales.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_kernels.fp8 import Quantized, expand_scales

if TYPE_CHECKING:  # torch before 2.10 has neither, and is told so by `chip.why_absent`
    from torch.nn.functional import ScalingType, SwizzleType

ALIGNED = 16
"""K and N of every product are multiples of this."""
BLOCK = 128
RUN = 32
_E8M0_ONE = 127
_ROWS = torch.contiguous_format


class Product(NamedTuple):
    """What `scaled_mm` is called with.

    Attributes:
        mat_a: `[M', K']`, 8-bit floats, row by row; padded with zeros.
        mat_b: `[K', N']`, column by column.
        scale_a: By the recipe.
        recipe_a: Which values of `mat_a` share a scale.
        scale_b: By the recipe.
        recipe_b: Which of `mat_b`.
        size: `(M, N)`, of the result without padding.
        swizzle: How the scales are arranged, if they are.
    """

    mat_a: Tensor
    mat_b: Tensor
    scale_a: Tensor
    recipe_a: ScalingType
    scale_b: Tensor
    recipe_b: ScalingType
    size: tuple[int, int]
    swizzle: SwizzleType | None = None

    @property
    def takes_bias(self) -> bool:
        """Whether a bias may be added within the product: to blocks it is added afterwards."""
        return self.recipe_a in (F.ScalingType.TensorWise, F.ScalingType.RowWise)


def tensorwise(a: Quantized, b: Quantized) -> Product:
    """One scale for each operand, `[1]`."""
    scales = a.scales.reshape(1), b.scales.reshape(1)
    return _product(a, b, scales, (F.ScalingType.TensorWise,) * 2, (1, ALIGNED, ALIGNED))


def unscaled(a: Quantized, b: Quantized) -> Product:
    """The product of the codes' values."""
    one = torch.ones(1, device=a.codes.device)
    return _product(a, b, (one, one), (F.ScalingType.TensorWise,) * 2, (1, ALIGNED, ALIGNED))


def rowwise(a: Quantized, b: Quantized) -> Product:
    """`[M, 1]` and `[1, N]`; a scale of the whole is every row's."""
    rows, columns = a.codes.shape[0], b.codes.shape[0]
    across = padded(b.scales.reshape(-1).expand(columns), _up(columns, ALIGNED))
    scales = a.scales.expand(rows, 1).contiguous(), across.unsqueeze(0)
    return _product(a, b, scales, (F.ScalingType.RowWise,) * 2, (1, ALIGNED, ALIGNED))


def blockwise(a: Quantized, b: Quantized) -> Product:
    """1x128 with 128x128 either way, or both 1x128; coarser scales are repeated.

    Scales of 1x128 are `[rows, K / 128]`, those of 128x128 `[K / 128 up to a multiple of 4, rows /
    128]`; both column by column.
    """
    squares = [item.scaling.granularity == "128x128" for item in (a, b)]
    if all(squares):
        squares[0] = False  # there is no recipe for two of them
    first, second = (_blocks(item, square) for item, square in zip((a, b), squares, strict=True))
    high = BLOCK if squares[0] else ALIGNED, BLOCK if squares[1] else ALIGNED, BLOCK
    return _product(a, b, (first[0], second[0]), (first[1], second[1]), high)


def _blocks(item: Quantized, is_square: bool) -> tuple[Tensor, ScalingType]:
    rows, runs = item.codes.shape[0], -(-item.codes.shape[1] // BLOCK)
    if is_square:
        scales = _by_column(item.scales.t(), _up(runs, 4), item.scales.shape[0])
        return scales, F.ScalingType.BlockWise128x128
    return _by_column(_per_row(item), _up(rows, ALIGNED), runs), F.ScalingType.BlockWise1x128


def microscaled(a: Quantized, b: Quantized) -> Product:
    """1x32 with E8M0 scales, arranged in tiles of 128 rows by 4."""
    scales = _swizzled(a), _swizzled(b)
    found = _product(a, b, scales, (F.ScalingType.BlockWise1x32,) * 2, (1, ALIGNED, RUN))
    return found._replace(swizzle=F.SwizzleType.SWIZZLE_32_4_4)


def part(item: Quantized, start: int, end: int) -> Quantized:
    """Columns in which no scale changes, as a matrix with one scale for each row, or one in all."""
    codes, scales, scaling = item
    rows = codes.shape[0]
    column = start // scaling.block(*codes.shape)[1]
    kept = expand_scales(scales[:, column : column + 1], scaling, rows, 1)
    if scaling.granularity != "tensor":
        kept, scaling = kept.expand(rows, 1), replace(scaling, granularity="row")
    piece = codes[:, start:end]
    return Quantized(piece.clone(memory_format=_ROWS) if start % ALIGNED else piece, kept, scaling)


def _product(
    a: Quantized,
    b: Quantized,
    scales: tuple[Tensor, Tensor],
    recipes: tuple[ScalingType, ScalingType],
    multiples: tuple[int, int, int],
) -> Product:
    rows, columns, depth = multiples
    return Product(
        _matrix(a, rows, depth),
        _matrix(b, columns, depth).t(),
        scales[0],
        recipes[0],
        scales[1],
        recipes[1],
        (a.codes.shape[0], b.codes.shape[0]),
    )


def _matrix(item: Quantized, rows: int, columns: int) -> Tensor:
    """The codes in torch's dtype, row by row, with zeros up to multiples of both."""
    codes, dtype = item.codes, item.scaling.format.dtype
    if dtype is None:
        raise ValueError(f"torch has no dtype of {item.scaling.format} for scaled_mm")
    missing = -codes.shape[0] % rows, -codes.shape[1] % columns
    if any(missing):
        codes = F.pad(codes, (0, missing[1], 0, missing[0]))
    return (codes if _is_aligned(codes) else codes.clone(memory_format=_ROWS)).view(dtype)


def _is_aligned(codes: Tensor) -> bool:
    """Whether each row begins at a multiple of 16 bytes, as cuBLAS reads them.

    Traced code cannot ask where a view begins; `part` makes none that begins elsewhere.
    """
    step, unit = codes.stride()
    if unit != 1 or step < codes.shape[1] or step % ALIGNED:
        return False
    return torch.compiler.is_compiling() or codes.storage_offset() % ALIGNED == 0


def _per_row(item: Quantized) -> Tensor:
    """The scales of each row in each run of 128, `[rows, ceil(K / 128)]`."""
    codes, scales, scaling = item
    rows, depth = codes.shape
    high = scaling.block(rows, depth)[0]
    if scales.shape[0] > 1 and high > 1:
        scales = scales.repeat_interleave(high, 0)[:rows]
    return scales.expand(rows, -(-depth // BLOCK))


def _by_column(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Ones beyond the scales, up to `[rows, columns]`, and column by column in memory."""
    missing = rows - scales.shape[0], columns - scales.shape[1]
    return F.pad(scales, (0, missing[1], 0, missing[0]), value=1.0).t().contiguous().t()


def _swizzled(item: Quantized) -> Tensor:
    """E8M0 codes in tiles of 128 rows by 4 runs, 16 consecutive for every fourth of the 128 rows.

    Within a tile row r and run c are at `(r % 32) * 16 + (r // 32) * 4 + c`; tiles follow one
    another along K, then along the rows.
    """
    # A power of two as float32 is its exponent, biased as E8M0 has it, before 23 zeros.
    codes = (item.scales.view(torch.int32) >> 23).to(torch.uint8)
    missing = -codes.shape[0] % BLOCK, -codes.shape[1] % 4
    codes = F.pad(codes, (0, missing[1], 0, missing[0]), value=_E8M0_ONE)
    tiles = codes.view(codes.shape[0] // BLOCK, 4, 32, codes.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1).view(torch.float8_e8m0fnu)


def padded(vector: Tensor, size: int) -> Tensor:
    """A vector with ones behind it."""
    return F.pad(vector, (0, size - vector.shape[0]), value=1.0)


def _up(size: int, multiple: int) -> int:
    return size + -size % multiple
