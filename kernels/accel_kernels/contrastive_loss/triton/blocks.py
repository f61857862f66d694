"""How kernels are cut and how they multiply: by chip and dtype."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.triton.language import INTERPRETING
from accel_kernels.triton_language import float32_precision


class Blocks(NamedTuple):
    """How kernels cut the logits; powers of two, at least 16.

    Attributes:
        rows: Rows of a tile.
        columns: Columns of it.
        depth: Features that a step of its product takes.
        warps: Of a program.
        stages: Of its pipeline.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 8
    stages: int = 3


class ProductBlocks(NamedTuple):
    """How a product of weights and inputs is cut; powers of two, at least 16.

    Attributes:
        out: Rows of a tile of a gradient.
        inner: Weights of a row that a step takes; no more than `out`.
        width: Features of a tile.
        warps: Of a program.
        stages: Of its pipeline.
    """

    out: int
    inner: int
    width: int
    warps: int = 8
    stages: int = 3


# By bytes of an element. Chosen so that compiled code fits 99 KiB of shared memory and hardly
# spills, not yet by measured speed.
_GPU = {2: Blocks(128, 64, 64), 4: Blocks(128, 64, 32), 8: Blocks(64, 32, 16, stages=2)}
_GPU_PRODUCTS = {
    2: ProductBlocks(128, 32, 128),
    4: ProductBlocks(128, 32, 64),
    8: ProductBlocks(64, 16, 64, stages=2),
}
# 192 KiB of unified buffer hold every tile of a program; warps and stages mean nothing there.
_NPU = dict.fromkeys((2, 4), Blocks(64, 64, 64))
_NPU_PRODUCTS = dict.fromkeys((2, 4), ProductBlocks(64, 64, 64))
# Small and unequal, so that short tests have several tiles of either kind.
_INTERPRETER = dict.fromkeys((2, 4, 8), Blocks(16, 32, 16))
_INTERPRETER_PRODUCTS = dict.fromkeys((2, 4, 8), ProductBlocks(32, 16, 16))
_BLOCKS = {
    "cuda": (_GPU, _GPU_PRODUCTS),
    "xpu": (_GPU, _GPU_PRODUCTS),
    "npu": (_NPU, _NPU_PRODUCTS),
}
# Blocks of rows of a stripe, and blocks of columns of an item, in the forward kernel.
STRIPE = 2 if INTERPRETING else 32
STEPS = 2 if INTERPRETING else 8
# Weights that the backward keeps at once: so many, or half as many as gradients have elements.
LEAST_REGION = 1 << (11 if INTERPRETING else 24)
GREATEST_REGION = 1 << 28


def blocks_of(x: Tensor) -> tuple[Blocks, ProductBlocks]:
    """For the device and dtype of the embeddings."""
    logits, products = (
        (_INTERPRETER, _INTERPRETER_PRODUCTS) if INTERPRETING else _BLOCKS[x.device.type]
    )
    return logits[x.element_size()], products[x.element_size()]


def precision(x: Tensor) -> str:
    """Of products of the inputs: 16-bit ones are exact in every precision."""
    return float32_precision(x) if x.dtype == torch.float32 else "ieee"


def products_precision(x: Tensor) -> str:
    """How float32 weights are multiplied by inputs, as exactly as float32 is.

    float16 inputs are exact in TF32; a weight is a sum of two such numbers. Rounded to float16
    itself it would be lost: in a batch of N the typical weight is 1 / N**2.
    """
    if x.dtype == torch.float16 and x.device.type == "cuda":
        return "tf32x3"
    return precision(x)


def padded(size: int) -> int:
    """The power of two that holds it, and at least what a product needs."""
    return max(16, 1 << max(size - 1, 0).bit_length())
