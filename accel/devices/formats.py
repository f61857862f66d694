"""Which products of scaled 8-bit matrices chips compute themselves.

An operand is named by its format and by what shares a scale in it, as `accel_kernels.fp8` names
them.

CUDA: torch's ScaledBlas.cpp and cuBLAS's documentation: one scale per matrix or row
from capability 8.9 on (where cuBLAS knows no scales of rows they multiply the result), blocks of
128 on 9.x only (with CUDA 12.9), MX blocks from 10.0 on; never two E5M2 matrices.
Ascend: CANN's page of aclnnQuantMatmulV5, the part on Ascend 950:
its modes T-T, T-C, K-T, K-C, G-B, B-B and mx. Two matrices with blocks of 1x128, as the gradient of
a weight needs them, are not among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple, TypeAlias

import torch

from accel.devices.chips import Chip

_E4M3, _E5M2, _HIF8 = "float8_e4m3fn", "float8_e5m2", "hifloat8"
_Pairs: TypeAlias = tuple[tuple[str, str], ...]
_NOT_BOTH_E5M2: _Pairs = ((_E4M3, _E4M3), (_E4M3, _E5M2), (_E5M2, _E4M3))
_OCP_PAIRS: _Pairs = (*_NOT_BOTH_E5M2, (_E5M2, _E5M2))
_WHOLE: _Pairs = (("tensor", "tensor"), ("tensor", "row"), ("row", "tensor"), ("row", "row"))
_CUDA_BLOCKS: _Pairs = (("1x128", "1x128"), ("1x128", "128x128"), ("128x128", "1x128"))
_ASCEND_BLOCKS: _Pairs = (("1x128", "128x128"), ("128x128", "1x128"), ("128x128", "128x128"))
_MX: _Pairs = (("1x32", "1x32"),)


class ScaledProduct(NamedTuple):
    """A product of two scaled matrices.

    Attributes:
        left: Format of the one, such as `float8_e4m3fn`.
        right: Format of the other.
        left_blocks: What shares a scale in the one: tensor, row, 1x128, 128x128 or 1x32.
        right_blocks: What shares a scale in the other.
    """

    left: str
    right: str
    left_blocks: str
    right_blocks: str


def cuda_products(capability: tuple[int, int]) -> frozenset[ScaledProduct]:
    """Those of an NVIDIA GPU of this compute capability."""
    if capability < (8, 9):
        return frozenset()
    blocks = () if capability < (9, 0) else _CUDA_BLOCKS if capability < (10, 0) else _MX
    return _products(_NOT_BOTH_E5M2, (*_WHOLE, *blocks))


def ascend_products(chip: Chip) -> frozenset[ScaledProduct]:
    """Those of an Ascend chip."""
    if not chip.fp8:
        return frozenset()
    scales = (*_WHOLE, *_ASCEND_BLOCKS)
    return _products((*_OCP_PAIRS, (_HIF8, _HIF8)), scales) | _products(_OCP_PAIRS, _MX)


def tensorwise_products(dtypes: Iterable[torch.dtype]) -> frozenset[ScaledProduct]:
    """Those of a chip of which only its 8-bit dtypes are known: one scale per matrix."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return _products(product(names, names), (("tensor", "tensor"),))


def _products(
    formats: Iterable[tuple[str, str]], blocks: Iterable[tuple[str, str]]
) -> frozenset[ScaledProduct]:
    return frozenset(ScaledProduct(*pair, *scales) for pair, scales in product(formats, blocks))
