"""The eight-bit codec: all codes, all inputs of 16 bits, every boundary; against other software."""

import io
import math

import pytest
import torch
from torch import Tensor

from accel_kernels.fp8 import (
    E4M3,
    E5M2,
    HIF8,
    Scaling,
    codec,
    decode,
    encode,
    native,
    quantize,
)
from accel_kernels.fp8.bits import encode_bits, to_odd
from accel_kernels.fp8.values import value_of
from tests.kernels.fp8_cases import (
    ALL,
    BEYOND,
    CODES,
    around,
    every_word,
    midpoints,
    nearest,
    positive_codes,
)

HALVES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float64, torch.float32, *HALVES]
TORCH = [E4M3, E5M2]


@pytest.fixture(params=["as it is", "without C", "bits alone"])
def path(request, monkeypatch) -> str:
    """Each way that codes are made."""
    if request.param != "as it is":
        monkeypatch.setattr(native, "is_usable", lambda *tensors, **options: False)
    if request.param == "bits alone":
        monkeypatch.setattr(codec, "_CASTS", frozenset())
    return request.param


def same(a: Tensor, b: Tensor) -> bool:
    """Equal, NaN to NaN and zeros with their signs."""
    a, b = a.double(), b.double()
    signs = torch.equal(a.signbit() | a.isnan(), b.signbit() | b.isnan())
    return torch.equal(a.nan_to_num(nan=1e99), b.nan_to_num(nan=1e99)) and signs


# --- codes to values ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", ALL, ids=str)
def test_every_code_is_decoded_exactly(form, dtype) -> None:
    found = decode(CODES, form, dtype)
    assert found.dtype == dtype
    assert same(found, torch.tensor([value_of(c, form) for c in range(256)], dtype=torch.float64))


@pytest.mark.parametrize("form", TORCH, ids=str)
def test_values_are_those_of_torch_and_ml_dtypes(form) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = CODES.view(form.dtype).float()
    assert same(decode(CODES, form), theirs)
    assert torch.equal(decode(CODES, form).signbit(), theirs.signbit())  # of NaN too
    assert same(decode(CODES.view(form.dtype), form), theirs)
    numbers = CODES.numpy().view(getattr(ml_dtypes, form.name)).astype("float32")
    assert same(decode(CODES, form), torch.from_numpy(numbers))


def test_hifloat8_is_the_format_of_the_paper() -> None:
    """Its exponents, mantissa widths, extremes and counts, not from its bit fields."""
    expected = {2.0**e * (1 + m / 8) for e in range(-3, 4) for m in range(8)}
    for far in range(4, 8):
        expected |= {2.0**e * (1 + m / 4) for e in (far, -far) for m in range(4)}
    for far in range(8, 16):
        expected |= {2.0**e * (1 + m / 2) for e in (far, -far) for m in range(2)}
    expected |= {2.0**e for e in range(-22, -15)}
    expected.remove(1.5 * 2.0**15)  # its code is that of infinity
    values = [value_of(code, HIF8) for code in range(256)]
    positive = [v for v in values if 0 < v < math.inf]
    assert len(positive) == len(set(positive)) == 126
    assert set(positive) == expected
    assert sorted(-v for v in values if -math.inf < v < 0) == sorted(positive)
    assert (max(positive), min(positive)) == (HIF8.largest, HIF8.smallest) == (2**15, 2**-22)
    assert [c for c, v in enumerate(values) if v == 0] == [0]
    assert [c for c, v in enumerate(values) if math.isnan(v)] == [0x80]
    assert (values[0x6F], values[0xEF]) == (math.inf, -math.inf)
    # Dot 001 with exponent +1, dot 0001, dot 11 with exponent -8, and the smallest.
    assert (values[0x10], values[0x08], values[0x70], values[1]) == (2.0, 1.0, 2**-8, 2**-22)


@pytest.mark.parametrize("form", ALL, ids=str)
def test_a_value_is_encoded_as_its_code(form, path) -> None:
    values = decode(CODES, form)
    known = values.isfinite()
    assert torch.equal(encode(values, form)[known], CODES[known])


# --- values to codes ---------------------------------------------------------------------------


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", ALL, ids=str)
def test_every_input_of_16_bits_becomes_the_nearest(form, dtype, saturate, path) -> None:
    values = every_word(dtype)
    found = encode(values, form, saturate=saturate)
    assert found.dtype == torch.uint8
    assert torch.equal(found, nearest(values, form, saturate))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("form", ALL, ids=str)
def test_boundaries_between_all_values_are_exact(form, dtype, saturate, path) -> None:
    """Each midpoint and its neighbours, in float64 too: it is rounded once."""
    extremes = torch.finfo(dtype)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, extremes.max, extremes.smallest_normal]
    special += [extremes.smallest_normal / 4, 5e-324, 1e-50, 1e300]
    values = torch.cat([around(midpoints(form), dtype), torch.tensor(special, dtype=dtype)])
    found = encode(values, form, saturate=saturate)
    assert torch.equal(found, nearest(values, form, saturate))


@pytest.mark.parametrize("form", ALL, ids=str)
def test_rounding_through_float32_would_be_wrong(form) -> None:
    """The control of the test above: what it would find."""
    values = around(midpoints(form), torch.float64)
    twice = encode(values.float(), form)
    assert (twice != nearest(values, form, saturate=True)).sum() > 20
    assert torch.equal(encode(values, form), nearest(values, form, saturate=True))


@pytest.mark.parametrize("form", ALL, ids=str)
def test_random_bits_of_float32(form, path) -> None:
    words = torch.randint(-(1 << 31), 1 << 31, (200_003,)).to(torch.int32)
    values = words.view(torch.float32)
    for saturate in (True, False):
        found = encode(values, form, saturate=saturate)
        assert torch.equal(found, nearest(values, form, saturate))


def test_rounding_to_odd_keeps_what_decides_a_tie() -> None:
    values = torch.tensor(
        [1 + 2**-40, -1 - 2**-40, 1.0, 1e-60, 1e60, -math.inf], dtype=torch.float64
    )
    expected = [1 + 2**-23, -1 - 2**-23, 1.0, 2.0**-149, torch.finfo(torch.float32).max, -math.inf]
    assert to_odd(values).tolist() == expected


@pytest.mark.parametrize("form", ALL, ids=str)
def test_nan_has_one_code_and_its_sign(form, path) -> None:
    """Whatever its payload, in its lowest bit too."""
    words = [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0x7FBFFFFF]
    nan = torch.tensor(words + [word - (1 << 31) for word in words], dtype=torch.int64)
    values = nan.to(torch.int32).view(torch.float32)
    expected = [0x80] * 8 if form is HIF8 else [0x7F] * 4 + [0xFF] * 4
    assert encode(values, form).tolist() == expected
    assert encode(values, form, saturate=False).tolist() == expected
    wide = values.double()
    assert encode(wide, form).tolist() == expected


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", ALL, ids=str)
def test_shapes_and_layouts(form, dtype, path) -> None:
    values = (torch.randn(6, 50, 7) * 100).to(dtype)
    whole = nearest(values, form, saturate=True)
    for view, expected in (
        (values, whole),
        (values.transpose(0, 2), whole.transpose(0, 2)),
        (values[::2, 1:, ::3], whole[::2, 1:, ::3]),
        (values[0, 0, 0], whole[0, 0, 0]),
        (values[:0], whole[:0]),
        (values[:, :1].expand(6, 50, 7), whole[:, :1].expand(6, 50, 7)),
    ):
        assert torch.equal(encode(view, form), expected)
        assert encode(view, form).shape == expected.shape
        assert decode(expected, form).shape == expected.shape
    large = torch.randn(10_001).to(dtype)
    assert torch.equal(encode(large, form), nearest(large, form, saturate=True))


def test_threads_change_nothing() -> None:
    values = torch.randn(1 << 20)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(encode(values, E4M3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_gradient_is_not_taken_and_not_asked_for() -> None:
    assert not encode(torch.randn(3, requires_grad=True), E4M3).requires_grad


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="made of float64, float32, bfloat16, float16, not of"):
        encode(torch.arange(3), E4M3)
    with pytest.raises(TypeError, match="decoded to float64"):
        decode(CODES, E4M3, torch.int32)
    with pytest.raises(TypeError, match=r"uint8 or torch\.float8_e4m3fn, not torch\.int16"):
        decode(CODES.to(torch.int16), E4M3)
    with pytest.raises(TypeError, match="hifloat8"):
        decode(CODES.view(torch.float8_e5m2), HIF8)


# --- other software ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", TORCH, ids=str)
def test_torch_casts_give_these_codes(form, dtype) -> None:
    """But beyond the largest value: E4M3 there gives NaN before torch 2.12, E5M2 infinity."""
    values = every_word(torch.bfloat16).to(dtype)
    theirs = values.to(form.dtype).view(torch.uint8)
    inside = (values.abs() < BEYOND[form]) | values.isnan()
    assert torch.equal(encode(values.float(), form)[inside], theirs[inside])
    far = theirs[~inside] & 0x7F
    ours = encode(values, form, saturate=False)[~inside] & 0x7F
    if form is E5M2:
        assert torch.equal(far, ours)  # infinities
    else:
        edge = values[~inside].abs() == BEYOND[form]  # a tie, to the even 448
        saturates = far[~edge][0] == 0x7E
        assert set(far[~edge].tolist()) == {0x7E if saturates else 0x7F}
        assert set(ours[~edge].tolist()) == {0x7F}
        assert set(ours[edge].tolist()) == {0x7E}


@pytest.mark.parametrize("form", TORCH, ids=str)
def test_ml_dtypes_gives_the_codes_without_saturation(form) -> None:
    """Its NaN of E5M2 is another, 0x7e."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = torch.cat([every_word(torch.bfloat16).float(), around(midpoints(form), torch.float32)])
    known = ~values.isnan()
    dtype = getattr(ml_dtypes, form.name)
    theirs = torch.from_numpy(values[known].numpy().astype(dtype).view("uint8"))
    assert torch.equal(encode(values[known], form, saturate=False), theirs)
    nan = torch.tensor([math.nan]).numpy().astype(dtype).view("uint8").item()
    assert nan == {E4M3: 0x7F, E5M2: 0x7E}[form]


def onnx_cast(form, saturate: bool):
    """ONNX Runtime's cast to the format and back."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    number = {E4M3: kinds.FLOAT8E4M3FN, E5M2: kinds.FLOAT8E5M2}[form]
    nodes = [
        helper.make_node("Cast", ["x"], ["codes"], to=number, saturate=int(saturate)),
        helper.make_node("Cast", ["codes"], ["y"], to=kinds.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, kinds.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "cast", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    data = io.BytesIO(model.SerializeToString()).getvalue()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda values: torch.from_numpy(session.run(None, {"x": values.numpy()})[0])


@pytest.mark.parametrize("form", TORCH, ids=str)
def test_onnx_runtime_gives_the_same_with_saturation(form) -> None:
    values = torch.cat([every_word(torch.bfloat16).float(), around(midpoints(form), torch.float32)])
    assert same(onnx_cast(form, saturate=True)(values), decode(encode(values, form), form))


@pytest.mark.parametrize("form", TORCH, ids=str)
def test_onnx_runtime_differs_without_saturation_only_beyond(form) -> None:
    """It is ONNX that says NaN or infinity there; the runtime's edge lies elsewhere."""
    values = torch.cat([every_word(torch.bfloat16).float(), around(midpoints(form), torch.float32)])
    theirs = onnx_cast(form, saturate=False)(values)
    inside = values.abs() < BEYOND[form]
    ours = decode(encode(values, form, saturate=False), form)
    assert same(theirs[inside], ours[inside])


# --- what the paths are ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ALL, ids=str)
def test_bits_need_no_cast(form) -> None:
    values = every_word(torch.bfloat16).float()
    assert torch.equal(encode_bits(values, form, True), nearest(values, form, saturate=True))
    assert len(positive_codes(form)) in (127, 124)


def test_c_is_used_where_it_can_read_and_not_where_code_is_traced() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    values = torch.randn(5)
    assert native.is_usable(values)
    assert not native.is_usable(values.to("meta"))
    assert not native.is_usable(values[:0])
    assert not native.is_usable(values.double())
    with FlopCounterMode(display=False):
        assert not native.is_usable(values)
        assert torch.equal(encode(values, E4M3), nearest(values, E4M3, saturate=True))
    assert encode(values.to("meta"), E4M3).shape == (5,)
    mapped = torch.func.vmap(lambda x: encode(x, HIF8))(values)
    assert torch.equal(mapped, nearest(values, HIF8, saturate=True))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("form", ALL, ids=str)
def test_views_that_torch_negates_when_they_are_read(form, saturate, path) -> None:
    """Such as the imaginary part of what `conj` returns: in memory are the other signs."""
    values = torch.randn(5, 64)
    view = torch._neg_view(values)
    assert view.data_ptr() == values.data_ptr()
    for dtype in (torch.float64, torch.float32):
        found = encode(torch._neg_view(values.to(dtype)), form, saturate=saturate)
        assert torch.equal(found, encode(-values.to(dtype), form, saturate=saturate))
    scaling = Scaling(form, "row")
    assert torch.equal(quantize(view, scaling).codes, quantize(-values, scaling).codes)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", ALL, ids=str)
def test_nothing_fake_is_kept(form, dtype) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    codec._table.cache_clear()
    with FakeTensorMode():
        assert isinstance(decode(torch.empty(3, dtype=torch.uint8), form, dtype), FakeTensor)
    assert not isinstance(decode(CODES, form, dtype), FakeTensor)


def test_without_a_compiler_torch_does_it_and_says_so_once(monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    try:
        values = torch.randn(100)
        for _ in range(2):
            assert torch.equal(encode(values, HIF8), nearest(values, HIF8, saturate=True))
        assert caplog.text.count("eight-bit codes are made by torch") == 1
    finally:
        native._library.cache_clear()
