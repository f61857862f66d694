"""Philox4x32-10 in integer operations of torch: the same random numbers on every device.

J. Salmon, M. Moraes, R. Dror, D. Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC'11. Random
numbers are a function of a key and a counter, with no state between. Here the number at a position
is one of the four words at counter `position // 4`, the counter's upper half is a stream, and the
key is the seed.

On the CPU, words are made by the same in C, where there is a compiler and nothing is traced.

Every function but `normal` works in int64, whose values stay below 2**63, and gives the same bits
on every device, eager or compiled. Words are int64 from 0 to 2**32 - 1.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import Tensor

from accel_kernels.compiled import compiled_library

_logger = logging.getLogger("accel")

# A number of 64 bits, signed or not; a tensor of one lets compiled code serve any.
Number: TypeAlias = "int | Tensor"
Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
WORD_BITS = 32
# Bits of a uniform number: as many as the dtype holds exactly below 1.
_UNIFORM_BITS = {torch.float64: 32, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def philox(counter: tuple[Number, Number, Number, Number], key: tuple[Number, Number]) -> Words:
    """The four words at a counter.

    Args:
        counter: Four words, at least one of them an int64 tensor; they broadcast.
        key: Two words.

    Returns:
        Four words, each of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    # By now every word depends on each word of the counter, so all are tensors of one shape.
    return cast("Words", (c0, c1, c2, c3))


def words_at(positions: Tensor, seed: Number, stream: Number = 0) -> Tensor:
    """One random word for each position.

    Computes four words and keeps one; where positions follow one another, `words_in_runs` is four
    times quicker and gives the same.

    Args:
        positions: int64, any shape, not negative.
        seed: 64 bits.
        stream: 64 bits; streams are independent of one another.

    Returns:
        int64 of the same shape.

    Raises:
        TypeError: Positions are not int64.
    """
    _check_positions(positions)
    words = torch.stack(_words_of_blocks(positions >> 2, seed, stream), -1)
    return words.gather(-1, (positions & 3).unsqueeze(-1)).squeeze(-1)


def words_in_runs(starts: Tensor, length: int, seed: Number, stream: Number = 0) -> Tensor:
    """Random words for runs of positions: `starts[..., None] + arange(length)`.

    Args:
        starts: int64, any shape, not negative: where each run begins.
        length: Of every run.
        seed: As in `words_at`.
        stream: As in `words_at`.

    Returns:
        int64 `[..., length]`.

    Raises:
        TypeError: Starts are not int64.
    """
    _check_positions(starts)
    if (quick := _native(starts.device)) is not None:
        return _native_runs(quick, starts, length, seed, stream)
    blocks = (length + 6) // 4  # a run may begin at the last word of its first block
    steps = torch.arange(blocks, dtype=torch.int64, device=starts.device)
    words = torch.stack(
        _words_of_blocks((starts >> 2).unsqueeze(-1) + steps, seed, stream), -1
    ).flatten(-2)
    along = torch.arange(length, dtype=torch.int64, device=starts.device)
    return words.gather(-1, (starts & 3).unsqueeze(-1) + along)


def words_from(
    start: int,
    length: int,
    seed: Number,
    stream: Number = 0,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random words for the positions `start` to `start + length - 1`, `[length]` int64."""
    if (quick := _native(torch.device(device))) is not None:
        starts = torch.tensor(start, dtype=torch.int64, device="cpu")
        return _native_runs(quick, starts, length, seed, stream)
    first, skipped = divmod(start, 4)
    last = (start + length + 3) // 4
    blocks = torch.arange(first, last, dtype=torch.int64, device=device)
    words = torch.stack(_words_of_blocks(blocks, seed, stream), -1)
    return words.flatten()[skipped : skipped + length]


def _native(device: torch.device) -> ctypes.CDLL | None:
    """The compiled function, where it serves."""
    if torch.compiler.is_compiling() or device.type != "cpu":
        return None
    if torch._C._are_functorch_transforms_active():  # whose tensors have no memory of their own
        return None
    return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        path = compiled_library(Path(__file__).with_suffix(".c"), "Philox", ("-O3",))
        library = ctypes.CDLL(str(path))
    except OSError as error:  # CompileError among them
        _logger.warning("random numbers are made by torch, many times slower than by C: %s", error)
        return None
    pointer, size, bits = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
    library.accel_philox_runs.argtypes = (pointer, size, size, bits, bits, pointer)
    library.accel_philox_runs.restype = None
    return library


def _native_runs(
    library: ctypes.CDLL, starts: Tensor, length: int, seed: Number, stream: Number
) -> Tensor:
    starts = starts.contiguous()
    words = torch.empty((*starts.shape, length), dtype=torch.int64, device="cpu")
    key = (int(number) & ((1 << 64) - 1) for number in (seed, stream))
    library.accel_philox_runs(starts.data_ptr(), starts.numel(), length, *key, words.data_ptr())
    return words


def uniform(words: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), exact: `(word >> 8) * 2**-24` in float32.

    float64 keeps all 32 bits of a word, float16 11 and bfloat16 8, so that none is rounded to 1.

    Raises:
        TypeError: Another dtype.
    """
    if dtype not in _UNIFORM_BITS:
        allowed = ", ".join(str(known).removeprefix("torch.") for known in _UNIFORM_BITS)
        raise TypeError(f"uniform numbers are made in {allowed}, not in {dtype}")
    bits = _UNIFORM_BITS[dtype]
    return (words >> (WORD_BITS - bits)).to(dtype) * 2.0**-bits


def integers(words: Tensor, high: int) -> Tensor:
    """Integers from 0 to `high - 1`: `(word * high) >> 32`.

    A value's probability differs from `1 / high` by less than 2**-32: none is missing, and the
    bias is below a part in a thousand for `high` up to four million.

    Raises:
        ValueError: `high` is not from 1 to 2**31, whose product with a word still fits.
    """
    if not 1 <= high <= 1 << 31:
        raise ValueError(f"high must be from 1 to 2**31, and is {high}")
    return (words * high) >> WORD_BITS


def keep(words: Tensor, p: float) -> Tensor:
    """Which elements a dropout of probability `p` keeps, as bool.

    An integer threshold: an element is dropped with probability `round(p * 2**32) / 2**32`.

    Raises:
        ValueError: `p` is not from 0 to 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a dropout's probability is from 0 to 1, and not {p}")
    kept: Tensor = words >= round(p * 2**WORD_BITS)
    return kept


def keep_mask(seed: Number, positions: Tensor, p: float, stream: Number = 0) -> Tensor:
    """Which positions a dropout of probability `p` keeps.

    Args:
        seed: 64 bits.
        positions: int64, any shape: the logical position of each element, in attention for example
            `((batch * heads + head) * queries + query) * keys + key`.
        p: Probability to be dropped.
        stream: 64 bits: which dropout of the model this is.

    Returns:
        bool of the shape of `positions`: the same for the same position, whatever the tiles.

    Raises:
        ValueError: `p` is not from 0 to 1.
        TypeError: Positions are not int64.
    """
    return keep(words_at(positions, seed, stream), p)


def normal(words: Tensor) -> Tensor:
    """Standard normal numbers in float64: the quantiles of `(word + 1/2) / 2**32`, up to 6.3.

    M. Wichura, Algorithm AS 241 (PPND16), Applied Statistics 37, 1988: relative error about 1e-16.
    Only additions, products, quotients and square roots in float64, each a rounding that IEEE 754
    fixes, and no library's logarithm: every CPU gives the same bits. A device that fuses products
    and sums, or a compiler that does, need not: generate eagerly on the CPU and move the result.
    """
    centred = words.flatten().to(torch.float64) - (2.0**31 - 0.5)  # exact, symmetric around 0
    q = centred * 2.0**-32
    result = q * _ratio(0.180625 - q * q, _CENTRAL)
    outer = (q.abs() > 0.425).nonzero().squeeze(-1)
    centred = centred[outer]
    tail = (2.0**31 - centred.abs()) * 2.0**-32  # exact, the smaller of the two tails
    # At most 4.8: the algorithm's third case, beyond 5, is not reached by 32 bits.
    r = torch.sqrt(-_logarithm(tail))
    size = _ratio(r - 1.6, _NEAR)
    result[outer] = torch.where(centred < 0, -size, size)
    return result.view(words.shape)


def _check_positions(positions: Tensor) -> None:
    if positions.dtype != torch.int64:
        raise TypeError(f"positions are int64, not {positions.dtype}")


def _words_of_blocks(blocks: Tensor, seed: Number, stream: Number) -> Words:
    counter = (blocks & _MASK, (blocks >> WORD_BITS) & _MASK, *_halves(stream))
    return philox(counter, _halves(seed))


def _halves(number: Number) -> tuple[Number, Number]:
    return number & _MASK, (number >> WORD_BITS) & _MASK


def _product(constant: int, word: Number) -> tuple[Number, Number]:
    """Upper and lower word of a product of two words, by halves: none leaves the range of int64."""
    low, high = constant * (word & 0xFFFF), constant * (word >> 16)
    upper = (high + (low >> 16)) >> 16
    return upper, (low + ((high & 0xFFFF) << 16)) & _MASK


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value.mul_(x).add_(coefficient)  # in place: new memory costs more than the arithmetic
    return value


def _ratio(x: Tensor, pair: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    return _polynomial(x, pair[0]) / _polynomial(x, pair[1])


_SQRT_HALF = math.sqrt(0.5)
_LN2 = math.log(2.0)
_ODD = tuple(2.0 / k for k in range(21, 0, -2))


def _logarithm(x: Tensor) -> Tensor:
    """Natural logarithm of normal float64 by basic operations, relative error below 1e-15.

    `x = 2**e * m` with m around 1, and `log m = 2 atanh((m - 1) / (m + 1))` by its series.
    """
    bits = x.view(torch.int64)
    exponent = ((bits >> 52) & 0x7FF) - 1022
    fraction = ((bits & ((1 << 52) - 1)) | (1022 << 52)).view(torch.float64)  # 0.5 to 1
    small = fraction < _SQRT_HALF
    fraction = torch.where(small, fraction * 2.0, fraction)
    exponent = torch.where(small, exponent - 1, exponent)
    z = (fraction - 1.0) / (fraction + 1.0)
    return exponent.to(torch.float64) * _LN2 + z * _polynomial(z * z, _ODD)


# Numerators and denominators of AS 241, from the highest power on.
_CENTRAL = (
    (
        2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
        4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
        1.3314166789178437745e2, 3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
        2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
        4.2313330701600911252e1, 1.0,
    ),
)  # fmt: skip
_NEAR = (
    (
        7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
        1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
        4.63033784615654529590e0, 1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
        1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
        2.05319162663775882187e0, 1.0,
    ),
)  # fmt: skip
