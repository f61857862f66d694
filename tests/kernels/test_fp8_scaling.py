"""Scales, quantization and its statistics: against the definition, value by value."""

import math

import pytest
import torch
from torch import Tensor

from accel_kernels.fp8 import (
    BLOCKS,
    E4M3,
    E5M2,
    HIF8,
    Quantized,
    Scaling,
    block_amax,
    decode,
    dequantize,
    expand_scales,
    native,
    quantize,
    scales_of,
    straight_through,
)
from tests.kernels.fp8_cases import ALL, nearest

SIZES = [(1, 1), (1, 300), (300, 1), (33, 70), (128, 128), (130, 257)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TARGETS = {E4M3: 0.0, E5M2: 0.0, HIF8: 15.0}
KINDS = ["float32", "power_of_two"]


@pytest.fixture(params=["as it is", "without C"])
def path(request, monkeypatch) -> None:
    if request.param == "without C":
        monkeypatch.setattr(native, "is_usable", lambda *tensors, **options: False)


def draw(rows: int, columns: int, dtype: torch.dtype = torch.float32, wild: bool = False) -> Tensor:
    values = torch.randn(rows, columns) * torch.exp2(4 * torch.randn(rows, columns))
    if wild:
        places = torch.rand(rows, columns)
        for place, value in enumerate((math.inf, -math.inf, math.nan, 0.0, -0.0)):
            values[(places * 50).long() == place] = value
    return values.to(dtype)


def blocks_of(values: Tensor, scaling: Scaling):
    """Row and column slices of every block, with its place among the scales."""
    rows, columns = values.shape
    high, wide = scaling.block(rows, columns)
    for i, r in enumerate(range(0, rows, high)):
        for j, c in enumerate(range(0, columns, wide)):
            yield (i, j), (slice(r, r + high), slice(c, c + wide))


def defined(values: Tensor, scaling: Scaling) -> Quantized:
    """By the definition, one block at a time, in float32 as it says."""
    scaled = torch.zeros(values.shape)
    high, wide = scaling.block(*values.shape)
    scales = torch.zeros(-(-values.shape[0] // high), -(-values.shape[1] // wide))
    for place, where in blocks_of(values, scaling):
        block = values[where].float()
        known = block[block.isfinite()].abs()
        amax = max(float(known.max()) if known.numel() else 0.0, scaling.epsilon)
        factor = torch.tensor(scaling.reach) / torch.tensor(amax)
        if scaling.scales == "power_of_two":
            factor = torch.exp2(torch.floor(torch.log2(factor.double()))).float()
        scales[place] = 1.0 / factor
        scaled[where] = block * factor
    return Quantized(nearest(scaled, scaling.format, saturate=True), scales, scaling)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", BLOCKS)
@pytest.mark.parametrize("form", ALL, ids=str)
def test_codes_and_scales_are_those_of_the_definition(form, granularity, kind, path) -> None:
    scaling = Scaling(form, granularity, kind, target=TARGETS[form])
    for n, (rows, columns) in enumerate(SIZES):
        for transposed in (False, True):
            values = draw(rows, columns, DTYPES[n % 4], wild=True)
            values = values.t().contiguous().t() if transposed else values
            found, expected = quantize(values, scaling), defined(values, scaling)
            assert torch.equal(found.codes, expected.codes), (rows, columns)
            assert torch.equal(found.scales, expected.scales)
            assert found.scales.shape == expected.scales.shape
            assert found.scaling is scaling


@pytest.mark.parametrize("granularity", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transposed_and_strided_matrices_give_the_same_bits(dtype, granularity) -> None:
    scaling = Scaling(E4M3, granularity)
    values = draw(70, 150, dtype)
    expected = quantize(values, scaling)
    for view in (
        values.t().contiguous().t(),
        torch.cat([values, values], 1)[:, :150],
        values.repeat_interleave(2, 1)[:, ::2],
        values.repeat_interleave(3, 0)[::3],
    ):
        found = quantize(view, scaling)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scales, expected.scales)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("granularity", BLOCKS)
def test_empty_matrices(granularity, shape) -> None:
    scaling = Scaling(E4M3, granularity)
    found = quantize(torch.zeros(shape), scaling)
    high, wide = scaling.block(*shape)
    assert found.codes.shape == shape
    assert found.scales.shape == (-(-shape[0] // high), -(-shape[1] // wide))
    assert dequantize(found).shape == shape


@pytest.mark.parametrize("granularity", BLOCKS)
def test_blocks_of_zeros_and_of_nothing_finite(granularity, path) -> None:
    scaling = Scaling(E4M3, granularity)
    for value, code in ((0.0, 0), (-0.0, 0x80), (math.inf, 0x7E), (-math.inf, 0xFE)):
        found = quantize(torch.full((3, 200), value), scaling)
        assert (found.codes == code).all()
        assert found.scales.isfinite().all()
        assert (found.scales > 0).all()
        assert (found.scales == found.scales.flatten()[0]).all()
    nan = quantize(torch.full((3, 200), math.nan), scaling)
    assert decode(nan.codes, E4M3).isnan().all()
    assert nan.scales.isfinite().all()


def test_infinity_may_become_nan(path) -> None:
    values = torch.tensor([[1.0, math.inf, -math.inf, math.nan, -3.0]])
    for form in ALL:
        left = dequantize(quantize(values, Scaling(form), infinity_as_nan=True))
        assert left.isnan().tolist() == [[False, True, True, True, False]]
        kept = dequantize(quantize(values, Scaling(form)))
        assert kept.isnan().tolist() == [[False, False, False, True, False]]


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_magnitudes_have_normal_scales(kind) -> None:
    """Neither a factor nor its inverse overflows or is subnormal, for any amax and target."""
    finfo = torch.finfo(torch.float32)
    amax = torch.tensor([0.0, 5e-45, finfo.tiny, 1e-12, 1.0, finfo.max, math.inf, math.nan])
    for scaling in (
        Scaling(E5M2, scales=kind, epsilon=1e-45),
        Scaling(E4M3, scales=kind, target=1e-30),
        Scaling(HIF8, scales=kind, target=15.0),
    ):
        for part in scales_of(amax, scaling):
            assert part.isfinite().all()
            assert (part >= finfo.tiny).all()


@pytest.mark.parametrize("form", ALL, ids=str)
def test_powers_of_two_are_rounded_down_and_exact(form) -> None:
    scaling = Scaling(form, scales="power_of_two", target=TARGETS[form])
    amax = torch.cat([torch.exp2(torch.linspace(-38, 120, 2000)), scaling.reach * torch.tensor(
        [1.0, 1 + 2**-23, 1 - 2**-24])])  # fmt: skip
    factor, scale = scales_of(amax, scaling)
    assert torch.equal(factor * scale, torch.ones_like(factor))
    assert (torch.frexp(factor).mantissa == 0.5).all()
    assert (amax.double() * factor.double() <= scaling.reach).all()
    assert (amax.double() * factor.double() * 2 > scaling.reach).all()
    assert factor[-3:].tolist() == [1.0, 0.5, 1.0]


def test_delayed_scaling_takes_the_given_amax_and_saturates(path) -> None:
    values = torch.tensor([[1.0, -2.0, 4.0, 300.0]])
    found = quantize(values, Scaling(E4M3), torch.tensor(2.0))
    assert torch.equal(found.scales, 1 / (torch.tensor([[448.0]]) / 2.0))
    left = dequantize(found)
    assert torch.allclose(left[0, :2], values[0, :2])
    assert left[0, 2:].tolist() == [2.0, 2.0]
    nothing = quantize(values, Scaling(E4M3), torch.tensor(math.nan))
    assert nothing.scales.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", BLOCKS)
def test_dequantizing_is_one_product(granularity, dtype) -> None:
    scaling = Scaling(E5M2, granularity)
    quantized = quantize(draw(70, 140), scaling)
    expected = decode(quantized.codes, E5M2, torch.float64)
    for place, where in blocks_of(expected, scaling):
        expected[where] *= quantized.scales[place].double()
    found = dequantize(quantized, dtype)
    rounded = expected if dtype == torch.float64 else expected.float().to(dtype)
    assert torch.equal(found, rounded)
    spread = expand_scales(quantized.scales, scaling, 70, 140).expand(70, 140)
    assert torch.equal(decode(quantized.codes, E5M2) * spread, expected.float())


@pytest.mark.parametrize("granularity", BLOCKS)
def test_amax_is_of_the_finite_values(granularity, path) -> None:
    scaling = Scaling(E4M3, granularity)
    for dtype in DTYPES:
        values = draw(130, 150, dtype, wild=True)
        found = block_amax(values, scaling)
        assert found.dtype == torch.float32
        for place, where in blocks_of(values, scaling):
            known = values[where].float()
            assert found[place] == known[known.isfinite()].abs().max()


# --- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", BLOCKS)
def test_the_gradient_passes_straight_through(granularity) -> None:
    values = draw(20, 150).requires_grad_()
    scaling = Scaling(E4M3, granularity)
    out = straight_through(values, scaling)
    assert torch.equal(out, dequantize(quantize(values, scaling)))
    grad = torch.randn(20, 150) * 1e4
    assert torch.equal(torch.autograd.grad(out, values, grad)[0], grad)
    assert straight_through(values.bfloat16(), scaling).dtype == torch.bfloat16
    assert not quantize(values, scaling).scales.requires_grad


def test_traced_code_gives_the_same_bits() -> None:
    """Captured as a graph, which Inductor would fuse; nothing breaks it."""
    values = draw(20, 150, wild=True)
    for scaling in (
        Scaling(E4M3),
        Scaling(E5M2, "1x128", "power_of_two"),
        Scaling(HIF8, "128x128", target=15.0),
    ):

        def both(x: Tensor, scaling: Scaling = scaling) -> tuple[Tensor, ...]:
            quantized = quantize(x, scaling)
            return quantized.codes, quantized.scales, dequantize(quantized)

        compiled = torch.compile(both, fullgraph=True, backend="eager")
        for found, expected in zip(compiled(values), both(values), strict=True):
            assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_threads_change_nothing() -> None:
    values = draw(2048, 700)
    before = torch.get_num_threads()
    for scaling in (Scaling(E4M3), Scaling(E4M3, "1x32")):
        found = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                quantized = quantize(values, scaling)
                found.append(tuple(quantized[:2]))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_bad_calls_are_refused() -> None:
    with pytest.raises(TypeError, match="to quantize is float64, float32, bfloat16, float16, not"):
        quantize(torch.zeros(2, 2, dtype=torch.int32), Scaling(E4M3))
    with pytest.raises(ValueError, match=r"is \[M, K\], not of shape \(2, 3, 4\); flatten"):
        quantize(torch.zeros(2, 3, 4), Scaling(E4M3))
    with pytest.raises(ValueError, match="not for blocks of row"):
        quantize(torch.zeros(2, 3), Scaling(E4M3, "row"), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"amax is one number on cpu, not of shape \(1,\)"):
        quantize(torch.zeros(2, 3), Scaling(E4M3), torch.ones(1))
    with pytest.raises(ValueError, match="target must be from 0 to float8_e4m3fn's largest, 448"):
        Scaling(E4M3, target=500.0)
    with pytest.raises(ValueError, match="granularity of tensor, row, 1x128, 128x128, 1x32"):
        Scaling(E4M3, "2x2")
