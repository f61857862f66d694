from __future__ import annotations

import math

import pytest
import torch

from accel_kernels import budgets
from accel_kernels.budgets import Budget, Deviation


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, 2.0**-53), (torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8),
        (torch.float16, 2.0**-11), (torch.float8_e4m3fn, 2.0**-4), (torch.float8_e5m2, 2.0**-3),
    ],
)  # fmt: skip
def test_unit_roundoff_is_the_largest_relative_rounding_error(
    dtype: torch.dtype, expected: float
) -> None:
    unit = budgets.unit_roundoff(dtype)
    assert unit == expected
    values = 1 + torch.rand(5000, dtype=torch.float64)
    error = ((values.to(dtype).double() - values) / values).abs().max()
    assert unit / 2 < error <= unit or dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_other_dtypes_have_no_unit_roundoff(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="has no unit roundoff"):
        budgets.unit_roundoff(dtype)


def test_a_deviation_is_relative_by_rms_and_by_the_largest() -> None:
    found = budgets.deviation(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]).double())
    assert found.rms == pytest.approx(0.5 / 5)
    assert found.worst == pytest.approx(0.5 / 4)
    assert found.nonfinite == 0


def test_complex_numbers_count_by_their_parts() -> None:
    actual, truth = torch.tensor([3 + 4j]), torch.tensor([3 + 5j]).to(torch.complex128)
    found = budgets.deviation(actual, truth)
    assert found.rms == pytest.approx(1 / math.hypot(3, 5))
    assert found.worst == pytest.approx(1 / 5)


def test_nonfinite_elements_agree_only_with_their_like() -> None:
    nan, inf = math.nan, math.inf
    actual = torch.tensor([nan, inf, -inf, inf, nan, 1.0, 1.0])
    truth = torch.tensor([nan, inf, inf, 1.0, 1.0, nan, 1.0]).double()
    assert budgets.deviation(actual, truth) == Deviation(0.0, 0.0, 4)


def test_nothing_and_zero() -> None:
    empty = torch.zeros(0)
    assert budgets.deviation(empty, empty.double()) == Deviation(0.0, 0.0)
    zero = torch.zeros(3)
    assert budgets.deviation(zero, zero.double()) == Deviation(0.0, 0.0)
    assert budgets.deviation(zero + 1e-30, zero.double()).rms == math.inf
    assert budgets.deviation(zero, zero.double() + 1e-30).rms == 1.0


def test_very_large_and_very_small_values_neither_overflow_nor_vanish() -> None:
    for size in (1e300, 1e-300):
        truth = torch.full((4,), size, dtype=torch.float64)
        found = budgets.deviation(truth * 1.5, truth)
        assert found.rms == pytest.approx(0.5)
        assert found.worst == pytest.approx(0.5)


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\) against a truth of shape \(3,\)"):
        budgets.deviation(torch.zeros(2), torch.zeros(3).double())


def test_a_budget_is_a_factor_of_the_reference_plus_rounding() -> None:
    unit = budgets.unit_roundoff(torch.float32)
    made = budgets.budget(Deviation(1e-6, 3e-6), torch.float32)
    assert made.rms == pytest.approx(budgets.FACTOR * 1e-6 + unit)
    assert made.worst == pytest.approx(budgets.WORST_FACTOR * 3e-6 + unit)
    assert made.exceeded_by(Deviation(2e-6, 6e-6)) is None
    assert budgets.budget(Deviation(0.0, 0.0), torch.bfloat16).rms == 2.0**-8


def test_a_lucky_reference_is_not_believed_below_the_floor() -> None:
    floor = Deviation(1e-6, 1e-6)
    lucky = budgets.budget(Deviation(1e-12, 1e-12), torch.float32, floor=floor)
    assert lucky == budgets.budget(floor, torch.float32)
    poor = Deviation(1e-3, 1e-3)
    assert budgets.budget(poor, torch.float32, floor=floor) == budgets.budget(poor, torch.float32)


@pytest.mark.parametrize(
    ("deviation", "words"),
    [
        (Deviation(2.0, 0.0), "rms error 2 exceeds its budget 1"),
        (Deviation(0.0, 3.0), "worst error 3 exceeds its budget 2"),
        (Deviation(0.0, 0.0, 5), "5 elements are NaN or infinite where the truth is not"),
        (Deviation(math.inf, 0.0), "rms error inf exceeds its budget 1"),
        (Deviation(1.0, 2.0), None),
    ],
)
def test_what_is_exceeded_is_said(deviation: Deviation, words: str | None) -> None:
    assert Budget(1.0, 2.0).exceeded_by(deviation) == words


def test_typical_is_the_median_of_what_is_finite() -> None:
    found = budgets.typical(
        [Deviation(1.0, 5.0), Deviation(2.0, 4.0), Deviation(9.0, 3.0), Deviation(math.inf, 0.0)]
    )
    assert found == Deviation(2.0, 4.0)
    assert budgets.typical([]) == Deviation(0.0, 0.0)
