"""Philox against its published vectors and against Python's integers; the numbers made of it."""

import math
from statistics import NormalDist

import pytest
import torch

from accel_kernels import philox

# Random123, kat_vectors: philox 4x32 10: counter, key, result.
KNOWN = {
    "zeros": ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": (
        (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}  # fmt: skip
MASK = 0xFFFFFFFF


def plainly(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """The definition, in Python's integers of any length."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = second >> 32 ^ b ^ k, second & MASK, first >> 32 ^ d ^ m, first & MASK
        k, m = (k + 0x9E3779B9) & MASK, (m + 0xBB67AE85) & MASK
    return a, b, c, d


def word(position: int, seed: int, stream: int) -> int:
    block = position // 4
    counter = (block & MASK, block >> 32, stream & MASK, stream >> 32)
    return plainly(counter, (seed & MASK, seed >> 32))[position % 4]


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name) -> None:
    counter, key, expected = KNOWN[name]
    words = philox.philox(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(map(int, words)) == expected
    assert plainly(counter, key) == expected


def test_any_word_as_a_tensor_or_a_number() -> None:
    counter = tuple(torch.randint(0, 1 << 32, (4, 50)))
    key = tuple(torch.randint(0, 1 << 32, (2,)))
    words = torch.stack(philox.philox(counter, key))
    for i in range(50):
        expected = plainly(tuple(int(c[i]) for c in counter), tuple(map(int, key)))
        assert tuple(words[:, i].tolist()) == expected
    for place in range(4):
        mixed: list[int | torch.Tensor] = [5, 6, 7, 8]
        mixed[place] = torch.tensor([9, 1 << 31])
        found = philox.philox(tuple(mixed), (3, 4))
        assert all(w.shape == (2,) for w in found)
        mixed[place] = 1 << 31
        assert tuple(int(w[1]) for w in found) == plainly(tuple(map(int, mixed)), (3, 4))


@pytest.fixture(params=["c", "torch"])
def way(request, monkeypatch):
    """Both ways to make words on the CPU: compiled, and in operations of torch."""
    if request.param == "torch":
        monkeypatch.setattr(philox, "_library", lambda: None)
    else:
        assert philox._library() is not None, "these tests need a C compiler"


SEED, STREAM = 0xFEDCBA9876543210, 0x89ABCDEF01234567


def test_words_at_positions() -> None:
    places = [0, 1, 2, 3, 4, 1023, (1 << 34) + 3, (1 << 40) + 1, (1 << 63) - 1]
    found = philox.words_at(torch.tensor(places), SEED, STREAM).tolist()
    assert found == [word(place, SEED, STREAM) for place in places]
    assert min(found) >= 0
    assert max(found) < 1 << 32


def test_runs_and_ranges_are_the_same_words(way) -> None:
    expected = philox.words_at(torch.arange(3000), SEED, STREAM)
    far = (1 << 63) - 40
    assert philox.words_from(far, 9, SEED, STREAM).tolist() == [
        word(far + i, SEED, STREAM) for i in range(9)
    ]
    for start, length in ((0, 3000), (1, 2998), (2, 1), (3, 2), (7, 0), (1001, 77)):
        found = philox.words_from(start, length, SEED, STREAM)
        assert torch.equal(found, expected[start : start + length])
    starts = torch.tensor([[0, 1, 2], [3, 999, 2000]])
    for length in (0, 1, 2, 5, 64):
        runs = philox.words_in_runs(starts, length, SEED, STREAM)
        places = starts.unsqueeze(-1) + torch.arange(length)
        assert torch.equal(runs, expected[places])


def test_seeds_and_streams_differ_in_every_bit(way) -> None:
    x = philox.words_from(0, 64, 0, 0)
    for bit in range(64):
        assert not torch.equal(philox.words_from(0, 64, 1 << bit, 0), x)
        assert not torch.equal(philox.words_from(0, 64, 0, 1 << bit), x)
    signed = SEED - (1 << 64)
    tensor = torch.tensor(signed)
    assert torch.equal(philox.words_from(0, 64, tensor, 5), philox.words_from(0, 64, SEED, 5))


def test_words_look_random() -> None:
    """A broken generator would fail by far; the published one has passed BigCrush."""
    words = philox.words_from(0, 1 << 18, 1, 2)
    for bit in range(32):
        share = float(((words >> bit) & 1).double().mean())
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(words.numel())
    cells = torch.bincount(words >> 24, minlength=256).double()
    chi2 = float(((cells - 1024) ** 2 / 1024).sum())
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)
    u = philox.uniform(words, torch.float64) - 0.5
    for lag in (1, 2, 3, 4, 64):
        assert abs(float((u[lag:] * u[:-lag]).mean()) * 12) < 5 / math.sqrt(words.numel())


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(torch.float32, 24), (torch.float64, 32), (torch.float16, 11), (torch.bfloat16, 8)],
)
def test_uniform_is_exact(dtype, bits) -> None:
    words = torch.cat([philox.words_from(0, 5000, 3), torch.tensor([0, 1, 255, MASK])])
    found = philox.uniform(words, dtype)
    assert found.dtype == dtype
    expected = [(w >> (32 - bits)) * 2.0**-bits for w in words.tolist()]
    assert found.double().tolist() == expected
    assert found.double().max() == 1 - 2.0**-bits


def test_integers() -> None:
    words = philox.words_from(0, 60000, 9)
    for high in (1, 2, 7, 1000, 1 << 31):
        found = philox.integers(words, high)
        assert found.tolist() == [w * high >> 32 for w in words.tolist()]
    counts = torch.bincount(philox.integers(words, 6), minlength=6)
    assert int((counts - 10000).abs().max()) < 5 * 92
    assert philox.integers(torch.tensor([MASK]), 1 << 31).item() == (1 << 31) - 1


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0, 2.0**-32])
def test_keep_is_an_integer_threshold(p) -> None:
    edge = round(p * 2**32)
    words = torch.tensor([w for w in (0, edge - 1, edge, MASK) if 0 <= w <= MASK])
    assert philox.keep(words, p).tolist() == [w >= edge for w in words.tolist()]
    kept = philox.keep_mask(SEED, torch.arange(40000).view(4, -1), p, 3)
    assert kept.shape == (4, 10000)
    assert kept.dtype == torch.bool
    assert abs(float(kept.double().mean()) - (1 - p)) < 0.0126
    tile = philox.keep_mask(SEED, torch.arange(40000).view(4, -1)[1:3, 50:60], p, 3)
    assert torch.equal(tile, kept[1:3, 50:60])


def test_normal_is_the_quantile() -> None:
    edges = [0, 1, 2, 59, 60, 61, 2**31 - 1, 2**31, MASK - 60, MASK - 1, MASK]
    near_425 = [int(0.075 * 2**32) + k for k in range(-3, 4)]
    words = torch.cat(
        [philox.words_from(0, 20000, 5), torch.tensor(edges + near_425), torch.arange(0, 3000, 7)]
    )
    found = philox.normal(words)
    normal = NormalDist()
    for w, z in zip(words.tolist(), found.tolist(), strict=True):
        # Python's own inverse is the same algorithm with the library's logarithm; ndtri is not.
        assert math.isclose(z, normal.inv_cdf((w + 0.5) / 2**32), rel_tol=1e-13, abs_tol=1e-24)
    torch.testing.assert_close(
        found, torch.special.ndtri((words.double() + 0.5) / 2**32), rtol=1e-13, atol=1e-15
    )
    assert torch.equal(philox.normal(MASK - words), -found), "symmetric to the last bit"
    assert 6.33 < philox.normal(torch.tensor([MASK])).item() < 6.34


def test_normal_bits_are_fixed() -> None:
    """What every machine must give: digits of 64 bits, and the digest of many."""
    import hashlib

    numbers = philox.normal(philox.words_from(0, 100000, 2024, 7))
    digest = hashlib.sha256(numbers.numpy().astype("<f8").tobytes()).hexdigest()
    assert digest == "ae86394ef0e3da5201d2aa932736c63dde712dc3213147e4d164e430d9b832f9"


@pytest.mark.parametrize("seed", [7, SEED, torch.tensor(7)], ids=["small", "large", "tensor"])
def test_compiles_whole(seed) -> None:
    def draw(positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        words = philox.words_at(positions, seed, STREAM)
        runs = philox.words_in_runs(positions[:3], 10, seed, STREAM)
        line = philox.words_from(5, 100, seed, STREAM)
        kept = philox.keep_mask(seed, positions, 0.3)
        return philox.uniform(words), philox.integers(runs, 9), philox.uniform(line), kept

    torch._dynamo.reset()
    traced = torch.compile(draw, fullgraph=True, backend="eager")
    positions = torch.arange(1000) * 977
    for found, expected in zip(traced(positions), draw(positions), strict=True):
        assert torch.equal(found, expected)


def test_without_a_compiler_it_is_said_once(monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/nonexistent/cc")
    philox._library.cache_clear()
    try:
        assert philox.words_from(0, 4, 0).tolist() == list(KNOWN["zeros"][2])
        philox.words_from(0, 4, 0)
    finally:
        philox._library.cache_clear()
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "accel")
    assert "/nonexistent/cc" in record.message


def test_refused() -> None:
    words = torch.tensor([1, 2])
    for p in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            philox.keep(words, p)
    for high in (0, -3, (1 << 31) + 1):
        with pytest.raises(ValueError, match=r"from 1 to 2\*\*31"):
            philox.integers(words, high)
    with pytest.raises(TypeError, match=r"float16, bfloat16, not in torch\.float8_e5m2"):
        philox.uniform(words, torch.float8_e5m2)
    for call in (lambda x: philox.words_at(x, 1), lambda x: philox.words_in_runs(x, 3, 1)):
        with pytest.raises(TypeError, match=r"int64, not torch\.int32"):
            call(torch.arange(3, dtype=torch.int32))
