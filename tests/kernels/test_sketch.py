"""Sketches of tensors, in C and in torch, against the formula written out in Python."""

import math
import struct

import pytest
import torch

from accel_kernels.sketch import (
    BYTES,
    Sketch,
    native,
    sketch,
    sketch_into,
    sketch_numbers,
    taking,
)

MASK = (1 << 64) - 1
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = tuple(
    getattr(torch, sign + f"int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
)
FLOAT8 = tuple(getattr(torch, name) for name in native.FLOAT8)


@pytest.fixture(params=["c", "torch"])
def way(request, monkeypatch):
    """Both ways to sketch a tensor: compiled, and where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(taking, "native", lambda: None)
    else:
        assert native.native() is not None, "these tests need a C compiler"
    return request.param


def mix(number: int, start: int) -> int:
    z = (number * 0x9E3779B97F4A7C15 + start) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def formula(values: list[float], places: list[int]) -> list[float]:
    """The 72 numbers from their definition."""
    sums, finite = [0.0] * 64, [x for x in values if math.isfinite(x)]
    counts, hashed = [0, 0, 0], 0
    for x, i in zip(values, places, strict=True):
        if math.isfinite(x):
            negative = mix(i // 64, 0x243F6A8885A308D3) >> i % 64 & 1
            sums[i % 64 ^ mix(i // 64, 0x13198A2E03707344) >> 58] += -x if negative else x
        else:
            kind = 0 if math.isnan(x) else 1 if x > 0 else 2
            start = (0xA4093822299F31D0, 0x082EFA98EC4E6C89, 0x452821E638D01377)[kind]
            counts[kind] += 1
            hashed += mix(i, start) >> 11
    squares = math.fsum(x * x for x in finite) if all(abs(x) < 1e150 for x in finite) else math.inf
    extremes = [min(finite, default=math.inf), max(finite, default=-math.inf)]
    return [*sums, *extremes, squares, *map(float, counts), hashed % 2**53, len(values)]


def numbers(tensor: torch.Tensor) -> list[float]:
    """Elements as Python floats, row by row; complex ones as pairs."""
    if tensor.is_complex():
        return [part for x in tensor.flatten().tolist() for part in (x.real, x.imag)]
    if tensor.dtype in INTEGERS:
        return [float(x) for x in tensor.flatten().tolist()]
    return tensor.to(torch.float64).flatten().tolist()


def assert_close(found: Sketch, expected: list[float]) -> None:
    scale = max([abs(x) for x in expected[64:66] if math.isfinite(x)], default=0.0)
    for index, (a, b) in enumerate(zip(found.numbers, expected, strict=True)):
        if index < 64:
            assert abs(a - b) <= 1e-12 * scale * math.sqrt(expected[71] + 1), index
        elif index == 66:
            assert math.isclose(a, b, rel_tol=1e-12), index
        else:
            assert a == b, index


def check(tensor: torch.Tensor) -> None:
    values = numbers(tensor)
    assert_close(sketch(tensor), formula(values, list(range(len(values)))))


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Every kind of content of a dtype, non-finite elements among them."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    if dtype in (torch.float64, torch.float32):
        return torch.randn(shape, dtype=dtype)
    width = torch.empty((), dtype=dtype).itemsize
    codes = torch.randint(0, 256, (*shape, width), dtype=torch.uint8)
    return codes.view(dtype).squeeze(-1)


# --- dtypes, sizes, strides --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*PLAIN, *INTEGERS, *FLOAT8, torch.bool], ids=str)
def test_every_dtype(dtype, way) -> None:
    torch.manual_seed(0)
    check(some(dtype, 70000 if dtype == torch.float16 else 3000))
    check(some(dtype, 300, 7).t())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32], ids=str)
def test_complex_numbers_are_pairs(dtype, way) -> None:
    x = torch.randn(40, 50, dtype=torch.complex128).to(dtype)
    assert sketch(x).count == 4000
    for view in (x, x.t(), x.conj(), x.conj().imag, x.conj().t().imag):
        check(view)
    part = sketch(x[:, 20:], ((40, 50), (0, 20))) + sketch(x[:, :20], ((40, 50), (0, 0)))
    assert part.distance(sketch(x)) < 1e-12


def test_every_code_of_float16_and_bfloat16(way) -> None:
    codes = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    check(codes.view(torch.float16))
    check(codes.view(torch.bfloat16))


def test_codes_of_8_bits_mean_what_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    for name, kind in native.FLOAT8.items():
        ours = torch.tensor([kind.value(code) for code in range(256)], dtype=torch.float64)
        torch.testing.assert_close(
            ours, codes.view(getattr(torch, name)).double(), rtol=0, atol=0, equal_nan=True
        )


def test_every_size_to_1000(way) -> None:
    x = torch.randn(1000, dtype=torch.float64)
    values = x.tolist()
    for n in range(1, 1001, 1 if way == "c" else 37):
        assert_close(sketch(x[:n]), formula(values[:n], list(range(n))))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (1, 1, 1)], ids=str)
def test_small_and_empty(shape, way) -> None:
    check(torch.full(shape, -2.5))
    if math.prod(shape) == 0:
        assert sketch(torch.ones(shape)).least == math.inf


VIEWS = {
    "transposed": lambda x: x.permute(3, 2, 1, 0),
    "middle": lambda x: x.transpose(1, 2),
    "columns": lambda x: x[..., 3:11],
    "every other": lambda x: x[::2, 1:, ::3, ::2],
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "repeated": lambda x: x[:, :1].expand(-1, 70, -1, -1),
    "one long": lambda x: x.reshape(-1)[5:],
    "column of one": lambda x: x[:, :, 2:3, 4:5],
    "diagonal": lambda x: x.diagonal(0, 2, 3),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strides(name, dtype, way) -> None:
    view = VIEWS[name](torch.randn(5, 6, 17, 13).to(dtype))
    check(view)
    assert sketch(view).distance(sketch(view.contiguous())) < 1e-12


def test_a_dense_dimension_that_is_not_the_last(way) -> None:
    """Long enough for the C code to walk in tiles."""
    check(torch.randn(70, 600, dtype=torch.float64).t())
    check(torch.randn(3, 9, 401).permute(2, 0, 1))


# --- what a sketch is for ----------------------------------------------------------------------


def test_linear(way) -> None:
    x, y = torch.randn(2, 300, 41, dtype=torch.float64)
    mixed = sketch(2.0 * x - 0.5 * y).sums
    for index, (a, b) in enumerate(zip(sketch(x).sums, sketch(y).sums, strict=True)):
        assert abs(2.0 * a - 0.5 * b - mixed[index]) < 1e-11


CUTS = {
    "rows": [((0, 0), (13, 90)), ((13, 0), (60, 90)), ((60, 0), (77, 90))],
    "columns": [((0, 0), (77, 1)), ((0, 1), (77, 65)), ((0, 65), (77, 90))],
    "blocks": [((0, 0), (40, 33)), ((0, 33), (40, 90)), ((40, 0), (77, 80)), ((40, 80), (77, 90))],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_shards_add_up(cut, transposed, way) -> None:
    x = torch.randn(77, 90)
    x[5, 7], x[76, 89], x[13, 2], x[60, 80] = torch.nan, -torch.inf, torch.inf, torch.nan
    if transposed:
        x = x.t().contiguous().t()
    parts = [sketch(x[a:c, b:d], (x.shape, (a, b))) for (a, b), (c, d) in CUTS[cut]]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert_close(total, formula(numbers(x), list(range(x.numel()))))
    assert total.mask == sketch(x).mask
    assert total.mask[3] != 0


def test_far_shards(way) -> None:
    """Where the whole has more elements than 32 bits count."""
    part, whole = torch.randn(3, 70), (1 << 20, 1 << 14)
    places = [(900000 + i) * (1 << 14) + 9000 + j for i in range(3) for j in range(70)]
    assert places[0] > 1 << 32
    assert_close(sketch(part, (whole, (900000, 9000))), formula(numbers(part), places))


def test_addends_of_a_whole_add_up(way) -> None:
    x, y = torch.randn(2, 500)
    assert (sketch(x) + sketch(y)).distance(sketch(x + y)) < 1e-5


def test_moved_elements_are_seen(way) -> None:
    x = torch.randn(64, 64, dtype=torch.float64)
    for moved in (x.t(), x[torch.randperm(64)], x.flip(0), x.roll(1), x.view(128, 32).t()):
        true = float((x.flatten() - moved.flatten()).norm())
        assert 0.5 < sketch(x).distance(sketch(moved)) / true < 1.5
    swapped = x.clone()
    swapped[3, 4], swapped[60, 1] = x[60, 1], x[3, 4]
    assert sketch(x).distance(sketch(swapped)) == pytest.approx(
        math.sqrt(2) * abs(float(x[3, 4] - x[60, 1]))
    )


def test_one_changed_element_is_seen_exactly(way) -> None:
    x = torch.randn(100000, dtype=torch.float64)
    y = x.clone()
    y[54321] += 1e-6
    assert sketch(x).distance(sketch(y)) == pytest.approx(1e-6, rel=1e-4)


# --- extremes ----------------------------------------------------------------------------------


def test_not_finite_elements(way) -> None:
    x = torch.randn(2000, dtype=torch.float64)
    x[[3, 1999, 700]] = torch.nan
    x[[4, 64]] = torch.inf
    x[[5]] = -torch.inf
    check(x)
    assert sketch(x).mask[:3] == (3, 2, 1)
    y = x.clone()
    y[3], y[6] = x[6], torch.nan
    assert sketch(y).mask[:3] == sketch(x).mask[:3]
    assert sketch(y).mask != sketch(x).mask, "the place counts"
    z = x.clone()
    z[4], z[5] = -torch.inf, torch.inf
    assert sketch(z).mask[:3] == sketch(x).mask[:3]
    assert sketch(z).mask != sketch(x).mask, "which one is where counts"
    check(torch.full((777,), torch.nan))
    assert sketch(torch.full((777,), -torch.inf)).largest == -math.inf


def test_extreme_values(way) -> None:
    check(torch.tensor([1e307, -1e307, 3.0, 5e-324], dtype=torch.float64).repeat(40))
    check(torch.tensor([-1e308, 1e308], dtype=torch.float64))
    assert sketch(torch.full((9,), 1e308, dtype=torch.float64)).norm == math.inf
    check(torch.full((300,), 1e-45))
    check(torch.tensor([5e-324] * 70, dtype=torch.float64))
    huge = sketch(torch.full((1 << 15,), 1.7e308, dtype=torch.float64))
    assert huge.distance(sketch(torch.zeros(1 << 15))) == math.inf


def test_subnormal_numbers_count_whatever_the_program_has_set() -> None:
    x = torch.full((100,), 1e-40)
    expected = sketch(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers to zero")
    try:
        assert sketch(x) == expected
        assert float(x[0] * 0.5) == 0.0, "the setting is as before"
    finally:
        torch.set_flush_denormal(False)
    assert expected.largest > 0


def test_large_integers_are_rounded_to_float64(way) -> None:
    top = 2**63 - 1
    check(torch.tensor([top, -top - 1, 2**53 + 1, -(2**53) - 1, 2**62 + 2**8 + 1] * 20))
    check(torch.tensor([2**64 - 1, 2**63 + 2**10, 2**63 + 2**10 + 1, 5], dtype=torch.uint64))


def test_no_negative_zero_in_the_extremes(way) -> None:
    x = torch.tensor([-0.0, 0.0] * 40)
    assert sketch(x) == sketch(x.abs()) == sketch(-x)


# --- buffers, devices and refusals -------------------------------------------------------------


def test_into_a_buffer(way) -> None:
    x = torch.randn(5, 5)
    buffer = bytearray(3 + 2 * BYTES)
    assert sketch_into(x, buffer, 3) is None
    sketch_into(x.t(), memoryview(buffer), 3 + BYTES)
    assert buffer == bytes(3) + sketch(x).raw + sketch(x.t()).raw
    assert struct.unpack("<72d", sketch_numbers(x).numpy().tobytes()) == sketch(x).numbers
    with pytest.raises(ValueError, match=r"[Bb]uffer size too small"):
        sketch_into(x, buffer, 4 + BYTES)
    with pytest.raises(TypeError, match="not writable"):
        sketch_into(x, bytes(BYTES))
    with pytest.raises(ValueError, match="negative"):
        sketch_into(x, buffer, -1)


def test_gradients_and_modes_do_not_matter(way) -> None:
    x = torch.randn(30, 3, requires_grad=True)
    expected = sketch(x.detach())
    assert sketch(x) == expected
    assert sketch(torch.nn.Parameter(x.t()).t()) == expected
    with torch.inference_mode():
        assert sketch(x.t().contiguous().t()) == expected


REFUSED = {
    "sparse": (lambda: torch.eye(3).to_sparse(), TypeError, "dense"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        TypeError,
        "dequantize",
    ),
    "meta": (lambda: torch.ones(3, device="meta"), ValueError, "meta"),
    "bits": (lambda: torch.zeros(3, dtype=torch.uint8).view(torch.bits8), TypeError, "bits8"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_refused(name, way) -> None:
    make, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        sketch(make())


@pytest.mark.parametrize(
    "shard",
    [((5, 3), (0, 1)), ((4, 3), (-1, 0)), ((4, 3, 1), (0, 0, 0)), ((4, 3), (0,)), ((3, 3), (0, 0))],
)
def test_shards_outside_are_refused(shard, way) -> None:
    with pytest.raises(ValueError, match="not inside a whole"):
        sketch(torch.ones(4, 3), shard)


def test_more_dimensions_than_64() -> None:
    check(torch.ones([1] * 40 + [2, 3]).transpose(0, 41))


def test_without_a_compiler_it_is_said_once(monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/nonexistent/cc")
    expected = sketch(torch.arange(5.0))
    native.native.cache_clear()
    try:
        assert sketch(torch.arange(5.0)) == expected
        assert sketch(torch.arange(5.0)) == expected
    finally:
        native.native.cache_clear()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.name == "accel"
    assert "/nonexistent/cc" in record.message
