"""`scaled_mm`: what it asks of torch, without a GPU, and its results on one.

Without a GPU torch's own checks of a CUDA call run on the CPU, what those leave to C++ is here, and
the product is made from what the documents say of the layouts, element by element.
"""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from accel_kernels.fp8 import BLOCKS, E4M3, E5M2, HIF8, Quantized, Scaling, quantize
from accel_kernels.scaled_matmul import reference, scaled_mm
from accel_kernels.scaled_matmul.scaled_mm import chip, layouts

if not hasattr(F, "scaled_mm"):
    pytest.skip(str(chip.why_absent()), allow_module_level=True)

from torch.nn.functional import ScalingType, SwizzleType

BLOCKED = [name for name in BLOCKS if name != "1x32"]
SIZES = [(1, 1, 1), (16, 32, 16), (63, 100, 129), (130, 257, 300), (17, 16, 128), (128, 128, 512)]
ON_GPU = pytest.mark.skipif(
    not torch.cuda.is_available() or chip.why_absent() is not None, reason="needs an FP8 GPU"
)


def draw(rows, columns, granularity, kind=E4M3, scales="float32", device="cpu", most=6):
    """A matrix whose rows differ in size by much."""
    values = torch.randn(rows, columns, device=device)
    values *= torch.exp2(torch.randint(-6, most + 1, (rows, 1), device=device).float())
    return quantize(values, Scaling(kind, granularity, scales))


def exact(a, b, bias=None):
    return reference.scaled_matmul(a, b, bias=bias, out_dtype=torch.float64)


def close(found, expected, tolerance=1e-6):
    """To the largest of a row: sums cancel."""
    assert found.isfinite().all()
    unit = expected.abs().amax().clamp(min=1e-30)
    assert ((found.double() - expected).abs() / unit).max().item() <= tolerance


# --- a GPU made of its documents ------------------------------------------------------------------


class Gpu:
    """Stands for `torch.nn.functional.scaled_mm` on a GPU, and remembers what it was asked."""

    def __init__(self, monkeypatch, capability=(9, 0), cuda="12.9"):
        self.calls = []
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(F, "scaled_mm", self.scaled_mm)
        monkeypatch.setattr("torch._meta_registrations.device_hint", lambda _: "cuda")
        self.has_blocks = capability[0] == 9

    @property
    def recipes(self):
        return {(call.recipe_a.name, call.recipe_b.name) for call in self.calls}

    def scaled_mm(
        self, mat_a, mat_b, scale_a, recipe_a, scale_b, recipe_b, *, swizzle_a, swizzle_b, bias,
        output_dtype, use_fast_accum,
    ):  # fmt: skip
        check = pytest.importorskip("torch._meta_registrations")._check_scaled_mm_sizes_v2
        check(
            mat_a, mat_b, [scale_a], [recipe_a], [scale_b], [recipe_b], bias, output_dtype,
            [swizzle_a] if swizzle_a else [], [swizzle_b] if swizzle_b else [], use_fast_accum,
        )  # fmt: skip
        assert not use_fast_accum
        assert {mat_a.dtype, mat_b.dtype} != {torch.float8_e5m2}
        assert all(m.data_ptr() % 16 == 0 and max(m.stride()) % 16 == 0 for m in (mat_a, mat_b))
        if bias is not None:
            assert bias.dtype == output_dtype != torch.float32
            assert bias.shape == (mat_b.shape[1],)
        if "Block" in recipe_a.name and recipe_a is not ScalingType.BlockWise1x32:
            assert self.has_blocks
        self.calls.append(SimpleNamespace(recipe_a=recipe_a, recipe_b=recipe_b, bias=bias))
        left = mat_a.double() * self.spread(scale_a, recipe_a, *mat_a.shape)
        right = mat_b.t().double() * self.spread(scale_b, recipe_b, *mat_b.t().shape)
        total = left @ right.t()
        return (total if bias is None else total + bias.double()).to(output_dtype)

    def spread(self, scale, recipe, rows, depth):
        """The scale of each value of a matrix `[rows, depth]`."""
        if recipe is ScalingType.TensorWise:
            return scale.double()
        if recipe is ScalingType.RowWise:
            return scale.reshape(rows, 1).double()
        out = torch.empty(rows, depth, dtype=torch.float64)
        for row, run in product(range(rows), range(-(-depth // 32))):
            if recipe is ScalingType.BlockWise1x32:
                tiles = -(-depth // 128)
                tile = row // 128 * tiles + run // 4
                at = tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + run % 4
                value = scale.reshape(-1)[at].float()
            elif recipe is ScalingType.BlockWise1x128:
                value = scale[row, run // 4]
            else:
                value = scale[run // 4, row // 128]
            out[row, run * 32 : run * 32 + 32] = value.item()
        return out


@pytest.mark.parametrize("size", [(1, 1, 1), (63, 100, 129), (130, 20, 300)], ids=str)
@pytest.mark.parametrize("granularities", list(product(BLOCKED, BLOCKED)), ids=" ".join)
@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)], ids=str)
def test_blocks_on_each_chip(granularities, size, capability, monkeypatch) -> None:
    rows, columns, depth = size
    a, b = draw(rows, depth, granularities[0]), draw(columns, depth, granularities[1], E5M2)
    gpu = Gpu(monkeypatch, capability)
    close(scaled_mm.scaled_matmul(a, b), exact(a, b))
    used = {name for pair in gpu.recipes for name in pair}
    if granularities == ("tensor", "tensor"):
        assert used == {"TensorWise"}
    elif capability != (9, 0):
        assert used == {"TensorWise"}, "rows and blocks only where cuBLAS has them"
    elif not {"1x128", "128x128"} & {*granularities}:
        assert used == {"RowWise"}
    else:
        assert len(gpu.calls) == 1
        pairs = ("BlockWise1x128", "BlockWise128x128", "BlockWise1x128")
        assert gpu.recipes <= {pairs[:2], pairs[1:], (pairs[0], pairs[0])}


def test_cuda_before_12_9_has_no_blocks(monkeypatch) -> None:
    a, b = draw(16, 256, "1x128"), draw(16, 256, "128x128")
    gpu = Gpu(monkeypatch, cuda="12.8")
    close(scaled_mm.scaled_matmul(a, b), exact(a, b))
    assert gpu.recipes == {("TensorWise", "TensorWise")}
    assert len(gpu.calls) == 2, "one for each stretch of K with its own scales"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mx_scales_are_arranged_in_tiles(size, monkeypatch) -> None:
    rows, columns, depth = size
    a = draw(rows, depth, "1x32", E4M3, "power_of_two")
    b = draw(columns, depth, "1x32", E4M3, "power_of_two")
    gpu = Gpu(monkeypatch, (10, 0))
    close(scaled_mm.scaled_matmul(a, b), exact(a, b))
    assert gpu.recipes == {("BlockWise1x32", "BlockWise1x32")}
    assert layouts.microscaled(a, b).swizzle is SwizzleType.SWIZZLE_32_4_4


@pytest.mark.parametrize("granularity", BLOCKED)
@pytest.mark.parametrize(
    "dtypes", list(product(*[[torch.float32, torch.bfloat16, torch.float16]] * 2))
)
def test_a_bias_is_added_before_the_only_rounding(granularity, dtypes, monkeypatch) -> None:
    a, b = (draw(n, 130, granularity, most=2) for n in (33, 65))
    bias = torch.randn(65).to(dtypes[0])
    gpu = Gpu(monkeypatch)
    found = scaled_mm.scaled_matmul(a, b, bias=bias, out_dtype=dtypes[1])
    assert found.dtype == dtypes[1]
    expected = exact(a, b, bias)
    close(found, expected.to(dtypes[1]).double(), {torch.float32: 1e-6}.get(dtypes[1], 1e-3))
    is_native = dtypes[0] == dtypes[1] != torch.float32 and granularity in ("tensor", "row")
    assert [call.bias is not None for call in gpu.calls] == [is_native]


@pytest.mark.parametrize("promote", [16, 64, 100, 128, 200, 1000])
@pytest.mark.parametrize("granularity", BLOCKED)
def test_promotion_keeps_partial_sums_apart(granularity, promote, monkeypatch) -> None:
    a, b = draw(20, 300, granularity), draw(30, 300, granularity)
    gpu = Gpu(monkeypatch)
    close(scaled_mm.scaled_matmul(a, b, promote=promote), exact(a, b))
    blocks = granularity in ("1x128", "128x128")
    whole = blocks and promote >= 128
    inner = 128 if blocks else 300
    stretches = sum(-(-min(inner, 300 - at) // promote) for at in range(0, 300, inner))
    assert len(gpu.calls) == (1 if whole else stretches)


@pytest.mark.parametrize("size", [(0, 3, 5), (3, 0, 5), (3, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("granularity", BLOCKED)
def test_empty_matrices_ask_nothing(size, granularity, monkeypatch) -> None:
    rows, columns, depth = size
    a, b = draw(rows, depth, granularity), draw(columns, depth, granularity)
    gpu = Gpu(monkeypatch)
    bias = torch.randn(columns)
    found = scaled_mm.scaled_matmul(a, b, bias=bias, out_dtype=torch.bfloat16)
    assert torch.equal(found, bias.expand(rows, columns).bfloat16())
    assert gpu.calls == []


def test_codes_need_not_be_contiguous(monkeypatch) -> None:
    whole = draw(64, 129, "tensor")
    odd = Quantized(whole.codes[::2, 1:], whole.scales, whole.scaling)
    turned = Quantized(whole.codes[:, :32].t(), whole.scales, whole.scaling)
    shifted = Quantized(whole.codes.flatten()[3:2051].view(64, 32), whole.scales, whole.scaling)
    Gpu(monkeypatch)
    close(scaled_mm.scaled_matmul(shifted, shifted), exact(shifted, shifted))
    close(scaled_mm.scaled_matmul(odd, odd), exact(odd, odd))
    close(scaled_mm.scaled_matmul(turned, turned), exact(turned, turned))


def test_nan_stays_nan(monkeypatch) -> None:
    values = torch.randn(16, 32)
    values[3, 4] = torch.nan
    a = quantize(values, Scaling(E4M3, "row"))
    Gpu(monkeypatch)
    found = scaled_mm.scaled_matmul(a, a).isnan()
    assert found[3].all()
    assert found[:, 3].all()
    assert found.sum() == 31


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (Scaling(E5M2), Scaling(E5M2), "not float8_e5m2 by float8_e5m2"),
        (Scaling(HIF8), Scaling(HIF8), "not hifloat8 by hifloat8"),
        (Scaling(E4M3), Scaling(HIF8), "not float8_e4m3fn by hifloat8"),
        (Scaling(E4M3, "1x32"), Scaling(E4M3, "1x32"), "power_of_two"),
        (Scaling(E4M3, "1x32", "power_of_two"), Scaling(E4M3, "row"), "on both sides"),
    ],
)
def test_what_cublas_has_not_is_refused(a, b, message) -> None:
    values = torch.randn(16, 32)
    with pytest.raises(ValueError, match=message):
        scaled_mm.scaled_matmul(quantize(values, a), quantize(values, b))


@pytest.mark.parametrize("granularities", [("tensor", "tensor"), ("row", "128x128")], ids=" ".join)
@pytest.mark.parametrize("promote", [None, 20])
def test_it_traces_in_one_piece(granularities, promote, monkeypatch) -> None:
    monkeypatch.setattr(chip, "has_blocks", lambda _: False)
    monkeypatch.setattr(chip, "has_rows", lambda _: False)
    a, b = draw(20, 140, granularities[0]), draw(30, 140, granularities[1])

    def run(a_codes, b_codes):
        first, second = a._replace(codes=a_codes), b._replace(codes=b_codes)
        return scaled_mm.scaled_matmul(first, second, promote=promote)

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    close(compiled(a.codes, b.codes), exact(a, b))


# --- the machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "fp8", "mx"),
    [((8, 0), False, False), ((8, 9), True, False), ((9, 0), True, False), ((10, 0), True, True)],
    ids=str,
)
def test_capabilities(capability, fp8, mx, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a chip")
    monkeypatch.setattr(torch.version, "hip", None)
    assert (chip.why_absent() is None) is fp8
    assert (chip.why_mx_absent() is None) is mx
    if not fp8:
        assert "8.9" in str(chip.why_absent())
        assert "a chip has 8.0" in str(chip.why_absent())


def test_without_torchs_function_or_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chip.why_absent() == "needs a CUDA device"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "ROCm" in str(chip.why_absent())
    monkeypatch.delattr(F, "scaled_mm")
    assert "torch.nn.functional.scaled_mm" in str(chip.why_absent())


# --- torch's own product, on the CPU and on a GPU -------------------------------------------------


@pytest.mark.parametrize("granularities", list(product(["tensor", "row"], repeat=2)), ids=" ".join)
@pytest.mark.parametrize("has_rows", [True, False])
def test_torchs_product_on_the_cpu_agrees(granularities, has_rows, monkeypatch) -> None:
    monkeypatch.setattr(chip, "has_rows", lambda _: has_rows)
    a, b = draw(33, 50, granularities[0]), draw(17, 50, granularities[1], E5M2)
    close(scaled_mm.scaled_matmul(a, b), exact(a, b))


@ON_GPU
@pytest.mark.parametrize("granularities", list(product(BLOCKED, BLOCKED)), ids=" ".join)
def test_results_on_cuda(granularities) -> None:
    kinds = [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2)]
    for (rows, columns, depth), (first, second) in product([*SIZES, (512, 1024, 2048)], kinds):
        a = draw(rows, depth, granularities[0], first, device="cuda")
        b = draw(columns, depth, granularities[1], second, device="cuda")
        # A float32 sum in a tensor core keeps fewer bits than one of float32.
        close(scaled_mm.scaled_matmul(a, b), exact(a, b), 2e-3)
        close(scaled_mm.scaled_matmul(a, b, promote=128), exact(a, b), 2e-3)


@ON_GPU
@pytest.mark.parametrize("granularity", BLOCKED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_bias_on_cuda(granularity, dtype) -> None:
    a, b = (draw(n, 130, granularity, device="cuda", most=2) for n in (33, 65))
    bias = torch.randn(65, device="cuda", dtype=dtype)
    found = scaled_mm.scaled_matmul(a, b, bias=bias, out_dtype=dtype)
    close(found, exact(a, b, bias), 2e-2 if dtype == torch.bfloat16 else 4e-3)


@ON_GPU
def test_promotion_on_cuda_comes_nearer_to_float64() -> None:
    a, b = (draw(256, 8192, "tensor", device="cuda") for _ in range(2))
    errors = [
        (scaled_mm.scaled_matmul(a, b, promote=promote).double() - exact(a, b)).abs().mean().item()
        for promote in (None, 128)
    ]
    assert errors[1] <= errors[0] * 1.01, errors


@ON_GPU
def test_mx_on_cuda() -> None:
    if (reason := chip.why_mx_absent()) is not None:
        pytest.skip(reason)
    for rows, columns, depth in SIZES:
        a, b = (draw(n, depth, "1x32", E4M3, "power_of_two", "cuda") for n in (rows, columns))
        close(scaled_mm.scaled_matmul(a, b), exact(a, b), 2e-3)
