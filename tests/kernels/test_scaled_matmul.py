"""Every kernel of the eight-bit product, generated from its specs, against float64."""

import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor

from accel_kernels.fp8 import BLOCKS, E4M3, E5M2, FORMATS, HIF8, Scaling, dequantize, quantize
from accel_kernels.scaled_matmul import FEATURES, OPERATION, SPECS, cpu, scaled_matmul
from accel_kernels.scaled_matmul.stretches import folded, stretch_starts
from accel_kernels.spec import REFERENCE
from tests.kernels.fp8_cases import ALL

# Rows, columns and K: one of each, odd, several panels, nothing.
SIZES = [(1, 1, 1), (7, 65, 100), (13, 3, 129), (100, 130, 257), (0, 4, 5), (4, 0, 5), (3, 70, 0)]
TARGETS = {E4M3: 0.0, E5M2: 0.0, HIF8: 15.0}
OUTPUTS = [torch.float32, torch.bfloat16, torch.float16]
HERE = [spec for spec in SPECS if not spec.devices or "cpu" in spec.devices]
UNIT = 2.0**-24


def draw(rows: int, columns: int) -> Tensor:
    """Columns of very different sizes."""
    return torch.randn(rows, columns) * torch.exp2(2 * torch.randn(1, columns))


def kernel(spec):
    if spec.absent is not None and (reason := spec.absent(torch.float32)) is not None:
        pytest.skip(f"{spec.name} {reason}")
    return spec.load()


def truth(a, b, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The product in float64, and the sum of the magnitudes that are added."""
    left, right = dequantize(a, torch.float64), dequantize(b, torch.float64)
    added = torch.zeros(()) if bias is None else bias.double()
    return left @ right.T + added, left.abs() @ right.T.abs() + added.abs()


def assert_exact(found: Tensor, a, b, bias: Tensor | None = None) -> None:
    """Within float32 accumulation: each of K sums, two scales and the bias rounds once.

    Errors of summing in any order are below K times the unit roundoff of the sum of magnitudes
    (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2); they behave as their
    square root does, which leaves a wrong product or scale nowhere to hide.
    """
    expected, size = truth(a, b, bias)
    depth = a.codes.shape[1]
    unit = torch.finfo(found.dtype).eps / 2 if found.dtype != torch.float32 else 0.0
    bound = (4 * math.sqrt(depth) + 4) * UNIT * size + unit * expected.abs() * 1.01
    if found.dtype == torch.float16:
        bound = bound + 2.0**-25  # its subnormals
    assert found.shape == expected.shape
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("granularities", list(itertools.product(BLOCKS, BLOCKS)), ids="-".join)
@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_every_pair_of_blocks_is_exact(spec, granularities) -> None:
    compute = kernel(spec)
    formats = itertools.cycle(itertools.product(ALL, ALL))
    kinds = itertools.product(("float32", "power_of_two"), repeat=2)
    for (left, right), (rows, columns, depth) in itertools.product(kinds, SIZES):
        one, two = next(formats)
        a = quantize(draw(rows, depth), Scaling(one, granularities[0], left, TARGETS[one]))
        b = quantize(draw(columns, depth), Scaling(two, granularities[1], right, TARGETS[two]))
        assert_exact(compute(a, b), a, b)
        bias = torch.randn(columns)
        assert_exact(compute(a, b, bias=bias, promote=48), a, b, bias)


@pytest.mark.parametrize(
    "formats", list(itertools.product(ALL, ALL)), ids=lambda f: f"{f[0]}-{f[1]}"
)
@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_every_pair_of_codes_is_multiplied_exactly(spec, formats) -> None:
    """All 65,536 products, K is 1; NaN and infinities too."""
    compute = kernel(spec)
    codes = torch.arange(256).to(torch.uint8)[:, None]
    one = torch.ones(1, 1)
    a, b = (quantize(torch.ones(256, 1), Scaling(form))._replace(codes=codes, scales=one)
            for form in formats)  # fmt: skip
    left, right = dequantize(a, torch.float64), dequantize(b, torch.float64)
    found, expected = compute(a, b).double(), left * right.T
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@pytest.mark.parametrize("dtype", [torch.float64, *OUTPUTS], ids=str)
@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_dtypes_of_the_result(spec, dtype) -> None:
    compute = kernel(spec)
    a, b = quantize(draw(5, 70), Scaling(E4M3)), quantize(draw(9, 70), Scaling(E4M3, "row"))
    bias = torch.randn(9).bfloat16()
    if dtype not in spec.dtypes:
        request = OPERATION.request(a, b, out_dtype=dtype)
        assert "not float64" in spec.why_not(request)[0]
        return
    found = compute(a, b, bias=bias, out_dtype=dtype)
    assert found.dtype == dtype
    assert_exact(found, a, b, bias)
    if dtype == torch.float64:
        expected, _ = truth(a, b, bias)
        assert torch.allclose(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_long_sums_are_as_near_as_those_of_float32(spec) -> None:
    compute = kernel(spec)
    for make in (torch.randn, torch.rand):
        a = quantize(make(60, 5000), Scaling(E4M3))
        b = quantize(make(70, 5000), Scaling(E4M3, "row"))
        expected, _ = truth(a, b, None)
        plain = dequantize(a) @ dequantize(b).T
        errors = [float((x.double() - expected).norm() / expected.norm())
                  for x in (compute(a, b), plain)]  # fmt: skip
        assert errors[0] < max(2 * errors[1], 2e-7)


@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_powers_of_two_too_far_apart_to_be_folded(spec) -> None:
    """Blocks of 2^-60 and 2^60 in one row, whose products would leave float32 if folded."""
    compute = kernel(spec)
    values = torch.ones(3, 96)
    values[:, :32] *= 2.0**-60
    values[:, 32:64] *= 2.0**60
    scaling = Scaling(E4M3, "1x32", "power_of_two", epsilon=1e-30)
    a = quantize(values, scaling)
    assert folded(a) is None
    others = torch.zeros(2, 96)
    others[0, :32], others[1, 32:64] = 1.0, 1.0
    b = quantize(others, scaling)
    assert compute(a, b).tolist() == [[32 * 2.0**-60, 32 * 2.0**60]] * 3
    near = quantize(torch.randn(3, 96), scaling)
    assert folded(near) is not None


@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_transposed_codes(spec) -> None:
    compute = kernel(spec)
    for granularity in ("tensor", "128x128"):
        scaling = Scaling(E4M3, granularity)
        a, b = quantize(draw(150, 40), scaling), quantize(draw(150, 50), scaling)
        turned = [item._replace(codes=item.codes.t(), scales=item.scales.t()) for item in (a, b)]
        straight = [item._replace(codes=item.codes.contiguous(), scales=item.scales.contiguous())
                    for item in turned]  # fmt: skip
        found = compute(*turned)
        assert torch.equal(found, compute(*straight))
        assert_exact(found, *straight)
        sliced = a._replace(codes=torch.cat([a.codes, a.codes], 1)[:, :40])
        whole = quantize(torch.ones(2, 40), scaling)
        assert torch.equal(compute(sliced, whole), compute(a, whole))


@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_threads_change_nothing(spec) -> None:
    compute = kernel(spec)
    a = quantize(torch.randn(300, 700), Scaling(E4M3, "1x128"))
    b = quantize(torch.randn(310, 700), Scaling(E4M3, "128x128"))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(compute(a, b))
    finally:
        torch.set_num_threads(before)
    if spec.name == "cpu_avx512":
        assert torch.equal(*found)
    for one in found:
        assert_exact(one, a, b)


@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_traced_code(spec) -> None:
    compute = kernel(spec)
    a = quantize(draw(20, 150), Scaling(E4M3, "1x128"))
    b = quantize(draw(30, 150), Scaling(E5M2, "row", "power_of_two"))
    bias = torch.randn(30)

    def product(x: Tensor, y: Tensor) -> Tensor:
        left, right = a._replace(codes=x), b._replace(codes=y)
        return compute(left, right, bias=bias, out_dtype=torch.bfloat16, promote=64) * 2

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a.codes, b.codes), product(a.codes, b.codes))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = product(mode.from_tensor(a.codes), mode.from_tensor(b.codes))
    assert fake.shape == (20, 30)
    assert fake.dtype == torch.bfloat16


def test_the_operator_obeys_torch_rules() -> None:
    a, b = quantize(draw(4, 40), Scaling(E4M3)), quantize(draw(6, 40), Scaling(E4M3, "row"))
    words = ["float8_e4m3fn", "tensor", "float32"], ["float8_e4m3fn", "row", "float32"]
    torch.library.opcheck(
        torch.ops.accel_kernels.scaled_matmul.default,
        (*a[:2], words[0], *b[:2], words[1], torch.randn(6), torch.float32, None, "cpu"),
    )


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_nothing_is_lost_where_torch_multiplies_float32_as_bfloat16(precision) -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        for scaling in (Scaling(E4M3), Scaling(E5M2, "1x32", "power_of_two")):
            a, b = quantize(draw(70, 256), scaling), quantize(draw(90, 256), scaling)
            assert_exact(cpu.scaled_matmul(a, b), a, b)
    finally:
        setting.fp32_precision = before


def test_stretches_end_where_a_scale_changes_and_after_promote() -> None:
    assert stretch_starts(300, (128, 300), None) == [0, 128, 256, 300]
    assert stretch_starts(300, (128, 32), 1000) == [*range(0, 300, 32), 300]
    assert stretch_starts(300, (300, 300), 128) == [0, 128, 256, 300]
    assert stretch_starts(300, (128, 300), 48) == [0, 48, 96, 128, 176, 224, 256, 300]
    assert stretch_starts(0, (1, 1), None) == [0]


def test_kernels_have_one_signature_and_the_reference_does_everything() -> None:
    signatures = {
        str(inspect.signature(spec.load()))
        for spec in HERE
        if spec.absent is None or spec.absent(torch.float32) is None
    }
    assert len(signatures) == 1
    reference = SPECS[-1]
    assert reference.name == REFERENCE
    assert reference.features == FEATURES
    assert torch.float64 in reference.dtypes
    assert len(FEATURES) == len(FORMATS) ** 2 + len(BLOCKS) ** 2 + 4


def test_a_request_names_formats_blocks_and_extras() -> None:
    a = quantize(torch.randn(3, 40), Scaling(E5M2, "1x32"))
    b = quantize(torch.randn(4, 40), Scaling(E5M2, "row"))
    asked = OPERATION.request(a, b, bias=torch.zeros(4), promote=8, out_dtype=torch.bfloat16)
    assert asked.features == {
        "float8_e5m2 by float8_e5m2", "1x32 by row", "1x32 with float32 scales", "bias", "promote",
    }  # fmt: skip
    assert dict(asked.sizes) == {"rows": 3, "columns": 4, "depth": 40}
    assert asked.dtype == torch.bfloat16
    vendor = next(spec for spec in SPECS if spec.name == "scaled_mm")
    reasons = vendor.why_not(asked._replace(device="cuda"))
    assert "float8_e5m2 by float8_e5m2" in reasons[0]


def test_bad_calls_are_refused() -> None:
    a, b = quantize(torch.randn(3, 40), Scaling(E4M3)), quantize(torch.randn(4, 41), Scaling(E4M3))
    for wrong, message in (
        (lambda: scaled_matmul(a, b), r"agree in K, but are \(3, 40\) and \(4, 41\)"),
        (lambda: scaled_matmul(a, a, promote=0), "promote must be at least 1, not 0"),
        (lambda: scaled_matmul(a, a, bias=torch.zeros(4)), r"bias must be \[N\] = \[3\] on cpu"),
        (lambda: scaled_matmul(a._replace(scales=torch.ones(3, 1)), a), r"scales must be \(1, 1\)"),
        (lambda: scaled_matmul(a._replace(codes=a.codes[0]), a), r"codes of a must be \[M, K\]"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    for wrong, message in (
        (lambda: scaled_matmul(torch.zeros(3, 40), a), "a must be a Quantized, not Tensor; make"),
        (lambda: scaled_matmul(a, a, out_dtype=torch.int32), "out_dtype must be one of float64"),
        (lambda: scaled_matmul(a, a, promote=1.5), "promote must be an integer or None"),
        (lambda: scaled_matmul(a, a, bias=torch.zeros(3).int()), "bias must be a floating tensor"),
        (lambda: scaled_matmul(a._replace(codes=a.codes.int()), a), "must have codes of uint8"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()


@pytest.mark.parametrize("sizes", [(1e30, 1e-10), (1e-10, 1e36), (1e-10, 1e-10), (1e18, 1e18)])
@pytest.mark.parametrize("granularity", ["tensor", "1x128", "1x32"])
@pytest.mark.parametrize("spec", HERE, ids=lambda spec: spec.name)
def test_scales_that_are_far_apart_overflow_nothing(spec, granularity, sizes) -> None:
    scaling = Scaling(E4M3, granularity, "power_of_two")
    a, b = (quantize(torch.randn(20, 256) * size, scaling) for size in sizes)
    assert_exact(kernel(spec)(a, b), a, b)
