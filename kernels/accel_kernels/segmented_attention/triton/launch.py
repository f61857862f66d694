"""From a call to kernel arguments: sizes, strides, masks as tables, block sizes, grids."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import visibility
from accel_kernels.philox import WORD_BITS
from accel_kernels.segmented_attention.call import Bias, Call, Dropout, sizes_of
from accel_kernels.segmented_attention.triton.blocks import block_table
from accel_kernels.segmented_attention.triton.language import (
    ALIBI,
    CAUSAL,
    DENSE,
    EVERYTHING,
    INTERPRETING,
    INTERVALS,
    RELATIVE,
    UNBIASED,
)
from accel_kernels.triton_language import float32_precision

_BIAS_KINDS = {"dense": DENSE, "alibi": ALIBI, "relative": RELATIVE}


class Blocks(NamedTuple):
    """How a kernel is cut: a tile's queries and keys, a program's warps, its pipeline's stages."""

    rows: int
    keys: int
    warps: int = 4
    stages: int = 2


class _Row(NamedTuple):
    """Blocks for heads whose wider row, padded to a power of two, has up to so many bytes."""

    bytes: int
    forward: Blocks
    backward: Blocks


# Chosen so that compiled code fits shared memory and hardly spills, not yet by measured speed.
_GPU = (
    _Row(128, Blocks(128, 64, 8, 3), Blocks(64, 64, 8, 2)),
    _Row(256, Blocks(128, 64, 8, 2), Blocks(64, 64, 8, 2)),
    _Row(512, Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)),
    _Row(1024, Blocks(32, 32, 4, 1), Blocks(32, 16, 4, 1)),
    _Row(2048, Blocks(16, 16, 4, 1), Blocks(16, 16, 4, 1)),
)
# 192 KiB of unified buffer hold every tile of a program; warps and stages mean nothing there.
_NPU = (
    _Row(256, Blocks(64, 64), Blocks(32, 32)),
    _Row(1024, Blocks(32, 32), Blocks(16, 16)),
    _Row(2048, Blocks(16, 16), Blocks(16, 16)),
)
# Small and unequal, so that short tests have several tiles of either kind.
_INTERPRETER = (_Row(1 << 30, Blocks(16, 32), Blocks(32, 16)),)
_BLOCKS = {"cuda": _GPU, "xpu": _GPU, "npu": _NPU}
GREATEST_HEAD_SIZE = 512
# A program of the grid takes several work items, so a small grid is right, only less parallel.
_INTERPRETED_PROGRAMS = 3
_GREATEST_GRID = 65_535  # coreDim of triton-ascend


class Launch:
    """One call's arguments to the kernels, as far as they do not differ between these."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> None:
        check_device(query)
        self.query, self.key, self.value, self.call = query, key, value, call
        self.sizes = sizes_of(query, key)
        self.seen = visibility(call.mask, self.sizes, query.device)
        self.width, self.value_width = _padded(query.shape[3]), _padded(value.shape[3])
        self.row = _row_of(query, max(self.width, self.value_width))
        self.arguments = self._arguments()

    def _arguments(self) -> dict[str, Any]:
        sizes, call = self.sizes, self.call
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            **strides("query", self.query),
            **strides("key", self.key),
            **strides("value", self.value),
            **self._dense(),
            **_bias(call.bias, self),
            **_dropout(call.dropout, self),
            "heads": sizes.heads,
            "group": sizes.heads // self.key.shape[1],
            "queries": sizes.query_length,
            "keys": sizes.key_length,
            "scale": float(call.scale),
            "softcap": 1.0 if call.softcap is None else float(call.softcap),
            "SOFTCAP": call.softcap is not None,
            "HEAD": self.query.shape[3],
            "VALUE": self.value.shape[3],
            "WIDTH": self.width,
            "VALUE_WIDTH": self.value_width,
            "UPCAST": INTERPRETING,
            "PRECISION": float32_precision(self.query),
        }

    def _dense(self) -> dict[str, Any]:
        if self.seen.dense is None:
            given = {"dense": self.query, **dict.fromkeys(map("dense_{}".format, range(4)), 0)}
            return {**given, "SPARSE": False}
        dense = self.seen.dense.expand(*self.sizes).view(torch.uint8)
        return {"dense": dense, **strides("dense", dense), "SPARSE": True}

    def masking(self, blocks: Blocks) -> dict[str, Any]:
        """The mask for tiles of these sizes, and the sizes."""
        bounds = self.seen.intervals
        common = {"ROWS": blocks.rows, "COLUMNS": blocks.keys}
        if not INTERPRETING:
            common |= {"num_warps": blocks.warps, "num_stages": blocks.stages}
        if bounds is None:
            kind = CAUSAL if self.seen.causal else EVERYTHING
            names = ("bounds_batch", "bounds_end", "table_batch", "table_interval")
            nothing = {"bounds": self.query, "table": self.query, **dict.fromkeys(names, 0)}
            return {**common, **nothing, "MASK": kind, "INTERVALS": 1}
        bounds = bounds.contiguous()
        table = block_table(bounds, self.sizes.key_length, blocks.rows, blocks.keys)
        each = bounds.shape[2] > 1
        return {
            **common,
            "bounds": bounds,
            "table": table,
            "bounds_batch": bounds.stride(2) if each else 0,
            "bounds_end": bounds.stride(1),
            "table_batch": table.stride(1) if each else 0,
            "table_interval": table.stride(0),
            "MASK": INTERVALS,
            "INTERVALS": bounds.shape[0],
        }

    def start(self, kernel: Any, items: int, **arguments: Any) -> None:
        """Run a kernel over so many work items; it is given the arguments that it names."""
        grid = (programs(items, self.query.device),)
        known = {*kernel.arg_names, "num_warps", "num_stages"}
        given = {**self.arguments, "items": items, **arguments}
        with _on_device(self.query.device):
            kernel[grid](**{name: value for name, value in given.items() if name in known})


def check_device(query: Tensor) -> None:
    """Refuse CPU tensors unless Triton interprets.

    Raises:
        ValueError: The kernel would not find its data.
    """
    if query.device.type == "cpu" and not INTERPRETING:
        raise ValueError(
            "the triton kernel takes CPU tensors only in Triton's interpreter: set "
            "TRITON_INTERPRET=1 before the first call, or choose backend='cpu'"
        )


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """`{name_0: …, name_3: …}` of a tensor of four dimensions."""
    return {f"{name}_{at}": stride for at, stride in enumerate(tensor.stride())}


def programs(items: int, device: torch.device) -> int:
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


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _row_of(query: Tensor, width: int) -> _Row:
    rows = _INTERPRETER if INTERPRETING else _BLOCKS[query.device.type]
    size = width * query.element_size()
    return next(row for row in rows if size <= row.bytes)


def _bias(bias: Bias | None, launch: Launch) -> dict[str, Any]:
    names = [f"bias_{at}" for at in range(4)]
    if bias is None:
        nothing = {"bias": launch.query, **dict.fromkeys(names, 0)}
        return {**nothing, "bias_shift": 0, "bias_reach": 0, "BIAS": UNBIASED}
    tensor, sizes, reach = bias.tensor, launch.sizes, 0
    if bias.kind == "dense":
        steps = tuple(tensor.expand(*sizes).stride())
    elif bias.kind == "alibi":
        steps = (*tensor.expand(sizes.batch, sizes.heads).stride(), 0, 0)
    else:
        reach = tensor.shape[1] // 2
        each = tensor.expand(sizes.heads, tensor.shape[1])
        steps = (0, each.stride(0), 0, each.stride(1))
    return {
        "bias": tensor,
        **dict(zip(names, steps, strict=True)),
        "bias_shift": bias.place(sizes),
        "bias_reach": reach,
        "BIAS": _BIAS_KINDS[bias.kind],
    }


def _dropout(dropout: Dropout | None, launch: Launch) -> dict[str, Any]:
    """The position of element `(b, h, i, j)` is `first + b * _0 + h * _1 + i * _2 + j`."""
    if dropout is None:
        numbers = (0, 0, 0, 0, 0, 0, 0)
        inverse = 1.0
    else:
        heads, queries, keys = dropout.sizes or launch.sizes[1:]
        b0, h0, i0, j0 = dropout.first
        first = ((b0 * heads + h0) * queries + i0) * keys + j0
        seed = int(dropout.seed)
        numbers = (
            first, heads * queries * keys, queries * keys, keys,
            _signed(seed), _signed(seed >> WORD_BITS), round(dropout.p * 2**WORD_BITS),
        )  # fmt: skip
        inverse = 1.0 / (1.0 - dropout.p)
    names = (
        "position_first", "position_0", "position_1", "position_2",
        "seed_low", "seed_high", "threshold",
    )  # fmt: skip
    return {
        **dict(zip(names, numbers, strict=True)),
        "inverse_keep": inverse,
        "DROPOUT": dropout is not None,
        "SIGNED": signed_words(launch.query.device),
    }


def signed_words(device: torch.device) -> bool:
    """Whether the device's Triton lacks the unsigned numbers of `tl.philox`."""
    return device.type == "npu"


def _signed(word: int) -> int:
    """The lower 32 bits as a signed number, so that every seed has one type."""
    word &= (1 << WORD_BITS) - 1
    return word - (1 << WORD_BITS) if word >> (WORD_BITS - 1) else word


def is_empty(query: Tensor, key: Tensor) -> bool:
    """Whether there is nothing to compute: no row, or no key that one could see."""
    return 0 in query.shape[:3] or key.shape[2] == 0


def default_scale(query: Tensor, scale: float | None) -> float:
    """`1 / sqrt(D)` unless given."""
    return 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
