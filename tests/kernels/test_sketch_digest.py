"""The sketch as a value: arithmetic, text, estimates; arrays; all lengths of vector."""

import base64
import ctypes
import math
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_kernels import compiled
from accel_kernels.sketch import Sketch, native, sketch, sketch_array

ROOT = Path(__file__).parents[2]


def test_what_can_be_read() -> None:
    s = sketch(torch.tensor([3.0, -4.0, torch.nan, torch.inf, -torch.inf, torch.inf]))
    assert (s.least, s.largest, s.norm, s.count) == (-4.0, 3.0, 5.0, 6)
    assert (s.nan, s.positive_infinite, s.negative_infinite) == (1, 2, 1)
    assert s.mask[:3] == (1, 2, 1)
    assert len(s.sums) == 64
    assert sorted(map(abs, s.sums))[-2:] == [3.0, 4.0]


def test_to_text_and_back() -> None:
    s = sketch(torch.randn(30))
    assert Sketch.from_text(s.to_text()) == s
    assert base64.b64decode(s.to_text()) == s.raw
    assert len(s.raw) == 576


def changed(index: int, value: float) -> str:
    numbers = np.frombuffer(sketch(torch.ones(5)).raw, "<f8").copy()
    numbers[index] = value
    return base64.b64encode(numbers.tobytes()).decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$$$$", "base64"),
        ("ü" * 768, "base64"),
        (base64.b64encode(bytes(575)).decode(), "576 bytes long, not 575"),
        ("", "not 0"),
        (changed(67, -1.0), "number 67 .* not -1.0"),
        (changed(71, 2.5), "number 71 .* not 2.5"),
        (changed(70, math.nan), "number 70 .* not nan"),
        (changed(68, math.inf), "number 68 .* not inf"),
        (changed(66, math.nan), "no NaN"),
        (changed(66, -1.0), "negative"),
    ],
)
def test_text_that_is_no_sketch(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        Sketch.from_text(text)


def test_addition() -> None:
    a, b = sketch(torch.tensor([torch.nan, 5.0])), sketch(torch.tensor([-1.0, torch.nan]))
    total = a + b
    assert (total.least, total.largest, total.nan, total.count) == (-1.0, 5.0, 2, 4)
    assert total.norm == pytest.approx(math.sqrt(26))
    assert total.mask[3] == (a.mask[3] + b.mask[3]) % 2**53
    assert all(s == x + y for s, x, y in zip(total.sums, a.sums, b.sums, strict=True))
    assert a + sketch(torch.ones(0)) == a
    with pytest.raises(TypeError, match="unsupported operand"):
        a + 1


def test_a_digest_of_places_wraps_like_its_sum() -> None:
    """53 bits are all a float64 holds: enough addends pass them."""
    x = torch.full((100,), torch.nan)
    parts = [sketch(x[i : i + 1], ((100,), (i,))) for i in range(100)]
    total = sketch(torch.ones(0))
    for part in parts:
        total = total + part
    assert total.mask == sketch(x).mask
    assert sum(part.mask[3] for part in parts) > 2**53


@pytest.mark.parametrize("kind", ["dense", "one in a thousand", "heavy tails"])
def test_how_well_distances_are_estimated(kind) -> None:
    """400 draws; the spread follows from 64 sums: about 1 / sqrt(2 * 64) = 9 % of the distance."""
    generator = torch.Generator().manual_seed(5)
    ratios = []
    for _ in range(400):
        n = int(torch.randint(5000, 60000, (), generator=generator))
        x = torch.randn(n, generator=generator, dtype=torch.float64)
        noise = 1e-6 * torch.randn(n, generator=generator, dtype=torch.float64)
        if kind == "one in a thousand":
            noise[torch.rand(n, generator=generator) < 0.999] = 0
        elif kind == "heavy tails":
            noise = 1e24 * noise**5
        true = float((x + noise - x).norm())
        ratios.append(sketch(x).distance(sketch(x + noise)) / true)
    ratios.sort()
    squares = [ratio**2 for ratio in ratios]
    # Unbiased: the mean of 400 is within three of its standard deviations.
    assert abs(statistics.mean(squares) - 1) < 3 * statistics.stdev(squares) / 20
    assert 0.72 < ratios[4] < 0.9
    assert 1.1 < ratios[-5] < 1.28


def test_independent_of_the_place() -> None:
    """The same for parts of a whole, wherever they begin."""
    x = torch.randn(1000, dtype=torch.float64)
    ratios = [
        sketch(x, ((10**12,), (997 * k,))).distance(sketch(torch.zeros(0))) / float(x.norm())
        for k in range(300)
    ]
    assert abs(statistics.mean(r * r for r in ratios) - 1) < 0.03


# --- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i1", "u2", "i8", "?", "c8", "c16"])
def test_arrays_have_the_sketch_of_the_tensor(dtype) -> None:
    array = (np.random.default_rng(0).standard_normal((30, 40)) * 9).astype(dtype)
    if dtype == "c16":
        array = array * (1 + 2j)
    expected = sketch(torch.from_numpy(array))
    assert sketch_array(array) == expected
    assert sketch_array(np.asfortranarray(array)).distance(expected) < 1e-11
    assert sketch_array(array.astype(array.dtype.newbyteorder(">"))) == expected
    back = np.ascontiguousarray(array[::-1, ::-2])
    assert sketch_array(array[::-1, ::-2]).distance(sketch_array(back)) < 1e-11
    parts = [sketch_array(array[:, a:b], ((30, 40), (0, a))) for a, b in ((0, 7), (7, 40))]
    assert (parts[0] + parts[1]).distance(expected) < 1e-11


def test_arrays_that_have_no_sketch() -> None:
    with pytest.raises(TypeError, match="no value to sketch"):
        sketch_array(np.array(["a"]))
    with pytest.raises(TypeError, match="no value to sketch"):
        sketch_array(np.array([object()]))
    with pytest.raises(ValueError, match="not inside a whole"):
        sketch_array(np.ones(3), ((2,), (0,)))


def test_an_array_whose_strides_are_no_elements() -> None:
    records = np.zeros(5, dtype=[("pad", "u1"), ("x", "f4")])
    records["x"] = np.arange(5)
    assert sketch_array(records["x"]) == sketch(torch.arange(5.0))


def test_arrays_are_sketched_where_there_is_no_torch(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is blocked')\n")
    code = (
        "import numpy; from accel_kernels.sketch import Sketch, sketch_array;"
        "print(sketch_array(numpy.arange(6.0)).to_text())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT / 'kernels'}", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == sketch(torch.arange(6.0, dtype=torch.float64)).to_text()


# --- the C code --------------------------------------------------------------------------------


@pytest.mark.parametrize("widest", [2, 4])
def test_shorter_vectors_give_the_same_bits(widest) -> None:
    source = Path(native.__file__).parent / "sketch.c"
    flags = (*native._FLAGS, f"-DWIDEST={widest}")
    library = ctypes.CDLL(str(compiled.compiled_library(source, "a test", flags)))
    native._declare(library)
    for n in (1, 63, 64, 500, 5001):
        x = torch.randn(n)
        x[::97] *= 1e4
        for tensor, kind in ((x, "float32"), (x.double(), "float64"), (x.half(), "float16")):
            buffer = native.Buffer()
            library.accel_sketch_whole(tensor.data_ptr(), native.KINDS[kind], n, buffer)
            assert buffer.raw == sketch(tensor).raw


def test_it_compiles_without_a_warning(tmp_path) -> None:
    source = Path(native.__file__).parent / "sketch.c"
    command = [*compiled.find_compiler("a test"), *compiled.FLAGS, "-Werror", str(source)]
    result = subprocess.run(
        [*command, "-o", str(tmp_path / "x.so"), *native._FLAGS], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
