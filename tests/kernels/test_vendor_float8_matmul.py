"""`npu_quant_matmul` of 8-bit floats, against sums over single products."""

import pytest
import torch

from accel_kernels.fp8 import E4M3, E5M2, HIF8, decode
from accel_kernels.vendor.npu import REFERENCES

matmul = REFERENCES["npu_quant_matmul"]
mx_quant = REFERENCES["npu_dynamic_mx_quant"]
block_quant = REFERENCES["npu_dynamic_block_quant"]
E8M0, HIFLOAT8, FP32 = 293, 290, 6


def codes(kind, *shape):
    """Every code but NaN and infinities."""
    drawn = torch.randint(0, 0x6E, shape, dtype=torch.uint8)
    drawn |= torch.randint(0, 2, shape, dtype=torch.uint8) << 7
    drawn = torch.where(drawn == 0x80, 0, drawn)
    return drawn if kind.dtype is None else drawn.view(kind.dtype)


def dtypes(kind):
    return {"x1_dtype": HIFLOAT8, "x2_dtype": HIFLOAT8} if kind is HIF8 else {}


def values(tensor, kind):
    return decode(tensor.contiguous(), kind, torch.float64)


def close(found, expected, tolerance=1e-6):
    unit = expected.abs().max().clamp(min=1e-30)
    assert ((found.double() - expected) / unit).abs().max() <= tolerance


M, K, N = 5, 150, 7
KINDS = [(E4M3, E4M3), (E5M2, E5M2), (E4M3, E5M2), (HIF8, HIF8)]


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("left", [(1,), (M,)])
@pytest.mark.parametrize("right", [(1,), (N,)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_scales_of_tensors_rows_and_columns(kinds, left, right, with_bias) -> None:
    x1, x2 = codes(kinds[0], M, K), codes(kinds[1], K, N)
    first, second = torch.rand(left) + 0.5, torch.rand(right) + 0.5
    bias = torch.randn(N) * 1e3 if with_bias else None
    out = matmul(
        x1, x2, second, pertoken_scale=first, bias=bias, output_dtype=FP32, **dtypes(kinds[0])
    )
    expected = values(x1, kinds[0]) @ values(x2, kinds[1])
    if bias is not None:
        expected = expected + bias.double()
    close(out, expected * second.double() * first.double().reshape(-1, 1))
    assert out.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_views_and_batches(dtype) -> None:
    x1, x2 = codes(E4M3, 2, K, M).transpose(-1, -2), codes(E4M3, N, K).t()
    scale = torch.tensor([2.0**-12])
    out = matmul(x1, x2, scale, pertoken_scale=torch.ones(1), output_dtype=dtype)
    expected = torch.stack([values(x, E4M3) for x in x1]) @ values(x2, E4M3) * 2.0**-12
    close(out, expected.to(dtype).double(), 1e-7)
    assert out.dtype == dtype


def test_a_float32_scale_alone_keeps_19_bits() -> None:
    x1, x2 = torch.ones(1, 1).to(torch.float8_e4m3fn), torch.ones(1, 1).to(torch.float8_e5m2)
    scale = torch.tensor([1.0 + 2.0**-10 + 2.0**-13])
    assert matmul(x1, x2, scale, output_dtype=FP32).item() == 1.0 + 2.0**-10
    packed = REFERENCES["npu_trans_quant_param"](scale)
    assert matmul(x1, x2, packed, output_dtype=FP32).item() == 1.0 + 2.0**-10
    whole = matmul(x1, x2, scale, pertoken_scale=torch.ones(1), output_dtype=FP32)
    assert whole.item() == scale.item()


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("high", [1, 128])
@pytest.mark.parametrize("groups", [None, [0, 0, 0], "whole"])
@pytest.mark.parametrize("turned", [False, True])
def test_blocks_of_128(kinds, high, groups, turned) -> None:
    rows, columns, depth = 130, 257, 300
    x1, x2 = codes(kinds[0], rows, depth), codes(kinds[1], depth, columns)
    first = torch.rand(-(-rows // high), 3) + 0.5
    second = torch.rand(3, 3) + 0.5
    given = (x2, second)
    if turned:
        given = (x2.t().contiguous().t(), second.t().contiguous().t())
    out = matmul(
        x1, given[0], given[1], pertoken_scale=first, output_dtype=FP32,
        group_sizes=[high, 128, 128] if groups == "whole" else groups, **dtypes(kinds[0]),
    )  # fmt: skip
    left, right = values(x1, kinds[0]), values(x2, kinds[1])
    expected = torch.zeros(rows, columns, dtype=torch.float64)
    for run in range(3):
        part = slice(run * 128, (run + 1) * 128)
        for block in range(3):
            place = slice(block * 128, (block + 1) * 128)
            product = left[:, part] @ right[part, place] * second[run, block].item()
            scales = torch.stack([first[row // high, run] for row in range(rows)]).double()
            expected[:, place] += product * scales[:, None]
    close(out, expected)


@pytest.mark.parametrize("kinds", KINDS[:3], ids=str)
@pytest.mark.parametrize("depth", [1, 32, 64, 100, 150])
@pytest.mark.parametrize("groups", [None, [1, 1, 32], [0, 0, 32]])
@pytest.mark.parametrize("with_bias", [False, True])
def test_mx(kinds, depth, groups, with_bias) -> None:
    x1, x2 = codes(kinds[0], M, depth), codes(kinds[1], N, depth)
    pairs = -(-depth // 64)
    first, second = (
        torch.randint(120, 135, (size, pairs, 2), dtype=torch.uint8) for size in (M, N)
    )
    bias = torch.randn(N) * 1e3 if with_bias else None
    arguments = {"output_dtype": FP32, "group_sizes": groups, "bias": bias}
    numbers = {"scale_dtype": E8M0, "pertoken_scale_dtype": E8M0}
    out = matmul(x1, x2.t(), second.transpose(0, 1), pertoken_scale=first, **arguments, **numbers)
    left, right = values(x1, kinds[0]), values(x2, kinds[1])
    expected = torch.zeros(M, N, dtype=torch.float64)
    for run in range(-(-depth // 32)):
        part = slice(run * 32, (run + 1) * 32)
        scales = [torch.exp2(s[:, run // 2, run % 2].double() - 127) for s in (first, second)]
        expected += left[:, part] @ right[:, part].T * scales[0][:, None] * scales[1]
    close(out, expected if bias is None else expected + bias.double())
    named = [s.view(torch.float8_e8m0fnu) for s in (first, second)]
    again = matmul(x1, x2.t(), named[1].transpose(0, 1), pertoken_scale=named[0], **arguments)
    assert torch.equal(out, again)


def test_the_three_products_of_a_layer_in_mx() -> None:
    """As programs call them: the transposed operand comes from the other axis's quantization."""
    x, w, g = (
        torch.randn(70, 40).double(),
        torch.randn(90, 40).double(),
        torch.randn(70, 90).double(),
    )
    rows = {name: mx_quant(t, dst_type=292, axis=-1) for name, t in (("x", x), ("w", w), ("g", g))}
    columns = {
        name: mx_quant(t, dst_type=292, axis=-2) for name, t in (("x", x), ("w", w), ("g", g))
    }
    kinds = {"scale_dtype": E8M0, "pertoken_scale_dtype": E8M0, "output_dtype": FP32}
    kinds["group_sizes"] = [1, 1, 32]
    y = matmul(
        rows["x"][0], rows["w"][0].t(), rows["w"][1].transpose(0, 1),
        pertoken_scale=rows["x"][1], **kinds,
    )  # fmt: skip
    dx = matmul(
        rows["g"][0], columns["w"][0], columns["w"][1], pertoken_scale=rows["g"][1], **kinds
    )
    dw = matmul(
        columns["g"][0].t(), columns["x"][0], columns["x"][1],
        pertoken_scale=columns["g"][1].transpose(0, 1), **kinds,
    )  # fmt: skip
    for found, exact in ((y, x @ w.T), (dx, g @ w), (dw, g.T @ x)):
        assert (found.double() - exact).norm() / exact.norm() < 0.06


def test_blocks_as_programs_make_them() -> None:
    x, w = torch.randn(130, 300).double(), torch.randn(200, 300).double()
    a, a_scale = block_quant(x, dst_type=292)
    b, b_scale = block_quant(w, dst_type=292, row_block_size=128)
    out = matmul(
        a, b.t(), b_scale.float().t(), pertoken_scale=a_scale.float(), output_dtype=FP32,
        group_sizes=[1, 128, 128],
    )  # fmt: skip
    assert (out.double() - x @ w.T).norm() / (x @ w.T).norm() < 0.05


F8 = torch.float8_e4m3fn
BLOCK = {"pertoken_scale": torch.ones(3, 1), "scale": torch.ones(1, 1)}
MX = {
    "pertoken_scale": torch.zeros(3, 1, 2, dtype=torch.uint8), "pertoken_scale_dtype": E8M0,
    "scale": torch.zeros(1, 4, 2, dtype=torch.uint8), "scale_dtype": E8M0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output_dtype": None}, ValueError, "output_dtype"),
        ({"output_dtype": 1}, ValueError, "output_dtype"),
        ({"x2": torch.zeros(8, 4, dtype=torch.int8)}, TypeError, "float8_e4m3fn and torch.int8"),
        ({"x2": torch.zeros(8, 4, dtype=torch.uint8), "x2_dtype": HIFLOAT8}, TypeError, "hifloat8"),
        ({"x1_dtype": HIFLOAT8}, ValueError, "x1_dtype"),
        ({"x2": torch.zeros(7, 4).to(F8)}, ValueError, "@"),
        ({"x2": torch.zeros(16, 8).to(F8)[::2, ::2]}, ValueError, "contiguous"),
        ({"x1": torch.zeros(0, 8).to(F8)}, ValueError, "none of 0"),
        ({"scale": torch.ones(3)}, ValueError, "scale"),
        ({"scale": torch.ones(4).bfloat16()}, TypeError, "scale"),
        ({"pertoken_scale": torch.ones(2)}, ValueError, "pertoken_scale"),
        ({"pertoken_scale": torch.ones(3).half()}, TypeError, "pertoken_scale"),
        ({"pertoken_scale": None, "scale": torch.ones(4).half()}, TypeError, "scale"),
        ({"offset": torch.ones(4)}, ValueError, "offset"),
        ({"bias": torch.ones(3)}, ValueError, "bias"),
        ({"bias": torch.ones(4).half()}, TypeError, "bias"),
        ({"group_sizes": [1, 1, 32]}, ValueError, "group_sizes"),
        ({"y_scale": torch.ones(4)}, NotImplementedError, "y_scale"),
        ({**BLOCK, "bias": torch.ones(4)}, ValueError, "bias"),
        ({**BLOCK, "group_sizes": [1, 1, 32]}, ValueError, "group_sizes"),
        ({**BLOCK, "scale": torch.ones(2, 1)}, ValueError, "scale"),
        ({**BLOCK, "scale": torch.ones(1, 1).half()}, TypeError, "scale"),
        ({**MX, "scale_dtype": None}, ValueError, "E8M0"),
        ({**MX, "scale": torch.zeros(2, 4, 2, dtype=torch.uint8)}, ValueError, "scale"),
        ({**MX, "group_sizes": [1, 128, 128]}, ValueError, "group_sizes"),
        ({**MX, "scale_dtype": 292}, NotImplementedError, "scale_dtype"),
        ({"scale_dtype": E8M0}, NotImplementedError, "scale_dtype"),
    ],
)
def test_what_no_page_states_is_refused(arguments, error, message) -> None:
    base = {
        "x1": torch.zeros(3, 8).to(F8), "x2": torch.zeros(8, 4).to(F8), "scale": torch.ones(4),
        "pertoken_scale": torch.ones(3), "output_dtype": FP32,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        matmul(**{**base, **arguments})


def test_operands_and_their_scales_are_transposed_together() -> None:
    x1, x2 = codes(E4M3, 130, 300), codes(E4M3, 257, 300).t()
    scales = {"pertoken_scale": torch.ones(130, 3), "output_dtype": FP32}
    with pytest.raises(ValueError, match="transpose both"):
        matmul(x1, x2, torch.ones(3, 3), **scales)
    matmul(x1, x2, torch.ones(3, 3).t(), **scales)
    mx = {"pertoken_scale_dtype": E8M0, "scale_dtype": E8M0, "output_dtype": FP32}
    first = torch.full((130, 5, 2), 127, dtype=torch.uint8)
    second = torch.full((5, 257, 2), 127, dtype=torch.uint8)
    with pytest.raises(ValueError, match="transpose both"):
        matmul(x1, x2, second, pertoken_scale=first, **mx)


def test_hifloat8_has_no_mx_scales() -> None:
    x1, x2 = codes(HIF8, 3, 8), codes(HIF8, 8, 4)
    with pytest.raises(ValueError, match="float8_e4m3fn or float8_e5m2"):
        matmul(x1, x2, output_dtype=FP32, **MX, **dtypes(HIF8))
