"""Inputs for the eight-bit codec, and the truth about them by search among the format's values."""

import functools
import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from accel_kernels.fp8 import E4M3, E5M2, FORMATS, HIF8, Format
from accel_kernels.fp8.values import value_of

ALL = list(FORMATS.values())
CODES = torch.arange(256).to(torch.uint8)
WORDS = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
# The first magnitude that is rounded beyond the largest value; it is itself in E5M2 and HiFloat8.
BEYOND = {E4M3: 464.0, E5M2: 61440.0, HIF8: 40960.0}


@functools.cache
def positive_codes(form: Format) -> list[int]:
    """Codes of zero and the positive finite values, by value."""
    finite = [code for code in range(128) if math.isfinite(value_of(code, form))]
    return sorted(finite, key=lambda code: value_of(code, form))


def midpoints(form: Format) -> list[float]:
    values = [value_of(code, form) for code in positive_codes(form)]
    return [(a + b) / 2 for a, b in pairwise(values)] + [BEYOND[form]]


def around(points: list[float], dtype: torch.dtype) -> Tensor:
    """Each point, its neighbours in a dtype, and the negatives of all."""
    exact = torch.tensor(points, dtype=torch.float64).to(dtype)
    if dtype in (torch.float64, torch.float32):
        near = [torch.nextafter(exact, torch.full_like(exact, end)) for end in (0.0, math.inf)]
    else:
        words = exact.view(torch.int16)
        near = [(words + step).view(dtype) for step in (-1, 1)]
    points_there = torch.cat([exact, *near])
    return torch.cat([points_there, -points_there])


def nearest(values: Tensor, form: Format, saturate: bool) -> Tensor:
    """The right codes of float64 `values`, found among the format's values one by one."""
    codes = positive_codes(form)
    table = np.array([value_of(code, form) for code in codes])
    x = values.double().numpy()
    size = np.abs(x)
    above = np.clip(np.searchsorted(table, size), 1, len(table) - 1)
    below = above - 1
    up, down = table[above] - size, size - table[below]
    away = np.full(above.shape, form is HIF8)  # of ties; the others go to the even code
    tie = away | (np.array(codes)[above] % 2 == 0)
    found = np.array(codes)[np.where((up < down) | ((up == down) & tie), above, below)]
    far = size > BEYOND[form] if form is E4M3 else size >= BEYOND[form]
    beyond = codes[-1] if saturate else codes[-1] + 1
    found = np.where(size > table[-1], np.where(far | saturate, beyond, codes[-1]), found)
    negative = np.where(np.signbit(x), 0x80, 0)
    if form is HIF8:
        found = np.where(found == 0, 0, found | negative)
        return torch.from_numpy(np.where(np.isnan(x), 0x80, found).astype(np.uint8))
    return torch.from_numpy((np.where(np.isnan(x), 0x7F, found) | negative).astype(np.uint8))


def every_word(dtype: torch.dtype) -> Tensor:
    """All 65,536 numbers of 16 bits."""
    return WORDS.view(dtype)
