"""Quantizing into 8-bit floats as `torch.ops.npu` does, against loops over single values."""

import math
from itertools import product

import pytest
import torch

from accel_kernels.fp8 import E4M3, E5M2, HIF8, Scaling, decode, quantize
from accel_kernels.vendor.npu import REFERENCES

E4M3_, E5M2_, HIF8_, E8M0_ = 292, 291, 290, 293
FORMATS = {E4M3_: E4M3, E5M2_: E5M2, HIF8_: HIF8}
LARGEST = {E4M3_: 448.0, E5M2_: 57344.0, HIF8_: 32768.0}
dynamic_quant = REFERENCES["npu_dynamic_quant"]
block_quant = REFERENCES["npu_dynamic_block_quant"]
mx_quant = REFERENCES["npu_dynamic_mx_quant"]
dual_quant = REFERENCES["npu_dynamic_mx_quant_with_dual_axis"]
cast = REFERENCES["npu_dtype_cast"]


def table(number):
    """The finite values from 0 up, ascending, with their codes."""
    codes = torch.arange(128, dtype=torch.uint8)
    values = decode(codes, FORMATS[number], torch.float64).tolist()
    return sorted((v, c) for c, v in enumerate(values) if math.isfinite(v))


def nearest(value, number):
    """The value of the format that is nearest: a tie to the even code, of HiFloat8 outwards."""
    size, best = abs(value), None
    for candidate, code in table(number):
        distance = abs(candidate - size)
        tie = number == HIF8_ or code % 2 == 0
        if best is None or distance < best[0] or (distance == best[0] and tie):
            best = distance, candidate
    return math.copysign(best[1], value)


def values_of(tensor, number):
    return decode(tensor.view(torch.uint8), FORMATS[number], torch.float64)


def inputs(*shape, dtype=torch.float64):
    x = torch.randn(*shape, dtype=torch.float64)
    return (x * torch.exp2(torch.randint(-9, 4, shape).double())).to(dtype)


# --- rows, columns, all ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", FORMATS)
@pytest.mark.parametrize("mode", ["pertoken", "perchannel", "pertensor"])
def test_dynamic_quant(number, mode) -> None:
    x = inputs(3, 5)
    y, scale = dynamic_quant(x, dst_type=number, quant_mode=mode)
    assert y.dtype == (FORMATS[number].dtype or torch.uint8)
    assert scale.shape == {"pertoken": (3,), "perchannel": (5,), "pertensor": (1,)}[mode]
    for i, j in product(range(3), range(5)):
        group = {"pertoken": x[i], "perchannel": x[:, j], "pertensor": x}[mode]
        wanted = group.abs().max().item() / LARGEST[number]
        at = {"pertoken": i, "perchannel": j, "pertensor": 0}[mode]
        assert scale[at].item() == wanted
        assert values_of(y, number)[i, j].item() == nearest(x[i, j].item() / wanted, number)


@pytest.mark.parametrize("most", [15.0, 224.0])
def test_hifloat8_is_scaled_to_what_is_asked(most) -> None:
    x = inputs(4, 6)
    y, scale = dynamic_quant(x, dst_type=HIF8_, dst_type_max=most)
    assert torch.equal(scale, x.abs().amax(-1) / most)
    assert values_of(y, HIF8_).abs().max().item() == most
    with pytest.raises(ValueError, match="dst_type_max"):
        dynamic_quant(x, dst_type=E4M3_, dst_type_max=most)
    with pytest.raises(ValueError, match="dst_type_max"):
        dynamic_quant(x, dst_type=HIF8_, dst_type_max=40000.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_precision_computes_in_float32(dtype) -> None:
    x = inputs(2, 3, 7, dtype=dtype)
    y, scale = dynamic_quant(x, dst_type=E4M3_)
    wide, wanted = dynamic_quant(x.float(), dst_type=E4M3_)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, wanted)
    assert torch.equal(y.view(torch.uint8), wide.view(torch.uint8))


def test_smooth_scales_of_columns_belong_to_rows() -> None:
    x, smooth = inputs(4, 6), torch.rand(4, dtype=torch.float64) + 0.5
    y, scale = dynamic_quant(x, dst_type=E4M3_, quant_mode="perchannel", smooth_scales=smooth)
    wanted, expected = dynamic_quant(x * smooth[:, None], dst_type=E4M3_, quant_mode="perchannel")
    assert torch.equal(scale, expected)
    assert torch.equal(y.view(torch.uint8), wanted.view(torch.uint8))
    with pytest.raises(ValueError, match="group_index"):
        dynamic_quant(
            x, quant_mode="pertensor", smooth_scales=smooth, group_index=torch.tensor([4])
        )


def test_zeros_have_scale_zero() -> None:
    x = torch.zeros(2, 3)
    x[1] = 1.0
    y, scale = dynamic_quant(x, dst_type=E4M3_)
    assert scale.tolist() == [0.0, torch.tensor(1 / 448).item()]
    assert y.float().tolist() == [[0.0] * 3, [448.0] * 3]
    assert dynamic_quant(torch.zeros(0, 4), dst_type=E4M3_, quant_mode="pertensor")[1].shape == (1,)
    assert dynamic_quant(torch.zeros(0, 4), dst_type=E4M3_, quant_mode="perchannel")[1].shape == (
        4,
    )


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, *FORMATS])
@pytest.mark.parametrize("sizes", [(1, 128), (128, 128), (256, 64)])
@pytest.mark.parametrize("shape", [(3, 5), (130, 200), (2, 129, 65)], ids=str)
def test_block_quant(number, sizes, shape) -> None:
    x = inputs(*shape)
    arguments = {"dst_type": number, "round_mode": "round" if number == HIF8_ else "rint"}
    arguments |= {"row_block_size": sizes[0], "col_block_size": sizes[1]}
    y, scale = block_quant(x, **arguments)
    rows, columns = shape[-2:]
    blocks = -(-rows // sizes[0]), -(-columns // sizes[1])
    assert y.shape == x.shape
    assert scale.shape == (*shape[:-2], *blocks)
    for matrix, codes, scales in zip(
        x.view(-1, rows, columns), y.view(-1, rows, columns), scale.view(-1, *blocks), strict=True
    ):
        for i, j in product(*map(range, blocks)):
            place = slice(i * sizes[0], (i + 1) * sizes[0]), slice(j * sizes[1], (j + 1) * sizes[1])
            block = matrix[place]
            wanted = block.abs().max() / LARGEST.get(number, 127.0)
            assert scales[i, j] == wanted
            found = codes[place]
            if number == 1:
                assert torch.equal(found, (block / wanted).round().to(torch.int8))
                continue
            # The nearest of a table in which a tie is decided by hand above: here by distance.
            values = values_of(found.contiguous(), number)
            best = torch.tensor([v for v, _ in table(number)], dtype=torch.float64)
            distance = ((block / wanted).abs()[..., None] - best).abs().amin(-1)
            assert torch.equal(((block / wanted) - values).abs(), distance)


def test_min_scale_bounds_the_scale() -> None:
    x = torch.tensor([[1000.0, 1.0], [0.5, 0.25]])
    y, scale = block_quant(x, dst_type=E4M3_, min_scale=2.0)
    assert scale.tolist() == [[0.5], [torch.tensor(0.5 / 448).item()]]
    assert y.float()[0].tolist() == [448.0, 2.0], "what is beyond the format saturates"


@pytest.mark.parametrize("number", [E4M3_, E5M2_])
def test_blocks_are_those_of_the_codec(number) -> None:
    """The same blocks and nearly the same scales: the codec multiplies by a rounded factor."""
    x = inputs(130, 300, dtype=torch.bfloat16)
    for granularity, sizes in (("1x128", (1, 128)), ("128x128", (128, 128))):
        y, scale = block_quant(x, dst_type=number, row_block_size=sizes[0], col_block_size=sizes[1])
        ours = quantize(x, Scaling(FORMATS[number], granularity))
        torch.testing.assert_close(scale, ours.scales, rtol=2e-7, atol=0)
        equal = (y.view(torch.uint8) == ours.codes).float().mean()
        assert equal > 0.99, "they part at ties, which a grid of bfloat16 often meets"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"round_mode": "round"}, NotImplementedError),
        ({"dst_type": HIF8_}, NotImplementedError),
        ({"dst_type": HIF8_, "round_mode": "hybrid"}, NotImplementedError),
        ({"dst_type": torch.float16}, NotImplementedError),
        ({"row_block_size": 64}, ValueError),
        ({"col_block_size": 1}, ValueError),
        ({"dst_type_max": 15.0}, ValueError),
        ({"dst_type": HIF8_, "round_mode": "round", "dst_type_max": 16.0}, ValueError),
        ({"min_scale": -1.0}, ValueError),
        ({"x": torch.zeros(0, 3)}, ValueError),
        ({"x": torch.zeros(3)}, ValueError),
        ({"x": torch.full((2, 2), torch.nan)}, ValueError),
        ({"x": torch.full((2, 2), torch.inf)}, ValueError),
        ({"x": torch.zeros(2, 2).int()}, TypeError),
    ],
)
def test_block_quant_refuses(arguments, error) -> None:
    with pytest.raises(error, match="npu_dynamic_block_quant"):
        block_quant(**{"x": torch.ones(2, 2), **arguments})


# --- MX -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [E4M3_, E5M2_])
@pytest.mark.parametrize("alg", [0, 1])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("shape", "axis"), [((3, 70), -1), ((70, 3), 0), ((2, 65, 3), -2)])
def test_mx_quant(number, alg, size, shape, axis) -> None:
    x = inputs(*shape, dtype=torch.float32)
    y, scale = mx_quant(x, axis=axis, dst_type=number, scale_alg=alg, block_size=size)
    length = x.shape[axis]
    pairs = -(-length // (2 * size))
    wanted = list(shape)
    wanted[axis] = pairs
    assert list(scale.shape) == [*wanted, 2]
    assert scale.dtype == torch.uint8
    lines = x.movedim(axis, -1).reshape(-1, length)
    codes = y.movedim(axis, -1).reshape(-1, length)
    at = axis - 1 if axis < 0 else axis
    exponents = scale.movedim(at, -2).reshape(-1, 2 * pairs)
    top = {E4M3_: 8, E5M2_: 15}[number]
    for line, found, run in product(range(len(lines)), [None], range(2 * pairs)):
        del found
        part = lines[line, run * size : (run + 1) * size]
        code = exponents[line, run].item()
        if not len(part):
            assert code == 0
            continue
        largest = part.abs().max().item()
        exponent = math.floor(math.log2(largest)) - top
        if alg == 1:
            exponent = math.ceil(math.log2(largest / LARGEST[number]))
        assert code - 127 == exponent
        values = values_of(codes[line, run * size : (run + 1) * size].contiguous(), number)
        for value, given in zip(values.tolist(), part.tolist(), strict=True):
            assert value == nearest(given / 2.0**exponent, number)


def test_the_floor_rule_saturates_and_the_ceiling_rule_does_not() -> None:
    x = torch.tensor([[1.9, 1.0, 0.5]])
    y, scale = mx_quant(x, dst_type=E4M3_)
    assert scale[0, 0, 0].item() - 127 == -8
    assert y.float().tolist() == [[448.0, 256.0, 128.0]], "486.4 is beyond 448"
    y, scale = mx_quant(x, dst_type=E4M3_, scale_alg=1)
    assert scale[0, 0, 0].item() - 127 == -7
    assert y.float().tolist() == [[240.0, 128.0, 64.0]]


def test_the_ceiling_rule_is_the_codecs_power_of_two() -> None:
    """Of what the operator takes: float16 and bfloat16, every exponent."""
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(0, 0x7C00 if dtype == torch.float16 else 0x7F80, dtype=torch.int32)
        x = bits.to(torch.int16).view(dtype)
        x = x[(x >= 1e-12) & (x < 1e30)]
        x = torch.cat([x[torch.randperm(len(x))], x.flip(0)])[: len(x) // 32 * 32].view(-1, 32)
        for number in (E4M3_, E5M2_):
            y, scale = mx_quant(x, dst_type=number, scale_alg=1)
            ours = quantize(x, Scaling(FORMATS[number], "1x32", "power_of_two"))
            assert torch.equal(torch.exp2(scale[:, 0, :1].float() - 127), ours.scales)
            assert torch.equal(y.view(torch.uint8), ours.codes)


def test_a_run_of_zeros_has_the_least_scale() -> None:
    for alg in (0, 1):
        y, scale = mx_quant(torch.zeros(2, 40), dst_type=E5M2_, scale_alg=alg)
        assert not scale.any()
        assert not y.view(torch.uint8).any()


def test_subnormal_and_huge_values() -> None:
    x = torch.tensor([[2.0**-149], [2.0**-120], [2.0**-118], [3e38]])
    for alg in (0, 1):
        _, scale = mx_quant(x, dst_type=E4M3_, scale_alg=alg)
        assert scale[:, 0, 0].tolist() == ([0, 0, 1, 246] if alg == 0 else [0, 0, 1, 247])


def test_a_bound_for_the_largest_magnitude() -> None:
    x = torch.full((1, 4), 2.0**-20)
    _, scale = mx_quant(x, dst_type=E4M3_, scale_alg=1, max_low_bound=448.0)
    assert scale[0, 0, 0].item() == 127


def test_both_axes_at_once() -> None:
    x = inputs(2, 70, 40, dtype=torch.bfloat16)
    found = dual_quant(x, dst_type=E4M3_, scale_alg=1)
    along, across = (mx_quant(x, axis=axis, dst_type=E4M3_, scale_alg=1) for axis in (-1, -2))
    for mine, theirs in zip(found, (*along, *across), strict=True):
        assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
    assert found[3].shape == (2, 2, 40, 2)
    assert dual_quant(x, dst_type=E4M3_, dst_type_max=None)[0].shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dst_type": 296}, NotImplementedError),
        ({"dst_type": HIF8_}, NotImplementedError),
        ({"dst_type": 1}, NotImplementedError),
        ({"round_mode": "floor"}, NotImplementedError),
        ({"dst_type_max": 6.0}, NotImplementedError),
        ({"block_size": 48}, ValueError),
        ({"block_size": 2048}, ValueError),
        ({"axis": 2}, ValueError),
        ({"scale_alg": 2}, ValueError),
        ({"max_low_bound": 1.0}, ValueError),
        ({"input": torch.full((2, 2), torch.nan)}, ValueError),
        ({"input": torch.zeros(2, 2).int()}, TypeError),
    ],
)
def test_mx_quant_refuses(arguments, error) -> None:
    with pytest.raises(error, match="npu_dynamic_mx_quant"):
        mx_quant(**{"input": torch.ones(2, 2), "dst_type": E4M3_, **arguments})
    with pytest.raises(ValueError, match="dual_axis"):
        dual_quant(torch.ones(3), dst_type=E4M3_)


# --- HiFloat8 -------------------------------------------------------------------------------------


def test_casts_to_hifloat8_and_back() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, 1.0625, -1.0625, 18.0, 2.0**-23, 2.0**-24, 40959.0, 1e-30])
    codes = cast(x, HIF8_)
    assert codes.dtype == torch.uint8
    back = cast(codes, 6, HIF8_)
    wanted = [0.0, 0.0, 1.0, 1.125, -1.125, 20.0, 2.0**-22, 0.0, 32768.0, 0.0]
    assert back.tolist() == wanted, "a tie is rounded away from zero"
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(cast(back.to(dtype), HIF8_), codes)
        assert cast(codes, dtype, HIF8_).dtype == dtype
    assert torch.equal(cast(codes, HIF8_, HIF8_), codes)
    assert torch.equal(cast(torch.arange(-3, 4), HIF8_), cast(torch.arange(-3.0, 4.0), HIF8_))


@pytest.mark.parametrize("value", [40960.0, -1e6, math.inf, math.nan])
def test_what_hifloat8_cannot_hold_is_refused(value) -> None:
    with pytest.raises(NotImplementedError, match="HiFloat8"):
        cast(torch.tensor([1.0, value]), HIF8_)


def test_only_bytes_are_read_as_hifloat8() -> None:
    with pytest.raises(ValueError, match="input_dtype"):
        cast(torch.zeros(2), 6, HIF8_)
    assert cast(torch.zeros(2, dtype=torch.uint8), 6).tolist() == [0.0, 0.0]
