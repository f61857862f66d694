"""8-bit floats on the simulated chips: 950 has them, A2 keeps their bytes and no more."""

import json

import pytest
import torch
import torch_npu

from accel_kernels.fp8 import E4M3, FORMATS, HIF8, Scaling, dequantize, quantize
from accel_kernels.scaled_matmul import npu, reference

NPU = torch.device("npu", 0)
F8 = torch.float8_e4m3fn

ON_950 = """
import json, warnings, torch, torch_npu
warnings.simplefilter("ignore")
from accel_kernels.fp8 import E4M3, E5M2, HIF8, Scaling, quantize
from accel_kernels.scaled_matmul import npu, reference
from accel_kernels.vendor.npu import REFERENCES

def same(found, wanted):
    found = found if isinstance(found, (tuple, list)) else [found]
    wanted = wanted if isinstance(wanted, (tuple, list)) else [wanted]
    return all(
        f.device.type == "npu" and f.dtype == w.dtype and f.shape == w.shape
        and torch.equal(f.cpu().view(torch.uint8), w.view(torch.uint8))
        for f, w in zip(found, wanted, strict=True)
    )

facts = {}
x = torch.randn(70, 200, dtype=torch.bfloat16)
w = torch.randn(90, 200, dtype=torch.bfloat16)
F8, H8, E8 = torch_npu.float8_e4m3fn, torch_npu.hifloat8, torch_npu.float8_e8m0fnu
for name, arguments in {
    "npu_dynamic_quant": {"dst_type": F8, "quant_mode": "pertensor"},
    "npu_dynamic_block_quant": {"dst_type": H8, "round_mode": "round", "dst_type_max": 15.0},
    "npu_dynamic_mx_quant": {"dst_type": F8, "axis": -2, "scale_alg": 1},
    "npu_dynamic_mx_quant_with_dual_axis": {"dst_type": F8},
}.items():
    found = getattr(torch_npu, name)(x.npu(), **arguments)
    facts[name] = same(found, REFERENCES[name](x, **arguments))

a, a_scale = torch_npu.npu_dynamic_mx_quant(x.npu(), dst_type=F8)
b, b_scale = torch_npu.npu_dynamic_mx_quant(w.npu(), dst_type=F8)
out = torch_npu.npu_quant_matmul(
    a, b.t(), b_scale.transpose(0, 1), pertoken_scale=a_scale, output_dtype=torch.bfloat16,
    scale_dtype=E8, pertoken_scale_dtype=E8, group_sizes=[1, 1, 32],
)
exact = x.double() @ w.double().T
facts["mx"] = ((out.cpu().double() - exact).norm() / exact.norm()).item()

there = torch_npu.HiFloat8Tensor.to_hifloat8(x.float().npu())
codes = REFERENCES["npu_dtype_cast"](x.float(), 290)
facts["HiFloat8Tensor"] = same(there._data, codes)
back = REFERENCES["npu_dtype_cast"](codes, 6, 290)
facts["back"] = same(there.from_hifloat8(torch.float32), back)
facts["cast"] = same(x.npu().to(torch.float8_e5m2), x.to(torch.float8_e5m2))

from torch.nn import functional as F
from torch.nn.functional import ScalingType, SwizzleType

def error(run):
    try:
        run()
    except (RuntimeError, ValueError) as failure:
        return str(failure)
    return "none"

def scaled(kind, first, second, recipe, dtype=torch.float32, **more):
    mats = x.to(kind).npu(), w.to(kind).npu().t()
    return F.scaled_mm(*mats, first, recipe, second, recipe, output_dtype=dtype, **more)

T, R, B, X = ScalingType.TensorWise, ScalingType.RowWise, ScalingType.BlockWise1x128, \
    ScalingType.BlockWise1x32
E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2
product = x.to(E4).double() @ w.to(E4).double().T
rows, columns, half = torch.rand(70, 1), torch.rand(1, 90), torch.full((1,), 0.5)
bias = torch.randn(90).bfloat16()
checks = {
    "tensorwise": (scaled(E4, half.npu(), half.npu(), T), product / 4),
    "rowwise": (scaled(E4, rows.npu(), columns.npu(), R), product * rows * columns),
    "bias": (
        scaled(E4, half.npu(), half.npu(), T, torch.bfloat16, bias=bias.npu()),
        (product / 4 + bias.double()).bfloat16().double(),
    ),
    "old": (
        torch._scaled_mm(
            x.to(E4).npu(), w.to(E4).npu().t(), half.npu(), half.npu(), out_dtype=torch.float32
        ),
        product / 4,
    ),
    "1x32": (
        F.scaled_mm(
            x.to(E4).npu(), w.to(E4).npu().t(),
            torch.full((70, 4, 2), 128, dtype=torch.uint8).view(torch.float8_e8m0fnu).npu(), X,
            torch.full((90, 4, 2), 128, dtype=torch.uint8).view(torch.float8_e8m0fnu).npu()
            .transpose(0, 1), X, output_dtype=torch.float32,
        ),
        product * 4,
    ),
}
for name, (found, wanted) in checks.items():
    facts["scaled " + name] = bool(((found.cpu().double() - wanted).abs() < 1e-4).all())
one = half.npu()
facts["errors"] = {
    "e5m2": error(lambda: scaled(E5, one, one, T)),
    "bias": error(lambda: scaled(E4, one, one, T, bias=bias.npu())),
    "swizzle": error(lambda: scaled(E4, one, one, T, swizzle_a=SwizzleType.SWIZZLE_32_4_4)),
    "1x128": error(lambda: scaled(E4, torch.ones(70, 2).npu(), torch.ones(2, 90).npu(), B)),
    "recipe": error(lambda: scaled(E4, one, columns.npu(), ScalingType.BlockWise128x128)),
}
facts["absent"] = npu.why_absent()
for label, first, second, kind, scales in (
    ("tensor", "tensor", "tensor", E5M2, "float32"), ("row", "row", "row", E4M3, "float32"),
    ("block", "1x128", "128x128", E4M3, "float32"), ("hif8", "row", "tensor", HIF8, "float32"),
    ("mxfp8", "1x32", "1x32", E4M3, "power_of_two"),
):
    here = [quantize(t, Scaling(kind, g, scales)) for t, g in ((x, first), (w, second))]
    on = [quantize(t.npu(), Scaling(kind, g, scales)) for t, g in ((x, first), (w, second))]
    facts[label + " codes"] = all(
        same(f[:2], t[:2]) for f, t in zip(on, here, strict=True)
    )
    wanted = reference.scaled_matmul(*here, out_dtype=torch.float64)
    found = npu.scaled_matmul(*on).cpu().double()
    facts[label] = ((found - wanted).abs().max() / wanted.abs().max()).item()
print(json.dumps(facts))
"""


def test_what_950_does_with_8_bit_floats(run_simulated):
    result = run_simulated(ON_950, chip="950")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts.pop("absent") is None
    assert 0.01 < facts.pop("mx") < 0.06
    refusals = facts.pop("errors")
    assert "e5m2" in refusals["e5m2"]
    assert "dtype" in refusals["bias"]
    assert "swizzle" in refusals["swizzle"]
    assert "scale" in refusals["1x128"], "its documents have 1x128 only with 128x128"
    assert "recipes" in refusals["recipe"]
    assert {name for name, value in facts.items() if value is False} == set()
    errors = {name: value for name, value in facts.items() if value is not True}
    assert set(errors) == {"tensor", "row", "block", "hif8", "mxfp8"}
    assert max(errors.values()) < 1e-6, errors


@pytest.fixture
def without_them(machine):
    if machine.profile.fp8:
        pytest.skip("this chip has 8-bit floats")


@pytest.mark.usefixtures("without_them")
def test_bytes_are_kept():
    codes = torch.arange(256, dtype=torch.uint8).view(F8)
    there = codes.to(NPU)
    assert there.dtype == F8
    assert torch.equal(there.cpu().view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(there.view(torch.uint8).cpu(), codes.view(torch.uint8))


@pytest.mark.usefixtures("without_them")
@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.to(F8),
        lambda x: torch.zeros(4, 4).to(F8).to(NPU).float(),
        lambda x: torch_npu.npu_dynamic_quant(x.half(), dst_type=F8),
        lambda x: torch_npu.npu_dynamic_quant(x.half(), dst_type=torch_npu.hifloat8),
        lambda x: torch_npu.npu_dynamic_quant(x.half(), quant_mode="pertensor"),
        lambda x: torch_npu.npu_dynamic_block_quant(x.half(), dst_type=torch_npu.float8_e4m3fn),
        lambda x: torch_npu.npu_dynamic_block_quant(x.half(), row_block_size=128),
        lambda x: torch_npu.npu_dynamic_mx_quant(x.half(), dst_type=torch_npu.float8_e4m3fn),
        lambda x: torch_npu.npu_dtype_cast(x, torch_npu.hifloat8),
        lambda x: torch_npu.HiFloat8Tensor.to_hifloat8(x),
        lambda x: torch_npu.npu_quant_matmul(
            x.to(torch.uint8), x.to(torch.uint8), x[0, :1], pertoken_scale=x[0, :1],
            x1_dtype=torch_npu.hifloat8, x2_dtype=torch_npu.hifloat8, output_dtype=torch.float32,
        ),
    ],
)  # fmt: skip
def test_an_a2_is_asked_in_vain(ask):
    with pytest.raises((RuntimeError, NotImplementedError), match=r"910B2|8-bit|eight"):
        ask(torch.ones(4, 4, device=NPU))


@pytest.mark.usefixtures("without_them")
def test_an_a2_still_quantizes_to_int8():
    x = torch.randn(4, 256, dtype=torch.float16).to(NPU)
    assert torch_npu.npu_dynamic_quant(x)[0].dtype == torch.int8
    codes, scale = torch_npu.npu_dynamic_block_quant(x)
    assert codes.dtype == torch.int8
    assert scale.shape == (4, 2)


@pytest.mark.usefixtures("without_them")
def test_the_products_kernel_says_why_it_is_absent(machine):
    assert machine.profile.soc_name in str(npu.why_absent())
    assert "Ascend 950" in str(npu.why_absent())


@pytest.mark.parametrize("kind", FORMATS.values(), ids=str)
@pytest.mark.parametrize("granularity", ["tensor", "row", "1x128", "128x128", "1x32"])
def test_codes_are_made_and_multiplied_on_every_chip(kind, granularity):
    """Without a cast of the chip's: the bits are those of the CPU."""
    x = torch.randn(33, 150) * 30
    here = quantize(x, Scaling(kind, granularity))
    there = quantize(x.to(NPU), Scaling(kind, granularity))
    assert there.codes.device == NPU
    assert torch.equal(there.codes.cpu(), here.codes)
    assert torch.equal(there.scales.cpu(), here.scales)
    assert torch.equal(dequantize(there).cpu(), dequantize(here))
    product = reference.scaled_matmul(there, there)
    torch.testing.assert_close(product.cpu(), reference.scaled_matmul(here, here))


def test_hifloat8_and_e4m3_have_their_own_codes():
    one = torch.ones(1, 1)
    codes = [quantize(one, Scaling(kind, target=1.0)).codes.item() for kind in (E4M3, HIF8)]
    assert codes == [0x38, 0x08]
