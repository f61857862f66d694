"""What is measured, against float64 and against the cases that it must and must not see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from accel.precision.controller.ladder import floor_of, ladder_of
from accel.precision.controller.statistics import (
    NOTHING,
    OperandStatistics,
    cast_statistics,
    joined,
    quantized_statistics,
    rounding_statistics,
)
from accel.precision.operand import SLOTS, OperandFormat, Slot
from accel.precision.policy.formats import parse_format
from accel_kernels.fp8.formats import E4M3, E5M2, Scaling
from accel_kernels.fp8.quantization import dequantize, quantize


def measured(values: Tensor, scaling: Scaling) -> OperandStatistics:
    rounded = dequantize(quantize(values, scaling))
    return OperandStatistics(*rounding_statistics(values, rounded, torch.inf).tolist())


def plainly(values: Tensor, rounded: Tensor) -> tuple[float, float, float]:
    """Error, rms error and underflow, one row and one column after another, in float64."""
    x, y = values.double(), rounded.double()
    finite = x.isfinite()
    x, y = torch.where(finite, x, 0.0), torch.where(finite, y, 0.0)
    means = []
    for side in (list(zip(x, y, strict=True)), list(zip(x.t(), y.t(), strict=True))):
        errors = [((b - a).norm() / a.norm()).item() for a, b in side if a.norm() > 0]
        means.append(sum(errors) / max(len(errors), 1))
    norm, nonzero = x.norm().item(), x != 0
    lost = (nonzero & (y == 0)).sum().item() / max(nonzero.sum().item(), 1)
    return max(means), (y - x).norm().item() / norm if norm else 0.0, lost


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (100, 1), (63, 100), (0, 5), (5, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_they_are_what_a_loop_in_float64_finds(shape, dtype) -> None:
    values = torch.randn(shape).pow(3).to(dtype)
    if values.numel() > 100:
        values[3] = 0.0
        values[5, 7], values[6, 7] = torch.nan, torch.inf
    rounded = dequantize(quantize(values, Scaling(E4M3)))
    found = OperandStatistics(*rounding_statistics(values, rounded, torch.inf).tolist())
    error, rms, lost = plainly(values, rounded)
    assert found.error == pytest.approx(error, rel=1e-4, abs=1e-9)
    assert found.rms_error == pytest.approx(rms, rel=1e-4, abs=1e-9)
    assert found.underflow == pytest.approx(lost, rel=1e-5)
    assert found.nonfinite == (2 if values.numel() > 100 else 0)
    assert found.measured == (values.isfinite() & (values != 0)).sum()


@pytest.mark.parametrize("values", [
    torch.full((4, 4), 3e38), torch.full((4, 4), 1e-45), torch.full((4, 4), torch.nan),
    torch.tensor([[3e38, 1e-45], [0.0, -torch.inf]]), torch.zeros(3, 3),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_they_are_finite_whatever_the_values(values, dtype) -> None:
    assert cast_statistics(values, dtype).isfinite().all()


@pytest.mark.parametrize("name", [
    "float8_e4m3fn", "float8_e5m2:row", "float8_e4m3fn:1x128", "float8_e4m3fn:128x128",
    "float8_e4m3fn:1x32", "hifloat8:target=15",
])  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (1000, 700), (3, 50_000), (0, 5), (5, 0)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_sample_tells_what_the_whole_would(name, shape, turned) -> None:
    scaling = parse_format(name).scaling
    assert scaling is not None
    values = torch.randn(shape) * torch.randn(shape[0], 1).mul(2).exp()
    values = values.t() if turned else values
    quantized = quantize(values, scaling)
    sampled = OperandStatistics(*quantized_statistics(values, quantized).tolist())
    whole = OperandStatistics(
        *torch.maximum(
            rounding_statistics(values, dequantize(quantized), torch.inf),
            rounding_statistics(values.t(), dequantize(quantize(values.t(), scaling)), torch.inf),
        ).tolist()
    )
    exact = values.numel() < 30_000
    assert sampled.error == pytest.approx(whole.error, rel=1e-6 if exact else 0.25)
    assert sampled.underflow == pytest.approx(whole.underflow, rel=1e-6 if exact else 0.3, abs=3e-3)
    assert sampled.measured == whole.measured if exact else 16_000 < sampled.measured < 140_000
    assert sampled.nonfinite == 0


@pytest.mark.parametrize("where", ["channel", "token"])
def test_blocks_along_one_dimension_do_not_mend_an_outlier_in_the_other(where) -> None:
    """Alone in its blocks in one product, it spoils blocks of 128 in the other."""
    values = torch.randn(256, 256)
    (values if where == "token" else values.t())[3] = 1e7
    found = quantized_statistics(values, quantize(values, Scaling(E4M3, "1x128")))
    assert found[0] > 0.4


def test_a_non_finite_value_anywhere_is_seen() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        values = torch.randn(1000, 701)
        values[998, 3] = bad
        assert quantized_statistics(values, quantize(values, Scaling(E4M3)))[4] >= 1
        assert cast_statistics(values, torch.bfloat16)[4] >= 1


def test_saturation_by_an_old_scale_is_overflow_and_a_rounded_scale_is_not() -> None:
    values = torch.randn(100, 63)
    for scaling in (Scaling(E4M3), Scaling(E5M2)):
        now = quantize(values, scaling)
        assert quantized_statistics(values, now, is_delayed=True)[3] == 0
        late = quantize(values, scaling, values.abs().amax() / 2)
        expected = (values.abs() > values.abs().amax() / 2 * 1.05).float().mean()
        found = OperandStatistics(*quantized_statistics(values, late, is_delayed=True).tolist())
        assert found.overflow == pytest.approx(expected.item(), rel=0.2)
        assert found.error > measured(values, scaling).error


def test_a_cast_tells_what_float16_cannot_hold() -> None:
    values = torch.tensor([[1e5, 1.0, 1e-9, torch.inf]])
    found = OperandStatistics(*cast_statistics(values, torch.float16).tolist())
    assert found.overflow == pytest.approx(1 / 3)
    assert found.underflow == pytest.approx(1 / 3)
    assert found.nonfinite == 1
    assert found.error > 0.1
    wide = OperandStatistics(*cast_statistics(values, torch.bfloat16).tolist())
    assert wide.overflow == wide.underflow == 0
    assert wide.error < 0.004


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fn:1x128"])
def test_the_floor_is_what_a_well_scaled_tensor_has(name) -> None:
    form = parse_format(name)
    assert form.scaling is not None
    for values in (torch.randn(512, 512), F.gelu(4 * torch.randn(512, 512))):
        error = measured(values, form.scaling).error
        assert 0.9 < error / floor_of(form) < 1.1


def test_bfloat16_and_float16_have_their_floors_too() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        error = cast_statistics(torch.randn(512, 512), dtype)[0].item()
        assert 0.9 < error / floor_of(OperandFormat(dtype=dtype)) < 1.1


@pytest.mark.parametrize("where", ["channel", "token"])
def test_small_values_that_vanish_beside_an_outlier_are_seen(where) -> None:
    """The rms over the whole tensor falls as they vanish."""
    values = torch.randn(512, 512)
    calm = measured(values, Scaling(E4M3))
    (values if where == "token" else values.t())[3] = 1e6
    spoilt = measured(values, Scaling(E4M3))
    assert spoilt.rms_error < calm.rms_error
    assert spoilt.error > 0.9
    assert spoilt.underflow > 0.9


def test_harmless_tails_of_an_activation_are_not() -> None:
    """A mean over single values is 9 % here, and would leave FP8 for nothing."""
    values = F.gelu(4 * torch.randn(512, 512))
    found = measured(values, Scaling(E4M3))
    rounded = dequantize(quantize(values, Scaling(E4M3)))
    singly = ((rounded - values).abs() / values.abs())[values != 0].mean()
    assert singly > 0.08
    assert found.underflow > 0.05
    assert found.error < 0.03


def test_joining_is_the_maximum() -> None:
    one = OperandStatistics(0.1, 0.2, 0.0, 0.0, 0.0, 5.0)
    two = OperandStatistics(0.05, 0.3, 0.1, 0.0, 1.0, 0.0)
    assert joined([one, two]) == OperandStatistics(0.1, 0.3, 0.1, 0.0, 1.0, 5.0)
    assert joined([]) == NOTHING
    assert not NOTHING.is_known


# --- ladders -----------------------------------------------------------------------------------


def rungs(role, text: str, compute: torch.dtype = torch.bfloat16) -> list[str]:
    ladder = ladder_of(role, dict.fromkeys(SLOTS, parse_format(text)), compute)
    return [] if ladder is None else [rung.name for rung in ladder.rungs]


@pytest.mark.parametrize(
    ("role", "text", "expected"),
    [
        ("input", "float8_e4m3fn", "float8_e4m3fn float8_e4m3fn:1x128"),
        ("weight", "float8_e4m3fn", "float8_e4m3fn float8_e4m3fn:128x128"),
        ("gradient", "float8_e4m3fn", "float8_e4m3fn float8_e4m3fn:1x128 float8_e5m2:1x128"),
        ("gradient", "float8_e5m2", "float8_e5m2 float8_e5m2:1x128"),
        ("gradient", "float8_e4m3fn:row:pow2",
         "float8_e4m3fn:row:pow2 float8_e4m3fn:1x128:pow2 float8_e5m2:1x128:pow2"),
        ("input", "float8_e4m3fn:row:pow2", "float8_e4m3fn:row:pow2 float8_e4m3fn:1x128:pow2"),
        ("input", "float8_e4m3fn:1x128", "float8_e4m3fn:1x128"),
        ("gradient", "float8_e4m3fn:1x128", "float8_e4m3fn:1x128 float8_e5m2:1x128"),
        ("gradient", "float8_e4m3fn:1x32", "float8_e4m3fn:1x32 float8_e5m2:1x32"),
        ("input", "float8_e4m3fn:1x32", "float8_e4m3fn:1x32"),
        ("gradient", "float8_e5m2:delayed=16",
         "float8_e5m2:delayed=16 float8_e5m2 float8_e5m2:1x128"),
        ("input", "hifloat8:target=15", "hifloat8:target=15 hifloat8:row:target=15"),
    ],
)  # fmt: skip
def test_a_ladder_begins_with_the_policys_format(role, text, expected) -> None:
    assert rungs(role, text) == [*expected.split(), "bfloat16", "float32"]


def test_a_ladder_goes_on_in_what_the_module_computes_in() -> None:
    assert rungs("weight", "hifloat8", torch.float16)[2:] == ["float16", "float32"]
    assert rungs("weight", "hifloat8", torch.float32)[2:] == ["float32"]
    assert rungs("weight", "bfloat16") == []


def test_only_slots_of_products_in_eight_bits_are_touched() -> None:
    """As in torchao's `rowwise_with_gw_hp`: the weight's gradient in bfloat16."""
    slots = dict.fromkeys(SLOTS, OperandFormat(scaling=Scaling(E4M3, "row")))
    slots[Slot("weight_gradient", "gradient")] = OperandFormat(dtype=torch.bfloat16)
    ladder = ladder_of("input", slots, torch.bfloat16)
    assert ladder is not None
    assert [set(step) for step in ladder.formats] == [{Slot("forward", "input")}] * 4


def test_slots_of_two_formats_are_measured_in_both() -> None:
    slots = dict.fromkeys(SLOTS, OperandFormat(scaling=Scaling(E4M3)))
    slots[Slot("data_gradient", "gradient")] = OperandFormat(scaling=Scaling(E5M2))
    ladder = ladder_of("gradient", slots, torch.bfloat16)
    assert ladder is not None
    assert len(ladder.probes(0)) == 2
    assert ladder.rungs[0].name == "float8_e5m2 / float8_e4m3fn"
    assert ladder.rungs[0].floor == floor_of(OperandFormat(scaling=Scaling(E5M2)))
    assert len(ladder.probes(len(ladder.rungs) - 1)) == 1
