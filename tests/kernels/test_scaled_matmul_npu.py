"""`npu`: what it asks of the vendor's operator, whose reference computes here what it is asked."""

from itertools import product

import pytest
import torch

from accel_kernels.fp8 import BLOCKS, E4M3, E5M2, HIF8, Quantized, Scaling, quantize
from accel_kernels.scaled_matmul import npu, reference
from accel_kernels.vendor.npu import REFERENCES

SIZES = [(1, 1, 1), (16, 32, 16), (63, 100, 129), (130, 257, 300), (2, 128, 65)]
BLOCKED = [name for name in BLOCKS if name != "1x32"]


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of the operator."""
    seen = []

    def find(name):
        def run(x1, x2, scale, **arguments):
            # What the page wants: contiguous, or the view that is the transposed of it.
            assert x1.is_contiguous()
            assert x2.t().is_contiguous()
            seen.append({"x1": x1, "x2": x2, "scale": scale, **arguments})
            return REFERENCES[name](x1, x2, scale, **arguments)

        return run

    monkeypatch.setattr(npu, "operator", find)
    return seen


def draw(rows, columns, granularity, kind=E4M3, scales="float32"):
    values = torch.randn(rows, columns)
    values *= torch.exp2(torch.randint(-6, 3, (rows, 1)).float())
    return quantize(values, Scaling(kind, granularity, scales))


def close(found, a, b, bias=None, tolerance=1e-6):
    expected = reference.scaled_matmul(a, b, bias=bias, out_dtype=torch.float64)
    assert found.shape == expected.shape
    unit = expected.abs().amax().clamp(min=1e-30)
    assert ((found.double() - expected).abs() / unit).max().item() <= tolerance


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("granularities", list(product(BLOCKED, BLOCKED)), ids=" ".join)
def test_blocks(granularities, size, calls) -> None:
    rows, columns, depth = size
    a, b = draw(rows, depth, granularities[0]), draw(columns, depth, granularities[1], E5M2)
    close(npu.scaled_matmul(a, b), a, b)
    groups = [call.get("group_sizes") for call in calls]
    fine = {"1x128", "128x128"} & {*granularities}
    if not fine:
        assert groups == [None]
    elif granularities == ("128x128", "128x128"):
        assert groups == [[128, 128, 128]]
    elif {"tensor", "128x128"} & {*granularities}:
        assert groups == [[1, 128, 128]]
    else:
        assert groups == [None] * -(-depth // 128), "one product for each stretch of K"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kinds", [(E4M3, E4M3), (E5M2, E5M2), (E4M3, E5M2)], ids=str)
def test_mx(kinds, size, calls) -> None:
    rows, columns, depth = size
    a, b = (
        draw(n, depth, "1x32", k, "power_of_two")
        for n, k in zip((rows, columns), kinds, strict=True)
    )
    close(npu.scaled_matmul(a, b), a, b)
    (call,) = calls
    assert call["group_sizes"] == [1, 1, 32]
    assert call["scale_dtype"] == call["pertoken_scale_dtype"] == npu.FLOAT8_E8M0
    assert call["scale"].dtype == torch.uint8
    assert call["scale"].shape == (-(-depth // 64), columns, 2)
    assert call["pertoken_scale"].shape == (rows, -(-depth // 64), 2)


@pytest.mark.parametrize("granularities", [("1x32", "1x32"), ("1x32", "row"), ("1x128", "1x32")])
def test_blocks_that_no_call_has_are_cut(granularities, calls) -> None:
    a, b = draw(17, 100, granularities[0]), draw(19, 100, granularities[1])
    close(npu.scaled_matmul(a, b), a, b)
    assert len(calls) == 4
    assert all("group_sizes" not in call for call in calls)


@pytest.mark.parametrize("granularities", list(product(BLOCKED, BLOCKED)), ids=" ".join)
def test_hifloat8_is_named_as_such(granularities, calls) -> None:
    a, b = (draw(33, 150, granularity, HIF8) for granularity in granularities)
    close(npu.scaled_matmul(a, b), a, b)
    for call in calls:
        assert call["x1_dtype"] == call["x2_dtype"] == npu.HIFLOAT8
        assert call["x1"].dtype == call["x2"].dtype == torch.uint8


def test_hifloat8_with_mx_blocks_is_cut(calls) -> None:
    a, b = (draw(5, 70, "1x32", HIF8, "power_of_two") for _ in range(2))
    close(npu.scaled_matmul(a, b), a, b)
    assert len(calls) == 3


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_results_are_rounded_once(out_dtype, with_bias, calls) -> None:
    a, b = draw(17, 70, "row"), draw(19, 70, "row")
    bias = torch.randn(19).to(torch.bfloat16) if with_bias else None
    found = npu.scaled_matmul(a, b, bias=bias, out_dtype=out_dtype)
    assert found.dtype == out_dtype
    exact = reference.scaled_matmul(a, b, bias=bias, out_dtype=torch.float64)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}[out_dtype]
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=1e-5)
    # The operator's own bias would come before the scales.
    assert calls[0].get("bias") is None
    assert calls[0]["output_dtype"] == npu._OUTPUTS[torch.float32 if with_bias else out_dtype]


@pytest.mark.parametrize("promote", [1, 32, 100, 128, 300])
@pytest.mark.parametrize("granularities", [("row", "row"), ("1x128", "128x128")], ids=" ".join)
def test_promotion(granularities, promote, calls) -> None:
    a, b = draw(5, 150, granularities[0]), draw(7, 150, granularities[1])
    close(npu.scaled_matmul(a, b, promote=promote), a, b)
    blocks = granularities[0] == "1x128"
    inner = 128 if blocks else 150
    whole = blocks and promote >= 128
    stretches = sum(-(-min(inner, 150 - at) // promote) for at in range(0, 150, inner))
    assert len(calls) == (1 if whole else stretches)


@pytest.mark.parametrize("size", [(0, 3, 5), (3, 0, 5), (3, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("granularity", BLOCKS)
def test_empty_matrices_ask_nothing(size, granularity, calls) -> None:
    rows, columns, depth = size
    a, b = draw(rows, depth, granularity), draw(columns, depth, granularity)
    bias = torch.randn(columns)
    found = npu.scaled_matmul(a, b, bias=bias, out_dtype=torch.float16)
    assert torch.equal(found, bias.expand(rows, columns).half())
    assert calls == []


def test_codes_need_not_be_contiguous(calls) -> None:
    whole = draw(64, 129, "tensor")
    odd = Quantized(whole.codes[::2, 1:], whole.scales, whole.scaling)
    turned = Quantized(whole.codes[:, :32].t(), whole.scales, whole.scaling)
    close(npu.scaled_matmul(odd, odd), odd, odd)
    close(npu.scaled_matmul(turned, turned), turned, turned)
    assert len(calls) == 2


def test_hifloat8_multiplies_only_itself() -> None:
    a, b = draw(3, 4, "row", HIF8), draw(3, 4, "row", E4M3)
    with pytest.raises(ValueError, match="hifloat8 by float8_e4m3fn"):
        npu.scaled_matmul(a, b)


def test_without_torch_npu_it_says_so(monkeypatch) -> None:
    if hasattr(torch, "npu"):
        pytest.skip("torch_npu is here")
    assert npu.why_absent() == "needs torch_npu"
    with pytest.raises(RuntimeError, match="needs torch_npu"):
        npu.scaled_matmul(draw(3, 4, "row"), draw(3, 4, "row"))


@pytest.mark.parametrize(("name", "is_one"), [("Ascend910B2", False), ("Ascend950DT_9581", True)])
def test_only_ascend_950_multiplies_8_bit_floats(name, is_one, monkeypatch) -> None:
    class Npu:
        @staticmethod
        def get_device_name():
            return name

    monkeypatch.setattr(torch, "npu", Npu, raising=False)
    reason = npu.why_absent()
    assert (reason is None) is is_one
    if reason is not None:
        assert "Ascend 950" in reason
        assert name in reason
