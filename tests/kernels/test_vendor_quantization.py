"""Quantized operators of `torch.ops.npu`: integers value by value, packed formats bit for bit."""

import struct

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES

INT4 = torch.quint4x2
QUINT4X2 = 16  # torch's number of it


def numbers(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def packed(values):
    """Eight 4-bit integers an int32, the first in the lowest bits, by Python's own integers."""
    words = []
    for row in values.reshape(-1, 8).tolist():
        word = sum((int(value) & 0xF) << (4 * place) for place, value in enumerate(row))
        words.append(struct.unpack("<i", struct.pack("<I", word))[0])
    return torch.tensor(words, dtype=torch.int32).view(*values.shape[:-1], -1)


def bytes_(*shape, low=-128, high=128):
    return torch.randint(low, high, shape, dtype=torch.int8)


def nibbles(*shape):
    return bytes_(*shape, low=-8, high=8)


def half_to_even(value):
    return round(float(value))  # Python rounds so


# --- packing ----------------------------------------------------------------------------------


def test_weights_are_packed_bit_for_bit() -> None:
    pack = REFERENCES["npu_convert_weight_to_int4pack"]
    known = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [-8, -7, -6, -5, -4, -3, -2, -1]])
    words = pack(known.int())
    assert words.tolist() == [[0x76543210], [struct.unpack("<i", struct.pack("<I", 0xFEDCBA98))[0]]]
    assert words.dtype == torch.int32
    weight = nibbles(6, 24).int()
    assert torch.equal(pack(weight), packed(weight))
    assert torch.equal(pack(weight.view(2, 3, 24)), packed(weight).view(2, 3, 3))


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (torch.zeros(2, 8), TypeError),
        (torch.zeros(2, 7, dtype=torch.int32), ValueError),
        (torch.zeros(8, dtype=torch.int32), ValueError),
        (torch.zeros(0, 8, dtype=torch.int32), ValueError),
        (torch.full((2, 8), 8, dtype=torch.int32), ValueError),
        (torch.full((2, 8), -9, dtype=torch.int32), ValueError),
        (torch.zeros(16, 8, dtype=torch.int32)[::2].t(), ValueError),
    ],
)
def test_weights_that_cannot_be_packed_are_refused(weight, error) -> None:
    with pytest.raises(error, match="npu_convert_weight_to_int4pack"):
        REFERENCES["npu_convert_weight_to_int4pack"](weight)


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


@pytest.mark.parametrize("value", [1.0, 0.1, -3.7, 1e-20, 6.5e4, 1.00048828125, 1.00146484375])
@pytest.mark.parametrize("offset", [None, 3.0, -2.5, 1000.0, -1000.0])
@pytest.mark.parametrize("mode", [0, 1])
def test_a_scale_and_an_offset_share_64_bits(value, offset, mode) -> None:
    word = bits(value)
    if mode == 1:  # to the nearest of 19 bits, a tie to the even one
        low = word & 0x1FFF
        word &= ~0x1FFF
        if low > 0x1000 or (low == 0x1000 and word & 0x2000):
            word += 0x2000
    expected = (word & 0xFFFFE000) | (1 << 46)
    given = None if offset is None else torch.tensor([offset])
    if offset is not None:
        whole = max(min(half_to_even(offset), 255), -256)
        expected = (expected & 0x4000FFFFFFFF) | ((whole & 0x1FF) << 37)
    out = REFERENCES["npu_trans_quant_param"](torch.tensor([value]), given, mode)
    assert out.dtype == torch.int64
    assert out.tolist() == [expected]


def test_shapes_of_scales_and_offsets() -> None:
    convert = REFERENCES["npu_trans_quant_param"]
    assert convert(torch.ones(3), torch.ones(1)).shape == (3,)
    assert convert(torch.ones(1), torch.ones(3)).shape == (3,)
    assert convert(torch.ones(1, 3), torch.ones(1, 3)).shape == (1, 3)
    with pytest.raises(ValueError, match="offset"):
        convert(torch.ones(3), torch.ones(2))
    with pytest.raises(TypeError, match="float64"):
        convert(torch.ones(3).double())
    with pytest.raises(ValueError, match="round_mode"):
        convert(torch.ones(3), None, 2)


# --- dynamic quantization ---------------------------------------------------------------------


def rows_quantized(x, largest):
    values, scales = [], []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        scale = max(abs(v) for v in row) / largest
        scales.append(scale)
        values.append([half_to_even(v / scale) if scale else 0 for v in row])
    shaped = torch.tensor(values, dtype=torch.int8).view(x.shape)
    return shaped, torch.tensor(scales, dtype=x.dtype).view(x.shape[:-1])


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 16), (1, 1)])
def test_each_row_is_quantized_by_its_own_scale(shape) -> None:
    x = 10 * numbers(*shape)
    out, scale = REFERENCES["npu_dynamic_quant"](x)
    expected, scales = rows_quantized(x, 127)
    assert torch.equal(out, expected)
    close(scale, scales)
    assert out.dtype == torch.int8
    assert (out.abs().amax(-1) == 127).all()


@pytest.mark.parametrize("dst_type", [INT4, QUINT4X2])
def test_4_bits_are_packed_with_7_as_the_largest(dst_type) -> None:
    x = numbers(3, 2, 16)
    out, scale = REFERENCES["npu_dynamic_quant"](x, dst_type=dst_type)
    expected, scales = rows_quantized(x, 7)
    assert torch.equal(out, packed(expected))
    close(scale, scales)
    assert out.shape == (3, 2, 2)


def test_smooth_scales_come_first_and_by_group() -> None:
    x, smooth = numbers(2, 3, 8), torch.rand(8, dtype=torch.float64) + 0.5
    out, scale = REFERENCES["npu_dynamic_quant"](x, smooth_scales=smooth)
    expected, scales = rows_quantized(x * smooth, 127)
    assert torch.equal(out, expected)
    close(scale, scales)
    groups, index = torch.rand(3, 8, dtype=torch.float64) + 0.5, torch.tensor([2, 2, 6]).int()
    out, scale = REFERENCES["npu_dynamic_quant"](x, smooth_scales=groups, group_index=index)
    spread = groups[[0, 0, 2, 2, 2, 2]].view(2, 3, 8)
    expected, scales = rows_quantized(x * spread, 127)
    assert torch.equal(out, expected)
    close(scale, scales)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_give_float32_scales_and_near_values(dtype) -> None:
    x = (6e4 * torch.rand(4, 8) - 3e4).to(dtype)
    out, scale = REFERENCES["npu_dynamic_quant"](x)
    assert scale.dtype == torch.float32
    error = (out.float() * scale.unsqueeze(-1) - x.float()).abs()
    assert (error <= 0.5001 * scale.unsqueeze(-1)).all()


def test_rows_of_zeros_and_no_rows() -> None:
    out, scale = REFERENCES["npu_dynamic_quant"](torch.zeros(2, 8))
    assert not out.any()
    assert not scale.any()
    out, scale = REFERENCES["npu_dynamic_quant"](torch.zeros(0, 8))
    assert out.shape == (0, 8)
    assert scale.shape == (0,)


@pytest.mark.parametrize(
    ("x", "arguments", "error"),
    [
        (torch.ones(8), {}, ValueError),
        (torch.ones(2, 7), {"dst_type": INT4}, ValueError),
        (torch.ones(2, 8), {"dst_type": torch.float16}, NotImplementedError),
        (torch.ones(2, 8), {"quant_mode": "pergroup"}, ValueError),
        (torch.ones(2, 8), {"dst_type_max": 15.0}, ValueError),
        (torch.ones(2, 8), {"smooth_scales": torch.ones(2, 8)}, ValueError),
        (torch.ones(2, 8), {"group_index": torch.tensor([2])}, ValueError),
        (
            torch.ones(2, 8),
            {"smooth_scales": torch.ones(2, 8), "group_index": torch.tensor([2, 1])},
            ValueError,
        ),
        (
            torch.ones(2, 8),
            {"smooth_scales": torch.ones(2, 8), "group_index": torch.tensor([1, 3])},
            ValueError,
        ),
        (torch.full((2, 8), torch.nan), {}, ValueError),
        (torch.full((2, 8), torch.inf), {}, ValueError),
        (torch.ones(2, 8, dtype=torch.int32), {}, TypeError),
    ],
)
def test_dynamic_quant_refuses(x, arguments, error) -> None:
    with pytest.raises(error, match="npu_dynamic_quant"):
        REFERENCES["npu_dynamic_quant"](x, **arguments)


# --- static quantization ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kind", "low", "high"),
    [
        (torch.qint8, torch.int8, -128, 127),
        (12, torch.int8, -128, 127),
        (torch.quint8, torch.uint8, 0, 255),
        (13, torch.uint8, 0, 255),
        (torch.int32, torch.int32, -(2**31), 2**31 - 1),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_quantize_divides_adds_rounds_and_saturates(dtype, kind, low, high, axis) -> None:
    x = 100 * numbers(3, 4, 5)
    size = x.shape[axis]
    scales, points = torch.rand(size, dtype=torch.float64) + 0.2, torch.randint(-5, 5, (size,))
    out = REFERENCES["npu_quantize"](x, scales, points.int(), dtype, axis)
    shape = [1, 1, 1]
    shape[axis] = size
    exact = x / scales.view(shape) + points.view(shape)
    expected = [max(low, min(high, half_to_even(v))) for v in exact.flatten().tolist()]
    assert out.dtype == kind
    assert out.flatten().tolist() == expected
    if kind == torch.int8:
        assert {low, high} <= set(expected)


@pytest.mark.parametrize(("axis", "position"), [(-2, 1), (1, 2), (-1, 2), (0, 2)])
def test_quantize_multiplies_without_div_mode(axis, position) -> None:
    x = numbers(2, 3, 8)
    scales = torch.rand(x.shape[position], dtype=torch.float64) + 0.5
    shape = [1, 1, 1]
    shape[position] = -1
    exact = x * scales.view(shape)
    for given in (scales, scales.view(shape)):
        out = REFERENCES["npu_quantize"](x, given, None, torch.qint8, axis, False)
        assert out.flatten().tolist() == [half_to_even(v) for v in exact.flatten().tolist()]
    small = REFERENCES["npu_quantize"](8 * x, scales, None, INT4, axis, False)
    values = (8 * exact).round().clamp(-8, 7)
    assert torch.equal(small, packed(values))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((torch.ones(2, 8), torch.ones(3), None, 12), ValueError),
        ((torch.ones(2, 8), torch.ones(8), None, torch.float16), ValueError),
        ((torch.ones(2, 8), torch.ones(8), None, INT4), ValueError),
        ((torch.ones(2, 8), torch.ones(8), None, torch.quint8, -1, False), ValueError),
        ((torch.ones(2, 7), torch.ones(7), None, INT4, -1, False), ValueError),
        ((torch.ones(2, 8), torch.ones(8), None, 12, 2), ValueError),
        ((torch.ones(2, 8), torch.ones(8), None, 12, -3, False), ValueError),
        ((torch.ones(2, 8).int(), torch.ones(8), None, 12), TypeError),
    ],
)
def test_quantize_refuses(arguments, error) -> None:
    with pytest.raises(error, match="npu_quantize"):
        REFERENCES["npu_quantize"](*arguments)


def test_nan_is_not_quantized() -> None:
    with pytest.raises(ValueError, match="NaN"):
        REFERENCES["npu_quantize"](torch.tensor([[torch.nan]]), torch.ones(1), None, 12)


@pytest.mark.parametrize("size", ["one", "all"])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("four_bits", [True, False])
def test_anti_quant_adds_the_offset_before_it_scales(size, shifted, four_bits) -> None:
    values = nibbles(3, 16) if four_bits else bytes_(3, 16)
    count = 1 if size == "one" else 16
    scale = torch.rand(count) + 0.5
    offset = torch.randn(count) if shifted else None
    exact = (values.double() + (offset.double() if shifted else 0)) * scale.double()
    x = packed(values) if four_bits else values
    out = REFERENCES["npu_anti_quant"](x, scale, offset=offset)
    assert out.dtype == torch.float16
    close(out.double(), exact, 2e-3)
    precise = REFERENCES["npu_anti_quant"](x, scale, offset=offset, dst_dtype=torch.float64)
    close(precise, exact)
    source = INT4 if four_bits else torch.int8
    again = REFERENCES["npu_anti_quant"](x, scale, offset=offset, src_dtype=source)
    assert torch.equal(again, out)


@pytest.mark.parametrize(
    ("x", "arguments", "error"),
    [
        (torch.zeros(2, 8), {}, TypeError),
        (bytes_(2, 8), {"scale": torch.ones(7)}, ValueError),
        (bytes_(2, 8), {"scale": torch.ones(1).int()}, TypeError),
        (bytes_(2, 8), {"offset": torch.ones(8)}, ValueError),
        (bytes_(2, 8), {"dst_dtype": torch.int8}, ValueError),
        (bytes_(2, 8), {"src_dtype": INT4}, ValueError),
    ],
)
def test_anti_quant_refuses(x, arguments, error) -> None:
    with pytest.raises(error, match="npu_anti_quant"):
        REFERENCES["npu_anti_quant"](x, **{"scale": torch.ones(1), **arguments})


# --- products ---------------------------------------------------------------------------------


def product(x1, x2):
    """The exact integer product, by integers."""
    return (x1.long().unsqueeze(-1) * x2.long().unsqueeze(-3)).sum(-2)


def cut(scale):
    """The 19 bits of float32 that the operator keeps of a scale."""
    words = [bits(v) & 0xFFFFE000 for v in scale.tolist()]
    floats = [struct.unpack("<f", struct.pack("<I", word))[0] for word in words]
    return torch.tensor(floats, dtype=torch.float64)


quant_matmul = REFERENCES["npu_quant_matmul"]


@pytest.mark.parametrize("shapes", [((3, 5), (5, 7)), ((2, 3, 5), (5, 7)), ((2, 3, 5), (2, 5, 7))])
@pytest.mark.parametrize("size", ["one", "all"])
@pytest.mark.parametrize("biased", [True, False])
def test_quant_matmul_to_int8(shapes, size, biased) -> None:
    x1, x2 = bytes_(*shapes[0]), bytes_(*shapes[1])
    count = 1 if size == "one" else 7
    scale, offset = 1e-3 * (torch.rand(count) + 0.5), 3 * torch.randn(count)
    bias = torch.randint(-5000, 5000, (7,), dtype=torch.int32) if biased else None
    exact = (product(x1, x2) + (bias if biased else 0)).double() * cut(scale)
    exact = exact + torch.tensor([half_to_even(v) for v in offset.tolist()])
    expected = [max(-128, min(127, half_to_even(v))) for v in exact.flatten().tolist()]
    out = quant_matmul(x1, x2, scale, offset=offset, bias=bias)
    assert out.dtype == torch.int8
    assert out.flatten().tolist() == expected
    param = REFERENCES["npu_trans_quant_param"](scale, offset)
    assert torch.equal(quant_matmul(x1, x2, param, bias=bias, output_dtype=1), out)


def test_quant_matmul_adds_an_integer_bias_before_the_scale() -> None:
    x1, x2 = bytes_(3, 5), bytes_(5, 4)
    bias, scale = torch.randint(-9, 9, (4,), dtype=torch.int32), torch.full((4,), 0.25)
    out = quant_matmul(x1, x2, scale, bias=bias, output_dtype=torch.float16)
    exact = (product(x1, x2) + bias).double() * 0.25
    assert torch.equal(out, exact.to(torch.float16))
    assert not torch.equal(out, (product(x1, x2) * 0.25 + bias).to(torch.float16))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias_dtype", [None, torch.int32, torch.bfloat16, torch.float32])
def test_quant_matmul_by_token_adds_a_float_bias_after_the_scales(target, bias_dtype) -> None:
    x1, x2 = bytes_(2, 3, 5), bytes_(5, 4)
    scale, tokens = 0.01 * (torch.rand(4) + 0.5), torch.rand(3) + 0.5
    bias = None if bias_dtype is None else (9 * torch.randn(4)).to(bias_dtype)
    exact = product(x1, x2).double()
    if bias_dtype == torch.int32:
        exact = exact + bias
    exact = exact * scale.double() * tokens.double()[:, None]
    if bias is not None and bias_dtype != torch.int32:
        exact = exact + bias.double()
    out = quant_matmul(x1, x2, scale, pertoken_scale=tokens, bias=bias, output_dtype=target)
    assert out.dtype == target
    assert torch.equal(out, exact.to(target))


def test_quant_matmul_keeps_all_bits_of_the_scale_for_bfloat16() -> None:
    x1, x2 = torch.full((1, 1), 64, dtype=torch.int8), torch.full((1, 1), 64, dtype=torch.int8)
    scale = torch.tensor([1.0 + 2**-11 + 2**-9])  # 2^-11 is below the 19 bits that are kept
    bf16 = quant_matmul(x1, x2, scale.repeat(1), output_dtype=torch.bfloat16)
    assert bf16.item() == (4096 * scale.double()).to(torch.bfloat16).item()
    half = quant_matmul(x1, x2, scale, output_dtype=torch.float16)
    assert half.item() == 4096 * (1 + 2**-9)


@pytest.mark.parametrize("transposed", [True, False])
def test_quant_matmul_of_4_bits(transposed) -> None:
    x1, x2 = nibbles(3, 16), nibbles(16, 24)
    words = packed(x2.t().contiguous()).t() if transposed else packed(x2)
    scale, bias = torch.full((24,), 0.5), torch.randint(-9, 9, (24,), dtype=torch.int32)
    out = quant_matmul(packed(x1), words, scale, bias=bias, output_dtype=torch.float16)
    assert torch.equal(out, ((product(x1, x2) + bias) * 0.5).to(torch.float16))


def test_quant_matmul_of_long_rows_is_exact() -> None:
    x1 = torch.full((1, 60000), -128, dtype=torch.int8)
    x2 = torch.full((60000, 1), -128, dtype=torch.int8)
    x2[0, 0] = -127
    bias = torch.tensor([-(60000 * 16384 - 128)], dtype=torch.int32)
    assert quant_matmul(x1, x2, torch.ones(1), bias=bias, output_dtype=5).item() == 0


I8 = (bytes_(3, 8), bytes_(8, 4))
ONES = torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x2": torch.zeros(8, 4)}, TypeError, "npu_quant_matmul"),
        ({"x2": bytes_(7, 4)}, ValueError, "npu_quant_matmul"),
        ({"scale": torch.ones(3)}, ValueError, "scale"),
        ({"scale": ONES.half()}, TypeError, "scale"),
        ({"scale": ONES.bfloat16()}, TypeError, "scale"),
        ({"offset": ONES, "output_dtype": torch.float16}, ValueError, "offset"),
        ({"offset": ONES.half()}, ValueError, "offset"),
        ({"pertoken_scale": torch.ones(3)}, ValueError, "pertoken_scale"),
        ({"pertoken_scale": ONES, "output_dtype": torch.float16}, ValueError, "pertoken_scale"),
        ({"bias": ONES}, TypeError, "bias"),
        ({"bias": torch.ones(3).int()}, ValueError, "bias"),
        ({"output_dtype": torch.float32}, ValueError, "output_dtype"),
        ({"output_dtype": torch.int32}, NotImplementedError, "output_dtype"),
        ({"x1_dtype": 2}, ValueError, "x1_dtype"),
        ({"y_scale": ONES}, NotImplementedError, "y_scale"),
        ({"group_sizes": [1, 1, 32]}, NotImplementedError, "group_sizes"),
    ],
)
def test_quant_matmul_refuses(arguments, error, message) -> None:
    base = {"x1": I8[0], "x2": I8[1], "scale": ONES}
    with pytest.raises(error, match=message):
        quant_matmul(**{**base, **arguments})


weight_matmul = REFERENCES["npu_weight_quant_batchmatmul"]


@pytest.mark.parametrize("per", ["tensor", "tensor2", "channel", "channel2", "group"])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("storage", ["int8", "int8-t", "int4", "int4-t"])
def test_weight_quant_matmul(per, shifted, storage) -> None:
    inner, columns = 80, 16
    x = numbers(3, inner)
    values = bytes_(inner, columns) if storage.startswith("int8") else nibbles(inner, columns)
    shape = {
        "tensor": (1,),
        "tensor2": (1, 1),
        "channel": (16,),
        "channel2": (1, 16),
        "group": (3, 16),
    }
    scale = torch.rand(shape[per], dtype=torch.float64) + 0.5
    offset = numbers(*shape[per]) if shifted else None
    weight = torch.zeros(inner, columns, dtype=torch.float64)
    for k in range(inner):
        row = k // 32 if per == "group" else 0

        def pick(tensor, row=row):
            return tensor[row] if tensor.ndim == 2 else tensor

        shift = pick(offset) if shifted else 0.0
        weight[k] = (values[k].double() + shift) * pick(scale)
    stored = values
    if storage == "int8-t":
        stored = values.t().contiguous().t()
    if storage == "int4":
        stored = packed(values)
    if storage == "int4-t":
        stored = packed(values.t().contiguous()).t()
    bias = numbers(columns)
    group = 32 if per == "group" else 0
    out = weight_matmul(x, stored, scale, offset, bias=bias, antiquant_group_size=group)
    close(out, x @ weight + bias, 1e-10)
    if shifted:
        late = values.double() * (scale if per != "group" else scale.repeat_interleave(32, 0)[:80])
        late = late + (offset if per != "group" else offset.repeat_interleave(32, 0)[:80])
        assert not torch.allclose(out, x @ late + bias, rtol=1e-3)


def test_a_weight_packed_by_the_operator_is_read_back() -> None:
    """The example of the page of `npu_convert_weight_to_int4pack`, both ways round."""
    weight, x = nibbles(64, 32).int(), numbers(8, 64)
    scale, offset = numbers(1, 32), numbers(1, 32)
    pack = REFERENCES["npu_convert_weight_to_int4pack"]
    straight = weight_matmul(x, pack(weight), scale, offset)
    turned = weight_matmul(x, pack(weight.t().contiguous()).t(), scale, offset)
    expected = x @ ((weight + offset) * scale)
    close(straight, expected, 1e-10)
    close(turned, expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weight_quant_matmul_of_halves(dtype) -> None:
    x, weight = numbers(3, 64).to(dtype), bytes_(64, 8)
    scale = (torch.rand(8) + 0.5).to(dtype)
    bias = numbers(8).to(torch.float16 if dtype == torch.float16 else torch.float32)
    out = weight_matmul(x, weight, scale, bias=bias)
    exact = x.double() @ (weight.double() * scale.double()) + bias.double()
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("as_int64", [True, False])
def test_weight_quant_matmul_quantizes_its_result(as_int64) -> None:
    x, weight = numbers(4, 32), bytes_(32, 8)
    scale = torch.rand(8, dtype=torch.float64)
    quant_scale, quant_offset = 0.05 * (torch.rand(1, 8) + 0.5), 5 * torch.randn(1, 8)
    shift = torch.tensor([half_to_even(v) for v in quant_offset[0].tolist()])
    exact = (x @ (weight.double() * scale)) * cut(quant_scale[0]) + shift
    expected = [max(-128, min(127, half_to_even(v))) for v in exact.flatten().tolist()]
    arguments = (quant_scale, quant_offset)
    if as_int64:
        arguments = (REFERENCES["npu_trans_quant_param"](quant_scale, quant_offset), None)
    out = weight_matmul(x, weight, scale, None, *arguments)
    assert out.dtype == torch.int8
    assert out.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": torch.zeros(64, 8)}, TypeError, "weight"),
        ({"weight": bytes_(63, 8)}, ValueError, "npu_weight_quant_batchmatmul"),
        ({"antiquant_scale": torch.ones(7)}, ValueError, "antiquant_scale"),
        ({"antiquant_scale": torch.ones(8).half()}, TypeError, "antiquant_scale"),
        ({"antiquant_scale": torch.ones(8).long()}, NotImplementedError, "antiquant_scale"),
        ({"antiquant_offset": torch.ones(1)}, ValueError, "antiquant_offset"),
        ({"antiquant_scale": torch.ones(2, 8)}, ValueError, "antiquant_scale"),
        ({"antiquant_group_size": 16}, ValueError, "antiquant_group_size"),
        ({"antiquant_group_size": 64}, ValueError, "antiquant_group_size"),
        ({"antiquant_group_size": 32}, ValueError, "antiquant_scale"),
        ({"quant_offset": torch.ones(8)}, ValueError, "quant_offset"),
        ({"quant_scale": torch.ones(8).half()}, TypeError, "scale"),
        ({"bias": torch.ones(8).half()}, TypeError, "bias"),
        ({"bias": torch.ones(7)}, ValueError, "bias"),
        ({"inner_precise": 2}, ValueError, "inner_precise"),
        ({"weight_dtype": 1}, NotImplementedError, "weight_dtype"),
        ({"x": torch.zeros(2, 3, 64)}, ValueError, "npu_weight_quant_batchmatmul"),
    ],
)
def test_weight_quant_matmul_refuses(arguments, error, message) -> None:
    base = {"x": torch.zeros(3, 64), "weight": bytes_(64, 8), "antiquant_scale": torch.ones(8)}
    with pytest.raises(error, match=message):
        weight_matmul(**{**base, **arguments})
