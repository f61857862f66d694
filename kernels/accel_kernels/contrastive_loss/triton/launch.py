"""From a batch to kernel arguments: block sizes, dtypes, stripes and regions, grids."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import Duplicates, Guide, Pairing
from accel_kernels.contrastive_loss.triton.blocks import (
    GREATEST_REGION,
    LEAST_REGION,
    blocks_of,
    padded,
    precision,
)
from accel_kernels.contrastive_loss.triton.language import (
    IGNORED,
    INTERPRETING,
    NEGATIVE,
    POSITIVE,
    tl,
)

_DUPLICATES: dict[Duplicates, int] = {
    "negative": NEGATIVE,
    "positive": POSITIVE,
    "ignore": IGNORED,
}
# A program of the grid takes several work items, so a small grid is right, only less parallel.
_INTERPRETED_PROGRAMS = 3
_GREATEST_GRID = 65_535  # coreDim of triton-ascend
_ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


class Region(NamedTuple):
    """A part of the logits whose weights are kept at once; whole tiles, the last ones too."""

    first_row: int
    first_column: int
    height: int
    stride: int


class Launch:
    """One batch's arguments to the kernels, as far as they do not differ between these.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.
        pairing: Of their rows.
        numbers: Other tensors that kernels name; `scale` is of the accumulation dtype.

    Raises:
        ValueError: The tensors are on the CPU, and Triton does not interpret.
    """

    def __init__(self, x: Tensor, y: Tensor, pairing: Pairing, **numbers: Tensor) -> None:
        check_device(x)
        self.x, self.dtype = x, numbers["scale"].dtype
        self.rows, self.columns, self.depth = len(x), len(y), x.shape[1]
        self.blocks, self.product_blocks = blocks_of(x)
        self.arguments = {
            "x": x.contiguous(),
            "y": y.contiguous(),
            "x_sample": pairing.x_sample.contiguous(),
            "y_sample": pairing.y_sample.contiguous(),
            **{name: tensor.contiguous() for name, tensor in numbers.items()},
            **self._groups(pairing),
            **self._guide(pairing.guide),
            **self._hardness(pairing.hardness),
            **self._compiled_in(),
        }

    def _groups(self, pairing: Pairing) -> dict[str, Any]:
        duplicates = _DUPLICATES[pairing.duplicates]
        x, y = pairing.x_group, pairing.y_group
        if x is None or y is None or duplicates == NEGATIVE:
            nothing = pairing.x_sample
            return {"x_group": nothing, "y_group": nothing, "DUPLICATES": NEGATIVE}
        return {"x_group": x.contiguous(), "y_group": y.contiguous(), "DUPLICATES": duplicates}

    def _guide(self, guide: Guide | None) -> dict[str, Any]:
        names = ("guide_x", "guide_y", "x_threshold", "y_threshold")
        if guide is None:
            nothing = dict.fromkeys(names, self.x)
            return {**nothing, "GUIDED": False, "GUIDE_DEPTH": 16, "GUIDE_BLOCK": 16}
        depth = guide.x.shape[1]
        return {
            **{name: tensor.contiguous() for name, tensor in zip(names, guide, strict=True)},
            "GUIDED": True,
            "GUIDE_DEPTH": depth,
            "GUIDE_BLOCK": min(self.blocks.depth, padded(depth)),
        }

    def _hardness(self, hardness: float) -> dict[str, Any]:
        # A tensor: a number would reach the kernel as float32.
        given = torch.full((), hardness, dtype=self.dtype, device=self.x.device)
        return {"hardness": given, "HARD": hardness != 0.0}

    def _compiled_in(self) -> dict[str, Any]:
        blocks, products = self.blocks, self.product_blocks
        return {
            "rows": self.rows,
            "columns": self.columns,
            "DEPTH": self.depth,
            "BLOCK": min(blocks.depth, padded(self.depth)),
            "WIDTH": min(products.width, padded(self.depth)),
            "ROWS": blocks.rows,
            "COLUMNS": blocks.columns,
            "OUT": products.out,
            "INNER": products.inner,
            "ACC": _ACCUMULATORS[self.dtype],
            "UPCAST": INTERPRETING,
            "PRECISION": precision(self.x),
        }

    def start(self, kernel: Any, items: int, **arguments: Any) -> None:
        """Run a kernel over so many work items; it is given the arguments that it names."""
        if not items:
            return
        blocks = self.product_blocks if "OUT" in kernel.arg_names else self.blocks
        options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
        given = {**self.arguments, "items": items, **arguments}
        given = {name: value for name, value in given.items() if name in kernel.arg_names}
        with _on_device(self.x.device):
            grid = (_programs(items, self.x.device),)
            kernel[grid](**given, **({} if INTERPRETING else options))

    def empty(self, *shape: int) -> Tensor:
        """Of the accumulation dtype, on the batch's device."""
        return torch.empty(shape, dtype=self.dtype, device=self.x.device)

    def zeros(self, *shape: int) -> Tensor:
        """The same, of zeros."""
        return torch.zeros(shape, dtype=self.dtype, device=self.x.device)

    def regions(self) -> Iterator[Region]:
        """Regions that cover the logits, row after row."""
        if not self.rows or not self.columns:
            return
        area = max(LEAST_REGION, (self.rows + self.columns) * self.depth // 2)
        area = min(area, GREATEST_REGION)
        edge = max(self.blocks.rows, self.blocks.columns, self.product_blocks.out)
        height = min(_whole(math.isqrt(area), edge), _whole(self.rows, edge))
        stride = min(_whole(area // height, edge), _whole(self.columns, edge))
        for row in range(0, self.rows, height):
            for column in range(0, self.columns, stride):
                yield Region(
                    row,
                    column,
                    min(height, _whole(self.rows - row, edge)),
                    min(stride, _whole(self.columns - column, edge)),
                )

    def tiles(self, region: Region) -> int:
        """Tiles of a region."""
        return region.height // self.blocks.rows * (region.stride // self.blocks.columns)

    def of_region(self, region: Region) -> dict[str, int]:
        """Its arguments to the kernels."""
        return {**region._asdict(), "row_blocks": region.height // self.blocks.rows}

    def product_tiles(self, region: Region) -> int:
        """Tiles of the gradients that a region adds to."""
        parts = -(-self.depth // self.arguments["WIDTH"]) if self.depth else 0
        return (region.height + region.stride) // self.product_blocks.out * parts


def check_device(x: Tensor) -> None:
    """Refuse CPU tensors unless Triton interprets.

    Raises:
        ValueError: The kernel would not find its data.
    """
    if x.device.type == "cpu" and not INTERPRETING:
        raise ValueError(
            "the triton kernel takes CPU tensors only in Triton's interpreter: set "
            "TRITON_INTERPRET=1 before the first call, or choose backend='cpu'"
        )


def _whole(size: int, block: int) -> int:
    return -(-size // block) * block


def _programs(items: int, device: torch.device) -> int:
    """Programs of a grid: on a GPU one for each item, on an NPU one for each core."""
    if INTERPRETING:
        return min(items, _INTERPRETED_PROGRAMS)
    return min(items, _cores(device)) if device.type == "npu" else items


def _cores(device: torch.device) -> int:
    properties: Any = torch.get_device_module(device).get_device_properties(device)
    return min(getattr(properties, "cube_core_num", None) or _GREATEST_GRID, _GREATEST_GRID)


def _on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors'."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    chosen: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return chosen
